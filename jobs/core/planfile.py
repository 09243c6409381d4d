"""plan.json as it is read: what a sweep was submitted as. jobs/sweep/record.py writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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

    def text(self, *, load: bool) -> str:
        """Return the swept values of its load, or of its service."""
        return " ".join(f"{key}={value}" for key, value in self.values.items() if key.startswith("bench.") == load)


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
        return next((one.text(load=False) for one in self.points if one.service == service), "")


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
