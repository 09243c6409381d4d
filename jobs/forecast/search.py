"""A search as its files tell it: the question (tune.json), and what the rows so far lead to next.

The forecast that a search begins with is kept in its file, so that what it decides depends on that file and the rows
alone: whoever asks, and whenever, gets the same next step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np

from jobs.core.config import Config
from jobs.core.foreign import load_form
from jobs.core.load import Slo
from jobs.core.rundir import SweepDir
from jobs.core.tasks import Identity, ServiceTask
from jobs.forecast.fit import Posterior
from jobs.forecast.observed import COLUMNS, window_scatter
from jobs.forecast.tuner import Candidate, Goal, Shown, Space, Step, hopeless, next_step

LIMITS = {"ttft_s": "ttft_ms", "tpot_s": "tpot_ms"}
"""Figures of the model that `bench.slo` may limit, and its keys."""


def limits_of(config: Config) -> tuple[tuple[str, float], ...]:
    """Return the limits of `bench.slo` on figures of the model, in its units."""
    slo = config.bench.slo
    return tuple((name, getattr(slo, key) / 1e3) for name, key in LIMITS.items() if getattr(slo, key))


Rows = Mapping[str, Mapping[str, Any]]
"""Finished rows by point."""


@dataclass(frozen=True)
class Setting:
    """One setting of the space, by its overrides; points and services of each start that it may get, in their order."""

    candidate: Candidate
    overrides: tuple[str, ...]
    points: tuple[Identity, ...]
    services: tuple[Identity, ...]

    def __post_init__(self) -> None:
        """Raise ValueError where a start has no service."""
        if not self.points or len(self.points) != len(self.services):
            raise ValueError("each start is of one service")


@dataclass(frozen=True)
class Search:
    """The content of tune.json.

    Attributes:
        windows: of one start.
        mean, covariance: what was believed of the model's constants at the start.
        ruled_out: why other settings are never started, by their names.
        plan: plan.json as it would be if every start of every setting were begun.
    """

    goal: Goal
    budget_hours: float
    windows: int
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    settings: tuple[Setting, ...]
    ruled_out: Mapping[str, str]
    plan: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Raise ValueError where a file says what no search is."""
        if not self.settings or {len(self.mean)} != {len(self.covariance), *map(len, self.covariance)}:
            raise ValueError("it has no settings, or what is believed has another form")

    @cached_property
    def space(self) -> Space:
        """What is believed of its settings beforehand."""
        known = Posterior(np.array(self.mean), np.array(self.covariance))
        return Space([one.candidate for one in self.settings], known, self.goal)

    def shown(self, rows: Rows) -> list[Shown]:
        """Return what rows show, in the order of the settings. What several loads share is counted with the first."""
        found, loaded = [], set[tuple[Any, ...]]()
        for place, one in enumerate(self.settings):
            for start, point in enumerate(one.points):
                if row := rows.get(point):
                    service = (one.services[start], row.get("job_id"), row.get("attempt"))
                    found.append(shown(self.goal, place, start, row, self.windows, shared=service in loaded))
                    loaded.add(service)
        return found

    def next(self, rows: Rows, up: str | None = None) -> tuple[Step, ServiceTask | None]:
        """Return what to do next and the service that does it; None: the search is over.

        Args:
            up: the service that is up.
        """
        first = up if up in {one.candidate.service for one in self.settings} else None  # further starts confirm
        seen = self.shown(rows)
        step = next_step(self.space, seen, self.budget_hours, self.windows, running=False, up=first)
        if step.do == "stop":
            return step, None
        one = self.settings[step.candidate]
        number = next(number for number, point in enumerate(one.points) if point not in rows)
        return step, ServiceTask(one.services[number], (one.points[number],))

    @property
    def points(self) -> list[str]:
        """The points of all starts of all settings."""
        return [point for one in self.settings for point in one.points]

    def left(self, rows: Rows) -> tuple[ServiceTask, ...]:
        """Return what it may still choose from; nothing where it is over."""
        if self.next(rows)[1] is None:
            return ()
        services: dict[str, list[str]] = {}
        for one in self.settings:
            for point, service in zip(one.points, one.services, strict=True):
                if point not in rows:
                    services.setdefault(service, []).append(point)
        return tuple(ServiceTask(name, tuple(points)) for name, points in services.items())

    def hopeless(self, rows: Rows, point: str, figures: Mapping[str, Any], windows: int) -> bool:
        """Return whether a start needs no further window, after the figures of so many."""
        place, start = next((k, one.points.index(point)) for k, one in enumerate(self.settings) if point in one.points)
        row = {**figures, "valid": True, "windows": windows}
        now = shown(self.goal, place, start, row, windows)
        return hopeless(self.space, [*self.shown(rows), now], place)

    def begun(self, points: Collection[str]) -> dict[str, Any]:
        """Return the plan (the form of plan.json) of these points alone."""
        services = [
            {**one, "points": kept}
            for one in self.plan["services"]
            if (kept := [p for p in one["points"] if p in points])
        ]
        names = [one["service"] for one in services]
        seconds = sum(one["predicted_s"] or 0 for one in services)
        allocations = [
            {**one, "services": names, "predicted_s": seconds, "node_hours": round(one["nodes"] * seconds / 3600, 3)}
            for one in self.plan["allocations"][:1]
        ]
        kept = [one for one in self.plan["points"] if one["point"] in points]
        return {**self.plan, "points": kept, "services": services, "allocations": allocations}


def shown(
    goal: Goal, candidate: int, start: int, row: Mapping[str, Any], windows: int, *, shared: bool = False
) -> Shown:
    """Return what a row tells the search; of a start that failed, that this setting does not run.

    For a limit the 99th percentile stands, which `bench.slo` is about, or of too few requests for one the 90th, or
    the mean; for the goal the mean. What all its requests say of them together (`slo_kept`) is surer than these.
    `windows`: of a row that does not tell how many it holds. `shared`: its start is
    counted with another row.
    """
    count, hours = int(row.get("windows") or windows), hours_of(row, shared=shared)
    if not row["valid"] or row.get("saturated"):
        # A rank that failed is named first; of what was ready, any other reason is one of the measurement.
        ready = row.get("load_s") is not None and not str(row.get("invalid_reason")).startswith("rank ")
        return Shown(candidate, start, {}, count, hours, None, shared, spoilt=ready and not row.get("saturated"))
    limited, scatter = {name for name, _ in goal.limits}, window_scatter(row, COLUMNS[goal.figure][0])
    found: dict[str, float] = {}
    for name, (column, unit) in COLUMNS.items():
        own = name in limited and name != goal.figure
        asked = (Slo.column(LIMITS[name]), f"{LIMITS[name]}_p90", column) if own else (column,)
        values = (row.get(one) for one in asked)
        if value := next((one for one in values if is_figure(one) and one > 0), None):
            found[name] = value / unit
    if row.get("slo_kept") is True:  # all its requests tell, and a percentile of some may lie beyond its limit
        found |= {
            name: min(found[name], KEPT * limit) for name, limit in goal.limits if name in found and name != goal.figure
        }
    told, broke = goal.figure in found, row.get("slo_kept") is False
    return Shown(candidate, start, found if told else {}, count, hours, scatter, shared, spoilt=not told, broke=broke)


KEPT = 0.95
"""Of a limit: what a row that keeps it is taken for at most, so that it is believed to."""


def is_figure(value: object) -> TypeGuard[float]:
    """Return whether a value of a row is a number that can be reckoned with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def hours_of(row: Mapping[str, Any], *, shared: bool) -> float | None:
    """Return the node-hours that a row has cost: none where another sweep measured it; None: it does not tell."""
    if row.get("reused_from"):
        return 0.0
    if not all(is_figure(row.get(name)) and row[name] >= 0 for name in ("load_s", "measure_s", "nodes")):
        return None
    parts = ("warmup_s", "measure_s", *(() if shared else ("stage_s", "load_s", "teardown_s")))
    seconds = sum(row.get(name) or 0.0 for name in parts)
    return float(row["nodes"] * seconds / 3600)


def read_search(sweep: SweepDir) -> Search:
    """Read the question of a search. Raises RunError where it cannot be read."""
    return load_form(sweep.search, Search)
