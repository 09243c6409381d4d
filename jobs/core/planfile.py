"""plan.json as it is read: what a sweep was submitted as. jobs/sweep/record.py writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from jobs.core.fields import override_parts
from jobs.core.foreign import checked, load_visible, refused
from jobs.core.records import Number
from jobs.core.rundir import AllocationDir, SweepDir
from jobs.core.tasks import Identity, ServiceTask, read_task


@dataclass(frozen=True)
class PlannedPoint:
    """A point as planned. `values`: of the swept keys."""

    point: Identity
    service: Identity
    values: Mapping[str, Any]
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedService:
    """A service as planned, its points in the order of measuring.

    `seen`: what the launching host saw of driver, image and checkpoint; empty before the sweep was started.
    """

    service: Identity
    points: tuple[Identity, ...]
    engine: str | None = None
    release: str | None = None
    seen: Mapping[str, str | None] = field(default_factory=dict)
    predicted_s: Number | None = None


@dataclass(frozen=True)
class PlannedAllocation:
    """An allocation as planned."""

    node_hours: Number | None = None


@dataclass(frozen=True)
class PlanFile:
    """The content of plan.json. `data`: all of it, with predictions and the exact commands of every rank."""

    points: tuple[PlannedPoint, ...]
    services: tuple[PlannedService, ...]
    swept: tuple[str, ...]
    allocations: tuple[PlannedAllocation, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, service: str) -> str:
        """Return the swept values of a service, those of its loads apart."""
        return next((self.text(one, load=False) for one in self.points if one.service == service), "")

    def text(self, point: PlannedPoint, *, load: bool) -> str:
        """Return the swept values of a point's load, or of its service."""
        keys = (key for key in self.swept if key.startswith("bench.") == load)
        return in_words(keys, point.values, self.presets.get(point.point, {}))

    @cached_property
    def presets(self) -> Mapping[str, Mapping[str, str]]:
        """By point, for each swept key that nobody typed, the override that chose its value (`parallel=dp2_tp8`)."""
        chosen = {one.point: dict(map(_key_and_word, one.overrides)) for one in self.points}
        typed = dict.fromkeys(chain.from_iterable(chosen.values()))
        groups = [name for name in typed if "." not in name]
        found: dict[str, dict[str, str]] = {point: {} for point in chosen}
        for key in (key for key in self.swept if key not in typed):
            for group in groups:
                said = {(chosen[one.point].get(group, ""), str(one.values.get(key))) for one in self.points}
                if len({word for word, _ in said}) == len(said) > 1:  # each preset has one value of the key
                    for point, words in chosen.items():
                        found[point][key] = words.get(group, "")
                    break
        return found


def in_words(keys: Iterable[str], values: Mapping[str, Any], told: Mapping[str, str]) -> str:
    """Return keys with their values in one line; `told`: what some are told by (`PlanFile.presets`), each once."""
    return " ".join(dict.fromkeys(told.get(key) or f"{key}={values[key]}" for key in keys))


def _key_and_word(override: str) -> tuple[str, str]:
    key, value = override_parts(override)
    word = f"{key}={value}" if "=" in override else key
    return key, word.replace("\\:", ":")  # Hydra's own escape


def read_plan(sweep: SweepDir) -> PlanFile:
    """Read the plan of a sweep. RunError: it is missing, or is no plan."""
    data = load_visible(sweep.plan)
    plan = checked(sweep.plan, PlanFile, data)
    swept = set(plan.swept)
    if any(not swept <= point.values.keys() for point in plan.points):
        raise refused(sweep.plan, "it is not a plan: a point has no value of a swept key")
    return replace(plan, data=data)


def begun_services(folder: AllocationDir) -> tuple[ServiceTask, ...]:
    """Return what an allocation runs; of a search what it has begun, which is what its plan holds.

    Raises:
        RunError: its record cannot be read.
    """
    work = read_task(folder)
    if not folder.sweep.search.exists():
        return work.services
    begun = {one.point for one in read_plan(folder.sweep).points}
    found = [ServiceTask(one.service, tuple(p for p in one.points if p in begun)) for one in work.services]
    return tuple(one for one in found if one.points)
