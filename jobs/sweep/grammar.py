"""Overrides in Hydra's own grammar, each text parsed once; and what can be said of them before anything is composed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException, OverrideParseException

from jobs.core import schema
from jobs.core.errors import ConfigError, nearest
from jobs.core.fields import override_parts
from jobs.core.schema import CONF
from jobs.results.columns import check_objective

MOST_POINTS = 10_000

GOAL = "results.objective"
"""What `goal=COLUMN` is short for."""


def spelled(overrides: Sequence[str]) -> list[str]:
    """Return overrides with short spellings written out. ConfigError: `goal` names no figure."""
    for text in overrides:
        if text.startswith("goal="):
            check_objective(text.removeprefix("goal="), "goal")
    return [f"{GOAL}={text.removeprefix('goal=')}" if text.startswith("goal=") else text for text in overrides]


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse override strings by Hydra's own grammar. ConfigError: the text is not an override."""
    return [_parsed(quoted(text)) for text in overrides]


@cache
def _parsed(text: str) -> Override:
    try:
        [found] = OverridesParser.create().parse_overrides([text])
    except OverrideParseException as error:
        reason = " ".join(str(error).partition("\nSee ")[0].split())
        remedy = "Write it as key=value (commands are those of python -m jobs --help)."
        if "=" in text:
            remedy = "Hydra takes such a value only between quotes, which the shell must leave: 'key=\"a#b\"'."
        raise ConfigError("override", repr(error.override), reason, remedy) from None
    return found


_FOREIGN = re.compile(r"#|[^\x00-\x7f]")
"""What Hydra's grammar has only between quotes, and people type without: REGISTRY#IMAGE:TAG, Chinese names."""

_WORD = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s,\[\](){}'"](?:[^,\[\](){}'"]*[^\s,\[\](){}'"])?""")


def quoted(text: str) -> str:
    """Return an override with quotes around every element of its value that Hydra's grammar does not take without.

    A shell takes the quotes away that a person writes. What already is quoted stays as it is, and so does a value with
    braces.
    """
    key, equals, value = text.partition("=")
    if not equals or "{" in value or not _FOREIGN.search(value):
        return text

    def tag(match: re.Match[str]) -> str:
        word = match.group()
        return f'"{word}"' if _FOREIGN.search(word) and word[0] not in "'\"" else word

    return key + equals + _WORD.sub(tag, value)


def check_count(points: int, key: str, value: object) -> None:
    """Raise ConfigError where a sweep has more points than anybody can measure: its plan alone would take for ever."""
    if points > MOST_POINTS:
        raise ConfigError(key, value, f"these are more than {MOST_POINTS:,} points", "Sweep fewer values.")


def sweep_values(item: Override) -> list[str]:
    """Return the values of a sweep as Hydra writes them. ConfigError: it has no values, or no end (`interval(0,1)`)."""
    try:
        wanted = item.value()
        options = groups().get(item.key_or_group, ())
        listed = wanted.filter(list(options)) if isinstance(wanted, Glob) else item.sweep_string_iterator()
        values = list(itertools.islice(listed, MOST_POINTS + 1))
        check_count(len(values), item.key_or_group, value_text(item))
        if values:
            return values
        reason = "this sweep has no values"
    except (HydraException, ValueError) as error:
        reason = f"its values cannot be listed: {error}"
    raise ConfigError(item.key_or_group, value_text(item), reason, "Write key=a,b or key=range(start,stop,step).")


def swept_keys(points: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the keys whose override differs between points, in order of first appearance."""
    given = [dict(map(override_parts, point)) for point in points]
    keys = dict.fromkeys(key for one in given for key in one)
    return tuple(key for key in keys if len({one.get(key) for one in given}) > 1)


def groups(conf: Path = CONF) -> Mapping[str, tuple[str, ...]]:
    """Return the config groups and their options, read from the directory `conf`."""
    return {
        folder.name: tuple(sorted(file.stem for file in folder.glob("*.yaml")))
        for folder in sorted(conf.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }


def ours(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those of Hydra itself (`hydra/sweeper=...`, `hydra.sweep.dir=...`)."""
    return [text for text in overrides if not text.lstrip("+~").startswith(("hydra.", "hydra/"))]


def check(overrides: Sequence[str]) -> None:
    """Raise ConfigError for what can be seen in the overrides alone: unknown keys, groups, options."""
    known = groups()
    items = parse(overrides)
    basic = not any(item.key_or_group == "hydra/sweeper" for item in items)
    for item in items:
        if item.is_sweep_override() and (basic or item.is_discrete_sweep()):
            sweep_values(item)
        if item.key_or_group == "hydra/launcher":
            reason, remedy = "only the planner plans and submits", "Leave it out; see cluster.kind."
            raise ConfigError("hydra/launcher", item.value(), reason, remedy)
        if not is_structural(item, known):
            schema.check_key(item.key_or_group, value_text(item))


def is_sweep(override: str) -> bool:
    """Return whether an override has several values."""
    return _parsed(quoted(override)).is_sweep_override()


def refuse_sweeps(overrides: Sequence[str]) -> None:
    """Raise ConfigError for a sweep among the overrides of one point."""
    for item in parse(overrides):
        if item.is_sweep_override():
            reason, remedy = "several values need a sweep", f"Add -m, or write a list: '{item.key_or_group}=[...]'."
            raise ConfigError(item.key_or_group, value_text(item), reason, remedy)


def value_text(item: Override) -> str:
    """Return the value as it was written."""
    return str(item.input_line).partition("=")[2]


def is_structural(item: Override, known: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether Hydra itself must compose this: hydra.* keys, group choices, package renames, deletions."""
    key = item.key_or_group
    if key.startswith("hydra") or item.package or "/" in key or item.is_delete():
        return True
    if key not in known:
        return False
    choices: Any = sweep_values(item) if item.is_sweep_override() else item.value()
    for choice in choices if isinstance(choices, list) else [choices]:
        if choice is None or choice == "null":
            raise ConfigError(key, "null", "a group is chosen or left out", f"Leave {key} out, or write '~{key}'.")
        if str(choice) not in known[key]:
            raise ConfigError(key, choice, f"there is no such option in conf/{key}", nearest(str(choice), known[key]))
    return True
