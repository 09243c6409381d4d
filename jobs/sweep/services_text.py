"""The services of an allocation as people read them: one line each, by the names of presets, its points below. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from jobs.core import schema
from jobs.core.chinese import width
from jobs.core.fields import override_parts
from jobs.sweep.points import Point

if TYPE_CHECKING:
    from jobs.sweep.plan import Allocation, Plan

LEAST = 40
"""Characters below which a terminal is not believed: lines are folded at this width."""

NAMED = 3
"""Settings that are named one by one where they have nothing of their own in common."""

_INDENT = 4
"""Of services and their points; other lines are left to the terminal."""

_LOAD = "bench"
"""All keys of a load begin with it."""


def services_lines(plan: Plan, allocation: Allocation) -> list[str]:
    """Return a line for each service with its settings and its predicted load and windows, and one for each point."""
    common = _common(plan.points)
    by_name = {service.service: service for service in plan.services}
    rows = []
    for name in allocation.services:
        points = plan.points_of(name)
        phases = by_name[name].phases
        spent = f"load {_short(phases.load)}, {_short(phases.total - phases.load)} more" if phases else ""
        rows.append((name, _settings(points[0], common, load=False) or "as configured", spent, points))
    wide = max((len(settings) for _, settings, _, _ in rows), default=0)
    lines: list[str] = []
    for name, settings, spent, points in rows:
        lines.append(f"    service {name}  {settings:<{wide}}  {spent}".rstrip())
        lines += [f"      point {point.point}  {_settings(point, common, load=True)}".rstrip() for point in points]
    return lines


def point_text(plan: Plan, point: Point) -> str:
    """Return what sets a point apart from the others, by the names of presets."""
    common = _common(plan.points)
    return " ".join(filter(None, (_settings(point, common, load=load) for load in (False, True))))


def set_apart(points: Sequence[Point]) -> list[tuple[str, str]]:
    """Return what sets the service of each point apart from the others, and its load, by the names of presets."""
    common = _common(points)
    return [(_settings(one, common, load=False), _settings(one, common, load=True)) for one in points]


def which(places: Collection[int], overrides: Sequence[Sequence[str]]) -> str:
    """Return what sets points apart, by their places among the overrides of all: what they alone share, or each by its
    own, of many the first; empty: they are all.
    """
    if len(set(places)) == len(overrides):
        return ""
    common = _shared(overrides)
    own = [[word for word in overrides[place] if word not in common] for place in places]
    shared = [word for word in own[0] if all(word in one for one in own)]
    if shared and sum(set(shared) <= set(one) for one in overrides) == len(own):
        own = [shared]
    names = list(dict.fromkeys(" ".join(map(_named, one)) or "as configured" for one in own))
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _common(points: Sequence[Point]) -> frozenset[str]:
    """Return the overrides that tell no point from the others: those that all have; of a single point those that do not
    change what is asked."""
    if len(points) > 1:
        return _shared([point.overrides for point in points])
    sweep = {key.partition(".")[0] for key, scope in schema.schema().items() if scope == "sweep"}
    sweep -= {key.partition(".")[0] for key, scope in schema.schema().items() if scope != "sweep"}
    return (
        frozenset(word for word in points[0].overrides if override_parts(word)[0].partition(".")[0] in sweep)
        if points
        else frozenset()
    )


def _shared(overrides: Sequence[Sequence[str]]) -> frozenset[str]:
    return frozenset.intersection(*map(frozenset, overrides))


def _settings(point: Point, common: frozenset[str], *, load: bool) -> str:
    return " ".join(
        _named(word)
        for word in point.overrides
        if word not in common and (override_parts(word)[0].partition(".")[0] == _LOAD) == load
    )


def _named(word: str) -> str:
    """Return an override as its preset's name (`parallel=dp2_tp8`: dp2_tp8), or as it is."""
    word = word.replace("\\:", ":")  # Hydra's own escape
    key, _, value = word.partition("=")
    return value if "." not in key and value else word


def folded(text: str, columns: int) -> str:
    """Return a plan whose lines of services and points take so many columns of a terminal at most."""
    return "\n".join(part for line in text.split("\n") for part in _folded(line, max(columns, LEAST)))


def _folded(line: str, columns: int) -> Iterator[str]:
    indent = len(line) - len(line.lstrip())
    part = ""
    for word in re.findall(r"\s*\S+", line) if indent >= _INDENT else ():
        if part and width(part + word) > columns:
            yield part
            part = " " * (indent + 4) + word.lstrip()
        else:
            part += word
    yield part or line


def _short(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
