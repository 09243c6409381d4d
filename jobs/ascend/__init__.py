"""What each vllm-ascend release accepts: data in releases/*.yaml, written by tools/extract_flags.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import ConfigError, nearest

_DIRECTORY = Path(__file__).parent / "releases"


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
class Release:
    """The command line of one release.

    Attributes:
        name: the release, for example 0.9.1.
        abbreviations: whether a unique beginning of a flag's name is accepted.
        flags: by name, without dashes.
    """

    name: str
    abbreviations: bool
    flags: Mapping[str, Flag]


def releases() -> tuple[str, ...]:
    """Return the names of all releases that are described here."""
    return tuple(sorted(path.stem for path in _DIRECTORY.glob("*.yaml")))


@cache
def release(name: str) -> Release:
    """Return one release.

    Raises:
        ConfigError: there is no such release here.
    """
    if name not in releases():
        raise ConfigError("engine.release", name, "its flags are not known here", nearest(name, releases()))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    data = yaml.load((_DIRECTORY / f"{name}.yaml").read_text(), Loader=loader)
    return Release(name, data["abbreviations"], {key: _flag(value) for key, value in data["flags"].items()})


def _flag(value: Mapping[str, Any]) -> Flag:
    tuples = {k: tuple(v) for k, v in value.items() if k in ("aliases", "choices")}
    return Flag(**{**value, **tuples})
