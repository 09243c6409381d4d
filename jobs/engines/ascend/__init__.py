"""What each vllm-ascend release accepts.

releases/*.yaml is read out of the published wheels (tools/extract_release.py); facts/*.yaml holds what no wheel
says (CANN, HDK, images, official recipe) and is kept by hand. Every item there has its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from jobs.core.errors import ConfigError
from jobs.core.files import from_yaml

_DIRECTORY = Path(__file__).parent / "releases"
_FACTS = Path(__file__).parent / "facts"


@dataclass(frozen=True)
class Flag:
    """One flag of `vllm serve`.

    Attributes:
        action: store, store_true, boolean (also `--no-NAME`) or append.
        type: what its value may be; the names are those of tools/extract_flags.py.
        aliases: further spellings, with their dash.
        nargs, const: as argparse has them.
        choices: the only valid values; None: any.
        default: vLLM's own, or None where it is computed later.
        deprecated: vLLM warns when it is given.
    """

    action: str = "store"
    type: str | None = None
    aliases: tuple[str, ...] = ()
    nargs: str | int | None = None
    const: Any = None
    choices: tuple[Any, ...] | None = None
    default: Any = None
    deprecated: bool = False


@dataclass(frozen=True)
class Key:
    """One key of `additional_config`.

    Attributes:
        source: file of the package that asks for it.
        keys: of a section, the names in it that are asked for; None: it is no section of fixed names.
        unknown: what the engine does with another name in the section: error, ignored or accepted.
    """

    source: str
    keys: tuple[str, ...] | None = None
    unknown: str = "ignored"


@dataclass(frozen=True)
class Fact:
    """A value and where it is published; value None: not published."""

    value: str | None
    source: str


@dataclass(frozen=True)
class Release:
    """One release: its command line, its keys and variables, and what it needs around it.

    Attributes:
        name: the release, for example 0.9.1.
        verified_against: package -> version of the wheel that the data was read from.
        abbreviations: whether a unique beginning of a flag's name is accepted.
        flags: by name, without dashes.
        previous, added, removed: the release before this one here, and the flags that came and went.
        keys: of `additional_config`.
        deprecated_keys: key -> source.
        key_defaults: key -> the engine's own value, where a release changed it.
        variables: that vLLM or the plugin reads -> default as text, None where it is unset or computed.
        have_a_key: variable -> key of `additional_config` that says the same.
        deprecated_variables: variable -> source.
        facts: engine (vLLM), python, cann, torch, torch_npu, hdk, date.
        images: tag -> base system.
        moving_images: tag that changes its content -> the fixed one.
        recipe: variables of the official two-node A2 recipe.
    """

    name: str
    verified_against: Mapping[str, str]
    abbreviations: bool
    flags: Mapping[str, Flag]
    previous: str | None = None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    keys: Mapping[str, Key] = field(default_factory=dict)
    deprecated_keys: Mapping[str, str] = field(default_factory=dict)
    key_defaults: Mapping[str, Fact] = field(default_factory=dict)
    variables: Mapping[str, str | None] = field(default_factory=dict)
    have_a_key: Mapping[str, str] = field(default_factory=dict)
    deprecated_variables: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    images: Mapping[str, Fact] = field(default_factory=dict)
    moving_images: Mapping[str, Fact] = field(default_factory=dict)
    recipe: Mapping[str, Fact] = field(default_factory=dict)

    @cached_property
    def version(self) -> tuple[int, ...]:
        """The release as numbers, to compare."""
        return version(self.name)


@cache
def version(name: str) -> tuple[int, ...]:
    """Return 0.9.1 as (0, 9, 1); what follows the third number (rc1, .post1) is left out."""
    return tuple(int(part) for part in re.findall(r"\d+", name)[:3])


@cache
def releases() -> tuple[str, ...]:
    """Return the names of all releases that are described here, oldest first."""
    return tuple(sorted((path.stem for path in _DIRECTORY.glob("*.yaml")), key=version))


@cache
def release(name: str) -> Release:
    """Return one release.

    Raises:
        ConfigError: there is no such release here.
    """
    if name not in releases():
        raise ConfigError(
            "engine.release", name, "this release is not described here", f"Valid: {', '.join(releases())}."
        )
    data, facts = _load(_DIRECTORY / f"{name}.yaml"), _load(_FACTS / f"{name}.yaml")
    variables = data["variables"]
    further = {key: Key(source) for key, source in facts.get("further_keys", {}).items()}
    return Release(
        name=name,
        verified_against=data["verified_against"],
        abbreviations=data["abbreviations"],
        flags={key: _flag(value) for key, value in data["flags"].items()},
        previous=data["previous"]["release"],
        added=tuple(data["previous"]["added"]),
        removed=tuple(data["previous"]["removed"]),
        keys={key: _key(value) for key, value in data["additional_config"].items()} | further,
        deprecated_keys=facts.get("deprecated_keys", {}),
        key_defaults=_facts(facts, "key_defaults"),
        variables=dict.fromkeys([*variables["vllm"], *variables["read_elsewhere"]]) | variables["vllm_ascend"],
        have_a_key=variables["have_a_key"],
        deprecated_variables=facts.get("deprecated_variables", {}),
        facts={key: _fact(value) for key, value in facts.items() if isinstance(value, list)},
        images=_facts(facts, "images"),
        moving_images=_facts(facts, "moving_images"),
        recipe=_facts(facts, "recipe"),
    )


def utilization(name: str, asked: float | None = None) -> float:
    """Return the share of an NPU that an engine takes: `asked`, or vLLM's own default, which differs by release.

    Args:
        name: of a release; where it is not described here (the CPU build's), the newest one stands for it.
        asked: `parallel.gpu_memory_utilization`.
    """
    if asked is not None:
        return asked
    return float(release(name if name in releases() else releases()[-1]).flags["gpu-memory-utilization"].default)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return what is given to a flag that takes a mapping, or its JSON text; empty where it is neither."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, Mapping) else {}


def _load(path: Path) -> dict[str, Any]:
    data = from_yaml(path.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def _flag(value: Mapping[str, Any]) -> Flag:
    tuples = {k: tuple(v) for k, v in value.items() if k in ("aliases", "choices")}
    return Flag(**{**value, **tuples})


def _key(value: Mapping[str, Any]) -> Key:
    return Key(**{**value, "keys": tuple(value["keys"]) if "keys" in value else None})


def _fact(value: list[Any]) -> Fact:
    return Fact(None if value[0] is None else str(value[0]), value[1])


def _facts(facts: Mapping[str, Any], name: str) -> dict[str, Fact]:
    return {key: _fact(value) for key, value in facts.get(name, {}).items()}
