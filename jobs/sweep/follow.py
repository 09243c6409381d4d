"""Follow a sweep by its files until its table is there. Ending this never ends the sweep."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jobs.cluster.base import ENDED, job_state, queue_words, read_job, scheduler
from jobs.cluster.squeue import may_never_start
from jobs.core import chinese, hidden
from jobs.core.planfile import PlanFile, begun_services, read_plan
from jobs.core.rundir import AllocationDir, SweepDir
from jobs.core.tasks import read_outcome
from jobs.results.row import write_rows
from jobs.results.table import write_table
from jobs.sweep.lost import job_id, lost_rows, states
from jobs.sweep.status import phase

POLL_S = 0.5
"""Files are looked at this often; the cluster is asked as often as its back end says."""

SETTLE_S = 10.0
"""A job may leave the queue before its last files are seen on this host."""


@dataclass
class _Allocation:
    """What is known of one allocation."""

    folder: AllocationDir
    state: str = "UNKNOWN"
    asked: float = 0.0
    gone_since: float | None = None
    told: set[str] = field(default_factory=set)
    queue: dict[str, str] = field(default_factory=dict)
    """Why the job waits, and when it is expected to start, while it waits."""

    def look(self, now: float) -> None:
        job = read_job(self.folder)
        if now - self.asked >= (scheduler(job.kind).poll_s if job else POLL_S):
            self.state, self.asked = job_state(self.folder), now
            self.queue = queue_words(self.folder) if self.state == "PENDING" else {}
        if self.state not in ENDED:
            self.gone_since = None
        elif self.gone_since is None:
            self.gone_since = now

    def done(self, now: float) -> bool:
        """Whether it will change no more: its outcome is there, or its job is gone for a while."""
        if outcome := read_outcome(self.folder):
            return self.state in ENDED and outcome.resubmitted is None
        return self.gone_since is not None and now - self.gone_since >= SETTLE_S


def follow(
    sweep: SweepDir, out: Console, *, bar: bool | None = None, until: Callable[[], bool] = lambda: False
) -> bool:
    """Show progress until every allocation has ended, then complete the table. Returns whether every row is valid.

    On a terminal it is a progress bar (`bar` forces it on or off), else one line for each news. `until` is asked again
    and again; true ends this early, with the table as it is.
    """
    known: dict[AllocationDir, _Allocation] = {}
    plan = read_plan(sweep)
    with_bar = out.is_terminal if bar is None else bar
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=out, transient=True, disable=not with_bar)
    with progress:
        task = progress.add_task("")
        tell = progress.console.print if with_bar else out.print
        while True:
            now = time.monotonic()
            # A resubmitted allocation is a new attempt: its directory takes the place of the one before.
            allocations = [known.setdefault(folder, _Allocation(folder)) for folder in sweep.allocations()]
            if sweep.search.exists():
                plan = read_plan(sweep)  # it grows
            for allocation in allocations:
                allocation.look(now)
                _tell(allocation, plan, tell)
            progress.update(
                task,
                total=len(plan.points),
                completed=sum(sweep.point(one.point).row.exists() for one in plan.points),
                description=hidden.visible(chinese.printed(_headline(allocations))),
            )
            if until():
                return False
            if all(allocation.done(now) for allocation in allocations):
                break
            time.sleep(POLL_S)
    lost = {point: row for one in allocations for point, row in lost_rows(one.folder, one.state).items()}
    if sweep.writable:
        for one in allocations:
            one.folder.free_reserve()  # a rank 0 that was killed could not
        write_rows(sweep, lost.values())
    return bool(write_table(sweep, lost)["valid"].all())


def _headline(allocations: list[_Allocation]) -> str:
    if not allocations:
        return "every row is there already"
    current = next((a for a in allocations if a.state not in ENDED), allocations[-1])
    doing = f"({current.queue['reason']})" if current.queue.get("reason") else phase(current.folder)
    return f"allocation {current.folder.path.parent.name}: {current.state.lower()} {doing}"


def _tell(allocation: _Allocation, plan: PlanFile, tell: Callable[[str], None]) -> None:
    """Say what is new, once: the job's state, what each service and point is, each state of the head, each row."""
    loads = {one.point: plan.text(one, load=True) for one in plan.points}
    folder = allocation.folder
    index = folder.path.parent.name
    news = [f"allocation {index}: job {job_id(folder)} is {allocation.state.lower()}"]
    reason, starts = (allocation.queue.get(key) for key in ("reason", "starts"))
    if reason:
        news.append(f"allocation {index}: job {job_id(folder)} waits: {reason}")
        if may_never_start(reason):
            remedy = "see the partition's limits (scontrol show partition) and what `cluster` asks for"
            news.append(f"warning: allocation {index}: {reason} does not pass by itself: {remedy}, or cancel the sweep")
    if starts and "starts" not in allocation.told:  # Slurm's estimate changes with every other job
        tell(f"allocation {index}: expected to start at {starts}")
        allocation.told.add("starts")
    for service in begun_services(folder):
        known = states(folder, service.service)
        if known and (setting := plan.setting(service.service)):
            news.append(f"service {service.service}: {setting}")
        for entry in known:
            text = f"service {service.service}: {entry['state']}"
            if point := entry.get("point"):
                text += f" (point {point}{' ' if loads.get(point) else ''}{loads.get(point, '')})"
            text += f": {entry['reason']}" if "reason" in entry else ""
            if "shards" not in entry:  # a line for each of 163 shards is no news; the bar shows them
                news.append(text)
    for text in news:
        if text not in allocation.told:
            tell(text)
    allocation.told.update(news)
