"""Finish a sweep: finished points are never run again, failed ones only if asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jobs.allocation import submission
from jobs.allocation.node import fingerprint
from jobs.cluster.base import ENDED, Request, job_state, scheduler
from jobs.cluster.sick_nodes import proposal
from jobs.core.errors import RunError
from jobs.core.files import write_bytes
from jobs.core.foreign import load_bytes
from jobs.core.lock import exclusive
from jobs.core.planfile import read_plan
from jobs.core.rundir import SweepDir
from jobs.core.tasks import ServiceTask, read_config
from jobs.forecast.duration import load_seconds, measure_seconds
from jobs.forecast.search import read_search
from jobs.results.fingerprint import Fingerprint
from jobs.results.row import check_version, is_finished, row_of
from jobs.sweep.grouping import Service
from jobs.sweep.plan import Allocation, pack, together
from jobs.sweep.reuse import launch_view


def unfinished(sweep: SweepDir, *, retry_failed: bool) -> list[Service]:
    """Return what is left to do, by service, in the order of the plan: stale rows too (jobs/sweep/reuse.py)."""
    left = []
    views = launch_view(sweep)
    for item in _asked(sweep, retry_failed=retry_failed):
        then = views.get(item.service, Fingerprint())
        now = fingerprint.of_this_host(read_config(sweep, item.points[0]))  # the same for all points of a service
        points = tuple(p for p in item.points if not _done(sweep, p, then, now, retry_failed=retry_failed))
        if points:
            configs = [read_config(sweep, point) for point in points]
            seconds = load_seconds(configs[0]) + sum(measure_seconds(config) for config in configs)
            left.append(Service(item.service, points, configs[0], seconds))
    return left


def _asked(sweep: SweepDir, *, retry_failed: bool) -> Iterator[ServiceTask]:
    """The services of a sweep; of a search all that it may still choose from, none where it is over."""
    if not sweep.search.exists():
        yield from (ServiceTask(item.service, item.points) for item in read_plan(sweep).services)
        return
    search, rows = read_search(sweep), dict[str, Mapping[str, Any]]()
    for point in search.points:
        if (row := _row(sweep, point)) and is_finished(row, retry_failed=retry_failed):
            rows[point] = row
    yield from search.left(rows)


def check_begun(sweep: SweepDir) -> None:
    """Look whether a sweep was written whole. RunError: its launcher ended before that."""
    if missing := [one.point for one in read_plan(sweep).points if not sweep.point(one.point).config.exists()]:
        reason = f"it was never begun: its launcher ended before it had written point {missing[0]}"
        raise RunError("RUN", sweep.path, reason, "Start the sweep again, and remove this directory.")


def _done(sweep: SweepDir, point: str, then: Fingerprint, now: Fingerprint, *, retry_failed: bool) -> bool:
    row = _row(sweep, point)
    if row is None or not is_finished(row, retry_failed=retry_failed):
        return False
    return not (row["valid"] and now.trusted(then, row).changes(row))


@contextlib.contextmanager
def alone(sweep: SweepDir, tell: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold a sweep while it is written or submitted: whoever comes meanwhile waits, and is told for whom."""
    with exclusive(sweep.resuming, lambda who: tell(f"waiting: {who} is submitting {sweep.path}"), required=False):
        yield


def resume(sweep: SweepDir, *, retry_failed: bool, tell: Callable[[str], None] = lambda _: None) -> int:
    """Submit what is left of a sweep as new allocations. Returns the number of points that will be run.

    Of two calls at once the second waits, and then finds the allocations of the first; so does one beside the sweep's
    launcher. `tell`: for whom, and what is known against the nodes.

    Raises:
        RunError: an allocation of the sweep is still queued or running, an older version wrote its rows, or the cluster
            refused the new one; the sweep is another user's, whose configs would be run.
        ConfigError: the shell would move the ranks into a container.
    """
    sweep.check_owner("resume it")
    with alone(sweep, tell):
        check_begun(sweep)
        for line in proposal(read_config(sweep, read_plan(sweep).points[0].point), sweep.root):
            tell(f"note: {line}")
        return submit_left(sweep, retry_failed=retry_failed)


def submit_left(sweep: SweepDir, *, retry_failed: bool) -> int:
    """Do what `resume` does to a sweep that is ours alone meanwhile. Raises: see there."""
    for folder in sweep.allocations():
        state = job_state(folder)
        if state not in ENDED:
            remedy = f"Follow it (python -m jobs follow {sweep.path}), or cancel it first."
            raise RunError("RUN", sweep.path, f"allocation {folder.index} is {state.lower()}", remedy)
    left = unfinished(sweep, retry_failed=retry_failed)
    allocations = _allocations(sweep, left)
    if left:  # before any row goes
        config = left[0].config
        scheduler(config.cluster.kind).check(Request(config, max(one.nodes for one in allocations)))
    by_name = {service.service: service for service in left}
    index = sweep.next_allocation()
    for number, allocation in enumerate(allocations):
        tasks = [ServiceTask(name, by_name[name].points) for name in allocation.services]
        attempt = sweep.next_attempt(allocation.services)
        request = Request(by_name[allocation.services[0]].config, allocation.nodes)
        with _without_rows(sweep, [point for task in tasks for point in task.points]):
            submission.submit_allocation(sweep, index + number, attempt, tasks, request)
    return sum(len(service.points) for service in left)


@contextlib.contextmanager
def _without_rows(sweep: SweepDir, points: Sequence[str]) -> Iterator[None]:
    """Take the rows of points away; where what follows fails, they are there again."""
    rows = {path: load_bytes(path) for point in points if (path := sweep.point(point).row).is_file()}
    for path in rows:
        path.unlink()
    try:
        yield
    except BaseException:
        for path, content in rows.items():
            write_bytes(path, content)
        raise


def _allocations(sweep: SweepDir, left: list[Service]) -> tuple[Allocation, ...]:
    packed = pack(left)
    apart = left and scheduler(left[0].config.cluster.kind).queues and not sweep.search.exists()
    return packed if apart else together(packed)


def _row(sweep: SweepDir, point: str) -> Mapping[str, Any] | None:
    if row := row_of(sweep, point):
        check_version(row, sweep)
    return row
