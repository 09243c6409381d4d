"""Finish a sweep: finished points are never run again, failed ones only if asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.allocation import submission
from jobs.allocation.node import fingerprint
from jobs.cluster.base import ENDED, Request, job_state, scheduler
from jobs.core.errors import RunError
from jobs.core.files import read_json
from jobs.core.planfile import read_plan
from jobs.core.rundir import SweepDir
from jobs.core.tasks import ServiceTask, read_config
from jobs.forecast.duration import load_seconds, measure_seconds
from jobs.results.fingerprint import Fingerprint
from jobs.results.row import is_finished
from jobs.sweep.grouping import Service
from jobs.sweep.plan import Allocation, pack
from jobs.sweep.reuse import launch_view


def unfinished(sweep: SweepDir, *, retry_failed: bool) -> list[Service]:
    """Return what is left to do, by service, in the order of the plan: stale rows too (jobs/sweep/reuse.py)."""
    left = []
    views = launch_view(sweep)
    for item in read_plan(sweep).services:
        then = views.get(item.service, Fingerprint())
        now = fingerprint.of_this_host(read_config(sweep, item.points[0]))  # the same for all points of a service
        points = tuple(p for p in item.points if not _done(sweep, p, then, now, retry_failed=retry_failed))
        if points:
            configs = [read_config(sweep, point) for point in points]
            seconds = load_seconds(configs[0]) + sum(measure_seconds(config) for config in configs)
            left.append(Service(item.service, points, configs[0], seconds))
    return left


def _done(sweep: SweepDir, point: str, then: Fingerprint, now: Fingerprint, *, retry_failed: bool) -> bool:
    row = _row(sweep, point)
    if row is None or not is_finished(row, retry_failed=retry_failed):
        return False
    return not (row["valid"] and now.trusted(then, row).changes(row))


def resume(sweep: SweepDir, *, retry_failed: bool) -> int:
    """Submit what is left of a sweep as new allocations. Returns the number of points that will be run.

    Raises:
        RunError: an allocation of the sweep is still queued or running, or the cluster refused the new one.
        ConfigError: the shell would move the ranks into a container.
    """
    for folder in sweep.allocations():
        state = job_state(folder)
        if state not in ENDED:
            remedy = f"Follow it (python -m jobs follow {sweep.path}), or cancel it first."
            raise RunError("RUN", sweep.path, f"allocation {folder.index} is {state.lower()}", remedy)
    left = unfinished(sweep, retry_failed=retry_failed)
    allocations = _allocations(left)
    if left:  # before any row goes
        config = left[0].config
        scheduler(config.cluster.kind).check(Request(config, max(one.nodes for one in allocations)))
    by_name = {service.service: service for service in left}
    index = max((folder.index for folder in sweep.allocations()), default=-1) + 1
    for number, allocation in enumerate(allocations):
        tasks = [ServiceTask(name, by_name[name].points) for name in allocation.services]
        attempt = sweep.next_attempt(allocation.services)
        for task in tasks:
            for point in task.points:
                sweep.point(point).row.unlink(missing_ok=True)
        request = Request(by_name[allocation.services[0]].config, allocation.nodes)
        submission.submit_allocation(sweep, index + number, attempt, tasks, request)
    return sum(len(service.points) for service in left)


def _allocations(left: list[Service]) -> tuple[Allocation, ...]:
    packed = pack(left)
    return packed if left and scheduler(left[0].config.cluster.kind).queues else together(packed)


def together(allocations: tuple[Allocation, ...]) -> tuple[Allocation, ...]:
    """Where nothing queues, one allocation runs all services, with as many ranks as the largest needs."""
    if not allocations:
        return ()
    nodes = max(allocation.nodes for allocation in allocations)
    services = tuple(name for allocation in allocations for name in allocation.services)
    return (Allocation(services, nodes, sum(allocation.seconds for allocation in allocations)),)


def _row(sweep: SweepDir, point: str) -> Mapping[str, Any] | None:
    path = sweep.point(point).row
    return dict(read_json(path)) if path.exists() else None
