"""Points to services: what shares an engine start, in which order, what cannot fit, what the budget leaves. Pure.

Services that may fail come first: of one model path, the largest demand on memory leads. One path follows the other,
so that its weights stay in the page cache; loads inside a service go from low to high. Further starts of settings come
after the first one of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.layout import local_sizes
from jobs.engines.ascend import utilization
from jobs.forecast.duration import Phases, measure_seconds, never_fits, phases
from jobs.forecast.history import Forecast
from jobs.forecast.memory import DOES_NOT_FIT, Fit, queueing
from jobs.sweep.points import Point
from jobs.sweep.services_text import which


@dataclass(frozen=True)
class Service:
    """One start of the engine and the points it serves, in the order of measuring."""

    service: str
    points: tuple[str, ...]
    config: Config
    seconds: float
    phases: Phases | None = None
    forecast: Forecast | None = None


@dataclass(frozen=True)
class Dropped:
    """A point that was asked for and goes, because the budget does not reach for it."""

    point: Point
    reason: str


def unknown(config: Config) -> Forecast:
    """Return that nothing is known of a service: no sum of its memory, no earlier run."""
    parallel = config.parallel
    share = utilization(config.engine.release, parallel.gpu_memory_utilization)
    return Forecast(Fit(parallel.max_model_len, share, None, "nobody looked"))


def group(points: Sequence[Point], forecast_of: Callable[[Config], Forecast]) -> tuple[Service, ...]:
    """Group points by their service; inside a service from low to high load."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.service, []).append(point)
    services = []
    for name, members in groups.items():
        ordered = sorted(members, key=lambda p: (p.config.bench.concurrency or 0, p.config.bench.request_rate or 0))
        forecast = forecast_of(ordered[0].config)
        spent = phases([point.config for point in ordered], forecast.past)
        ids = tuple(point.point for point in ordered)
        services.append(Service(name, ids, ordered[0].config, spent.total, spent, forecast))
    return _in_order(services)


def _in_order(services: Sequence[Service]) -> tuple[Service, ...]:
    """Order services: those that can share an allocation, then those of one path, then the largest demand first.

    Where settings are started more than once, all are started before any is again, and every second round goes the
    other way (A B, B A, A B): what changes over hours meets all of them alike.
    """

    def demand(service: Service) -> tuple[float, int]:
        fit = service.forecast.fit if service.forecast else None
        return (-(fit.lacks_bytes if fit else 0.0), -service.config.parallel.max_model_len)

    first: dict[tuple[Any, ...], int] = {}
    starts: Counter[tuple[Any, ...]] = Counter()
    settings: dict[tuple[Any, ...], int] = {}
    keys: list[tuple[tuple[int, ...], Service]] = []
    for service in sorted(services, key=demand):  # a stable sort: the order of asking decides between equals
        shared = (len(local_sizes(service.config)), service.config.hccl.socket_ifname)
        path = (*shared, service.config.model.path)
        setting = (*path, repr(replace(service.config.service, parallel=replace(service.config.parallel, seed=None))))
        place, starts[setting] = starts[setting], starts[setting] + 1
        number = settings.setdefault(setting, len(settings))
        floors = (first.setdefault(shared, len(first)), first.setdefault(path, len(first)))
        keys.append(((*floors, place, -number if place % 2 else number), service))
    return tuple(service for _, service in sorted(keys, key=lambda key: key[0]))


def refusals(services: Sequence[Service], *, fail: bool) -> dict[str, str]:
    """Return the points that cannot fit and why, or raise ConfigError for them."""
    found = [(s, refusal) for s in services if s.forecast and (refusal := s.forecast.fit.refusal)]
    if found and fail:
        service, reason = found[0]
        others = f" (and {len(found) - 1} more services like it)" if len(found) > 1 else ""
        key, value = "parallel.max_model_len", service.config.parallel.max_model_len
        remedy = (
            "Lower it, raise parallel.gpu_memory_utilization or lower hccl.buffsize (python -m jobs memory shows the"
            " sum); launch.infeasible=drop leaves such points out, keep runs them."
        )
        raise ConfigError(key, value, f"the engine would not start: {reason}{others}", remedy)
    return {point: DOES_NOT_FIT + reason for service, reason in found for point in service.points}


def within_budget(
    services: tuple[Service, ...], points: Mapping[str, Point], limit: float | None
) -> tuple[tuple[Service, ...], tuple[Dropped, ...]]:
    """Return what is left of the services, and the points that the budget does not reach."""
    if limit is None:
        return services, ()
    nodes = {service.service: len(local_sizes(service.config)) for service in services}
    starts = []
    for service in services:
        hours = {p: nodes[service.service] * measure_seconds(points[p].config) / 3600 for p in service.points}
        fixed = nodes[service.service] * service.seconds / 3600 - sum(hours.values())
        starts.append(Start(service.points, fixed, hours))
    position = {point: index for index, point in enumerate(points)}
    gone = over_budget(starts, position, limit)
    left = []
    for service in services:
        if kept := tuple(point for point in service.points if point not in gone):
            past = service.forecast.past if service.forecast else None
            spent = phases([points[point].config for point in kept], past)
            left.append(replace(service, points=kept, config=points[kept[0]].config, seconds=spent.total, phases=spent))
    if services and not left:
        least = min(start.fixed + min(start.each.values()) for start in starts)
        reason = f"the cheapest point alone needs about {least:.3g} node-hours"
        raise ConfigError("launch.budget_node_hours", limit, reason, "Raise it, or shorten bench.window_s.")
    return tuple(left), tuple(Dropped(points[point], reason) for point, reason in gone.items())


def warnings(services: Sequence[Service], points: Mapping[str, Point]) -> tuple[str, ...]:
    """Return what may fail or queue, each once, with how often it was found."""
    places = {name: place for place, name in enumerate(points)}
    found: dict[str, dict[int, str]] = {}
    for service in services:
        all_of_it = {places[point]: "" for point in service.points}
        if service.phases and (short := never_fits(points[service.points[0]].config, service.phases.load)):
            found.setdefault(short, {}).update(all_of_it)
        if not (forecast := service.forecast):
            continue
        fit = forecast.fit
        if forecast.ignored:
            found.setdefault(forecast.ignored, {}).update(all_of_it)
        if doubt := fit.doubt or (fit.refusal and f"will not start: {fit.refusal}"):
            found.setdefault(f"max_model_len {service.config.parallel.max_model_len} {doubt}", {}).update(all_of_it)
        for point in service.points:
            config = points[point].config
            if over := queueing(config, fit):
                loads = found.setdefault(
                    f"only {over.capacity} requests run at once ({over.cause}): the rest queues or is preempted,"
                    " which TTFT will hold",
                    {},
                )
                loads |= all_of_it | loads
                loads[places[point]] = str(config.bench.concurrency)
    overrides = [point.overrides for point in points.values()]
    named = (
        (which(loads, overrides), text, ",".join(dict.fromkeys(filter(None, loads.values()))))
        for text, loads in found.items()
    )
    return tuple(
        (f"{name}: " if name else "") + text + (f" (bench.concurrency={loads})" if loads else "")
        for name, text, loads in named
    )


# --- the budget
#
# The least informative points go first, and of equally informative ones the one that was asked for last:
#     1. loads between the lowest and the highest of a service: the curve keeps both its ends;
#     2. of two loads left in a service, the one that was asked for last: each service keeps one point;
#     3. the last point of a service, and with it its engine start.
# What went last comes back first if the budget still has room for it.

REASONS = (
    "its load lies between two others of its service",
    "another load of its service remains",
    "its service was asked for last",
)


@dataclass(frozen=True)
class Start:
    """One engine start and its points; costs in node-hours.

    Attributes:
        points: from low to high load.
        fixed: load and teardown, paid once.
        each: cost of every point.
    """

    points: tuple[str, ...]
    fixed: float
    each: Mapping[str, float]

    def cost(self, gone: Mapping[str, str]) -> float:
        """Return the cost without the points that are gone; nothing where none is left."""
        left = [self.each[point] for point in self.points if point not in gone]
        return self.fixed + sum(left) if left else 0.0


def over_budget(starts: Sequence[Start], asked: Mapping[str, int], budget: float) -> dict[str, str]:
    """Return the points that go and why, in the order of going; none where the plan is within its budget.

    `asked`: position of each point in the order of asking. `budget`: node-hours, never exceeded by what stays.
    """
    gone: dict[str, str] = {}
    order = sorted((rank, -asked[point], point, n) for n, s in enumerate(starts) for point, rank in _ranks(s, asked))
    left = [len(start.points) for start in starts]
    total = sum(start.cost(gone) for start in starts)
    for rank, _, point, number in order:
        if total <= budget:
            break
        gone[point] = REASONS[rank]
        left[number] -= 1
        total -= starts[number].each[point] + (0.0 if left[number] else starts[number].fixed)
        if total <= budget:  # the running sum may be off by its rounding
            total = sum(start.cost(gone) for start in starts)
    number_of = {point: number for number, start in enumerate(starts) for point in start.points}
    for point in reversed(list(gone)):
        number = number_of[point]
        more = starts[number].each[point] + (0.0 if left[number] else starts[number].fixed)
        if total + more <= budget - 1e-9:
            total += more
            left[number] += 1
            del gone[point]
    return gone


def _ranks(start: Start, asked: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return every point with its rank: the lower, the earlier it goes."""
    if len(start.points) == 1:
        return [(start.points[0], 2)]
    low, high = start.points[0], start.points[-1]
    first, second = sorted((low, high), key=lambda point: -asked[point])
    return [(point, 0) for point in start.points[1:-1]] + [(first, 1), (second, 2)]
