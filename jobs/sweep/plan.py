"""Points to services to allocations: fewest engine starts, within time limit and budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from jobs.allocation.node.container import UNKNOWN, Words
from jobs.cluster.time_limit import limit_seconds
from jobs.core.config import Config
from jobs.core.layout import local_sizes
from jobs.core.tasks import ServiceTask
from jobs.engines.base import Finding
from jobs.forecast.history import Forecast
from jobs.sweep.check import Shared, shared
from jobs.sweep.grouping import Dropped, Service, group, refusals, unknown, warnings, within_budget
from jobs.sweep.points import Point


@dataclass(frozen=True)
class Allocation:
    """One Slurm job and the services that it runs one after the other."""

    services: tuple[str, ...]
    nodes: int
    seconds: float

    @property
    def node_hours(self) -> float:
        """Predicted use, in node-hours."""
        return self.nodes * self.seconds / 3600


@dataclass(frozen=True)
class Plan:
    """What one sweep will do.

    Attributes:
        refused: points that get a row with this reason and are not run, since they cannot fit
            (`launch.infeasible=drop`).
        dropped: points that get no row (`launch.budget_node_hours`).
        warnings: what will be measured, or may fail, and is perhaps not meant.
    """

    points: tuple[Point, ...]
    services: tuple[Service, ...]
    allocations: tuple[Allocation, ...]
    swept: tuple[str, ...]
    asked: tuple[str, ...] = ()
    """The point of every override list, in their order: two lists may ask for the same point."""
    refused: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    warnings: tuple[str, ...] = ()
    findings: tuple[Shared, ...] = ()
    """What is risky with the points, each once."""
    words: Words = UNKNOWN
    """What words in braces stand for in the commands of its containers."""

    def points_of(self, service: str) -> tuple[Point, ...]:
        """Return the points of one service in the order of measuring."""
        return self._points_of[service]

    @cached_property
    def _points_of(self) -> Mapping[str, tuple[Point, ...]]:
        by_id = {point.point: point for point in self.points}
        return {service.service: tuple(by_id[name] for name in service.points) for service in self.services}


def make_plan(
    asked: Sequence[Point],
    findings: Mapping[str, tuple[Finding, ...]],
    forecast_of: Callable[[Config], Forecast] = unknown,
    words: Words = UNKNOWN,
) -> Plan:
    """Group points into services and services into allocations.

    Args:
        asked: what is asked for, and may be one sweep (jobs/sweep/check.py).
        findings: what is risky with each point, by its id.
        forecast_of: says what is known of a service before it starts; asked once for each.
        words: what is known of the user whose plan it is.

    Raises:
        ConfigError: a service that cannot fit (`launch.infeasible=fail`), a budget for nothing.
    """
    points: dict[str, Point] = {}
    for point in asked:
        points.setdefault(point.point, point)
    launch = asked[0].config.launch
    grouped = group(tuple(points.values()), forecast_of)
    refused: dict[str, str] = {}
    if launch.infeasible != "keep":
        refused = refusals(grouped, fail=launch.infeasible == "fail")
    feasible = tuple(service for service in grouped if service.points[0] not in refused)
    services, dropped = within_budget(feasible, points, launch.budget_node_hours)
    gone = {one.point.point for one in dropped}
    left = tuple(point for point in points.values() if point.point not in gone)
    return Plan(
        points=left,
        services=services,
        allocations=pack(services),
        swept=tuple(asked[0].values),
        asked=tuple(point.point for point in asked),
        refused=refused,
        dropped=dropped,
        warnings=warnings(services, points),
        findings=shared(findings[point.point] for point in left),
        words=words,
    )


def pack(services: Sequence[Service]) -> tuple[Allocation, ...]:
    """Pack services, in order, into as few allocations as time limit, number of nodes and network interface allow."""
    allocations: list[Allocation] = []
    interface: str | None = None
    for service in services:
        nodes = len(local_sizes(service.config))
        limit = limit_seconds(service.config.cluster.time_limit)
        last = allocations[-1] if allocations and interface == service.config.hccl.socket_ifname else None
        interface = service.config.hccl.socket_ifname
        if last and last.nodes == nodes and (limit is None or last.seconds + service.seconds <= limit):
            allocations[-1] = Allocation((*last.services, service.service), nodes, last.seconds + service.seconds)
        else:
            allocations.append(Allocation((service.service,), nodes, service.seconds))
    return tuple(allocations)


def together(allocations: tuple[Allocation, ...]) -> tuple[Allocation, ...]:
    """Where nothing queues, one allocation runs all services, with as many ranks as the largest needs."""
    if not allocations:
        return ()
    nodes = max(allocation.nodes for allocation in allocations)
    services = tuple(name for allocation in allocations for name in allocation.services)
    return (Allocation(services, nodes, sum(allocation.seconds for allocation in allocations)),)


def tasks_of(made: Plan, allocation: Allocation) -> list[ServiceTask]:
    """Return what one allocation has to do, in order."""
    return [ServiceTask(name, tuple(point.point for point in made.points_of(name))) for name in allocation.services]
