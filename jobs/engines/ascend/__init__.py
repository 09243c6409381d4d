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
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, TypeAdapter

from jobs.core.errors import ConfigError
from jobs.core.foreign import from_yaml

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
        range: of a number, such as ">0<=1"; None: any.
    """

    action: str = "store"
    type: str | None = None
    aliases: tuple[str, ...] = ()
    nargs: str | int | None = None
    const: Any = None
    choices: tuple[Any, ...] | None = None
    default: Any = None
    deprecated: bool = False
    range: str | None = None


@dataclass(frozen=True)
class Key:
    """One key of `additional_config`.

    Attributes:
        source: file of the package that asks for it.
        keys: of a section, the names in it that are asked for; None: it is no section of fixed names.
        unknown: what the engine does with another name in the section: error, ignored or accepted.
        type: what its value must be, where the release checks that: bool, int, float, str, or its only values.
        types: the same of the names in the section.
    """

    source: str
    keys: tuple[str, ...] | None = None
    unknown: str = "ignored"
    type: str | tuple[str | int, ...] | None = None
    types: Mapping[str, str | tuple[str | int, ...]] = field(default_factory=dict)


class Fact(NamedTuple):
    """A value and where it is published; value None: not published."""

    value: Annotated[str | None, BeforeValidator(lambda value: None if value is None else str(value))]
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
        engine_variables: those of them that vLLM itself knows.
        have_a_key: variable -> key of `additional_config` that says the same.
        deprecated_variables: variable -> source.
        facts: engine (vLLM), python, cann, torch, torch_npu, hdk, date.
        images: tag -> base system.
        moving_images: tag that changes its content -> the fixed one.
        recipe: variables of the official two-node A2 recipe.
        names: kv_connector, tool_call_parser, attention_backend -> those that the release registers.
        settings: of a flag that takes a mapping, the fields in it (dotted in a section) -> their type, their only
            values, or None.
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
    engine_variables: tuple[str, ...] = ()
    have_a_key: Mapping[str, str] = field(default_factory=dict)
    deprecated_variables: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    images: Mapping[str, Fact] = field(default_factory=dict)
    moving_images: Mapping[str, Fact] = field(default_factory=dict)
    recipe: Mapping[str, Fact] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str | tuple[str | int | None, ...] | None]] = field(default_factory=dict)

    @cached_property
    def strict(self) -> bool:
        """Whether an unknown key of `additional_config`, or one of another type, is refused (from 0.27.1 on)."""
        return any(key.type for key in self.keys.values())

    @cached_property
    def version(self) -> tuple[int, ...]:
        """The release as numbers, to compare."""
        return version(self.name)


@cache
def version(name: str) -> tuple[int, ...]:
    """Return 0.9.1 as (0, 9, 1); what follows the third number (rc1, .post1) is left out."""
    return tuple(int(part) for part in re.findall(r"\d+", name)[:3])


@cache
def order(name: str) -> tuple[tuple[int, ...], int, int]:
    """Return what releases are sorted by: rcN stands before the release, .postN after it."""
    rank = -1 if "rc" in name else 1 if ".post" in name else 0
    return version(name), rank, int((re.findall(r"(?:rc|\.post)(\d+)", name) or ["0"])[0])


@cache
def releases() -> tuple[str, ...]:
    """Return the names of all releases that are described here, oldest first."""
    return tuple(sorted((path.stem for path in _DIRECTORY.glob("*.yaml")), key=order))


def mended(name: str) -> str:
    """Return the release that came in the place of one with a fault, if it is described; else that release."""
    return post if (post := f"{name}.post1") in releases() else name


ADVISED = "0.23.0.post1"
"""The newest final release: R1 and V3.1 are in its test report, which the candidates after it have not."""


def unknown(name: str) -> tuple[str, str]:
    """Return why a release cannot be taken, with its neighbours and what came after them, and what to do."""
    numbers = re.match(r"\d+\.\d+", name)
    before = [one for one in releases() if numbers and order(one) < order(name)]
    after = [one for one in releases() if numbers and order(one) > order(name)]
    told = "this release is not described here"
    if before and after:
        told += f"; it lies between {before[-1]} and {after[0]}: what became other in between is in neither"
    elif before:
        told += f"; it is newer than {before[-1]}, the newest one here, and may have other names"
    elif after:
        told += f"; it is older than {after[0]}, the oldest one here"
    same = [one for one in releases() if numbers and version(one) == version(name)]
    near = same[-1] if same else before[-1] if before else ADVISED
    taken = f"{near} has the same vLLM: set engine.release={near}" if same else f"The nearest is {near}"
    if before and after and not same:
        what = f"python -m jobs explain engine.release={after[0]}"
        taken = f"The nearest is {near}, and `{what}` says what changed by {after[0]}"
    return told, f"{taken}. Valid: {', '.join(releases())}. Advised: {ADVISED}. To add one: docs/releases.md."


@cache
def release(name: str) -> Release:
    """Return one release. ConfigError: there is no such release here."""
    if name not in releases():
        raise ConfigError("engine.release", name, *unknown(name))
    files = (folder / f"{name}.yaml" for folder in (_DIRECTORY, _FACTS))
    data, facts = (from_yaml(file.read_text(encoding="utf-8")) for file in files)
    variables, previous, further = data["variables"], data["previous"], facts.pop("further_keys", {})
    given = {
        **{key: data[key] for key in ("verified_against", "abbreviations", "flags")},
        **{key: section for key, section in facts.items() if isinstance(section, dict)},
        **{key: previous[key] for key in ("added", "removed")},
        "name": name,
        "previous": previous["release"],
        "settings": data.get("settings", {}),
        "names": data.get("names", {}),
        "keys": data["additional_config"] | {key: {"source": source} for key, source in further.items()},
        "variables": dict.fromkeys([*variables["vllm"], *variables["read_elsewhere"]]) | variables["vllm_ascend"],
        "engine_variables": variables["vllm"],
        "have_a_key": variables["have_a_key"],
        "facts": {key: fact for key, fact in facts.items() if isinstance(fact, list)},
    }
    return TypeAdapter(Release).validate_python(given)


def utilization(name: str, asked: float | None = None) -> float:
    """Return the share of an NPU that an engine takes: `asked`, or vLLM's own default, which differs by release.

    For a release that is not described here (the CPU build's) the newest one stands.
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


def is_json_mapping(text: str) -> bool:
    """Whether a text is the JSON of a mapping."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def mapping_of(flags: Mapping[str, Any], flag: str) -> Mapping[str, Any]:
    """Return what a flag that takes a mapping says: a mapping, its JSON, or `FLAG.name` and `FLAG.section.name`.

    vLLM's argument parser appends what the dotted ones say together, so that it holds alone. The names of `flags` have
    dashes or underscores as `flag` has them.
    """
    dotted: dict[str, Any] = {}
    for name, value in flags.items():
        if not name.startswith(flag):
            continue
        given, _, path = name.partition(".")
        if given == flag and path and value is not None:
            *sections, last = path.split(".")
            place = dotted
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
    return dotted or as_mapping(flags.get(flag))


def is_true(value: Any) -> bool:
    """Return whether a setting is on, as a value of YAML or as the text of a variable."""
    return str(value).lower() in ("1", "true")
