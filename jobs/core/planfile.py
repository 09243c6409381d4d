"""plan.json as it is read: what a sweep was submitted as. jobs/sweep/record.py writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.core.errors import RunError
from jobs.core.files import read_json
from jobs.core.rundir import SweepDir


@dataclass(frozen=True)
class PlannedPoint:
    """A point as planned. `values`: of the swept keys."""

    point: str
    service: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedService:
    """A service as planned, its points in the order of measuring.

    `seen`: what the launching host saw of driver, image and checkpoint; empty before the sweep was started.
    """

    service: str
    points: tuple[str, ...]
    engine: str | None
    release: str | None
    seen: Mapping[str, Any]


@dataclass(frozen=True)
class PlanFile:
    """The content of plan.json. `data`: all of it, with predictions and the exact commands of every rank."""

    points: tuple[PlannedPoint, ...]
    services: tuple[PlannedService, ...]
    swept: tuple[str, ...]
    data: Mapping[str, Any]


def read_plan(sweep: SweepDir) -> PlanFile:
    """Read the plan of a sweep.

    Raises:
        RunError: it is missing, or is no plan.
    """
    data = read_json(sweep.plan)
    try:
        points = tuple(PlannedPoint(one["point"], one["service"], one["values"]) for one in data["points"])
        services = tuple(
            PlannedService(
                one["service"], tuple(one["points"]), one.get("engine"), one.get("release"), one.get("seen", {})
            )
            for one in data["services"]
        )
        return PlanFile(points, services, tuple(data["swept"]), data)
    except (KeyError, TypeError, AttributeError):
        remedy = "Give the directory of a sweep, runs/<sweep>."
        raise RunError(str(sweep.plan), "(read)", "it is not a plan", remedy) from None
