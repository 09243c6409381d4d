"""The services of an allocation as people read them: one line each, by the names of presets, its points below. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from jobs.sweep.plan import Allocation, Plan
from jobs.sweep.points import Point

LEAST = 40
"""Characters below which a terminal is not believed: lines are folded at this width."""

_LOAD = "bench"
"""All keys of a load begin with it."""


def services_lines(plan: Plan, allocation: Allocation, width: int | None = None) -> list[str]:
    """Return a line for each service with its settings and its predicted load and windows, and one for each point.

    Lines are folded to so many characters; None: never.
    """
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
        lines += _folded(f"    service {name}  {settings:<{wide}}  {spent}".rstrip(), width)
        for point in points:
            lines += _folded(f"      point {point.point}  {_settings(point, common, load=True)}".rstrip(), width)
    return lines


def point_text(plan: Plan, point: Point) -> str:
    """Return what sets a point apart from the others, by the names of presets."""
    common = _common(plan.points)
    return " ".join(filter(None, (_settings(point, common, load=load) for load in (False, True))))


def set_apart(points: Sequence[Point]) -> list[tuple[str, str]]:
    """Return what sets the service of each point apart from the others, and its load, by the names of presets."""
    common = _common(points)
    return [(_settings(one, common, load=False), _settings(one, common, load=True)) for one in points]


def _common(points: Iterable[Point]) -> frozenset[str]:
    """Return the overrides that all points have; of a single point none is that."""
    texts = [frozenset(point.overrides) for point in points]
    return frozenset.intersection(*texts) if len(texts) > 1 else frozenset()


def _settings(point: Point, common: frozenset[str], *, load: bool) -> str:
    return " ".join(
        _named(word)
        for word in point.overrides
        if word not in common and (word.lstrip("+~").partition("=")[0].partition(".")[0] == _LOAD) == load
    )


def _named(word: str) -> str:
    """Return an override as its preset's name (`parallel=dp2_tp8`: dp2_tp8), or as it is."""
    key, _, value = word.partition("=")
    return value if "." not in key and value else word


def _folded(line: str, width: int | None) -> Iterator[str]:
    if width is None or len(line) <= width:
        yield line
        return
    indent = len(line) - len(line.lstrip()) + 4
    yield from textwrap.wrap(
        line, max(width, LEAST), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def _short(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
