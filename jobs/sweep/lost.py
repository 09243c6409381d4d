"""What an allocation left in the run directory: its job, its attempts, the states of its head; and rows of the points
that it left without one when its job ended: nothing is dropped. Nothing is written.
"""

from __future__ import annotations

from typing import Any

from jobs.cluster.base import ENDED, job_state, read_job
from jobs.core.log import own_error, read_tail
from jobs.core.planfile import begun_services
from jobs.core.records import read_states
from jobs.core.rundir import AllocationDir, ServiceDir, SweepDir
from jobs.core.tasks import read_config, read_outcome
from jobs.results.row import NOT_RUN, make_row


def job_id(folder: AllocationDir) -> str:
    """Return the job of an allocation; "?" before it is known."""
    job = read_job(folder)
    return job.job_id if job else "?"


def attempts(folder: AllocationDir, service: str) -> list[ServiceDir]:
    """Return this allocation's attempts at a service, oldest first."""
    return [a for a in folder.sweep.service_attempts(service) if int(a.path.name) >= folder.attempt]


def states(folder: AllocationDir, service: str) -> list[Any]:
    """Return the states of rank 0 in this allocation's attempts at a service, in order."""
    return [entry for attempt in attempts(folder, service) for entry in read_states(attempt.rank(0).states)]


def lost_rows(folder: AllocationDir, state: str) -> dict[str, dict[str, Any]]:
    """Return a row with a reason for every point that an allocation left without one, by point.

    While its job, whose state this is, has not ended, nothing is lost.
    """
    sweep = folder.sweep
    if state not in ENDED or _goes_on(folder):
        return {}
    lost = {}
    for service in begun_services(folder):
        for point in service.points:
            if not sweep.point(point).row.exists():
                job, config = job_id(folder), read_config(sweep, point)
                begun = [e["state"] for e in states(folder, service.service) if e.get("point") == point]
                reason = f"its job {job} ended ({state}) without a result{_errors(folder)}"
                if not folder.job.exists():
                    reason = "its allocation was never submitted: the launcher ended before that"
                reason = f"rank 0 (head): lost in state {begun[-1]}; {reason}" if begun else NOT_RUN + reason
                # A search would take it for a setting that does not run, and decide otherwise than it would have.
                cut = "measuring" in begun or (sweep.search.exists() and bool(begun))
                lost[point] = make_row(point, service.service, config, invalid_reason=reason, truncated=cut, job_id=job)
    return lost


def all_lost(sweep: SweepDir) -> dict[str, dict[str, Any]]:
    """Return such rows of a whole sweep. The cluster is asked only where a row is missing."""
    lost: dict[str, dict[str, Any]] = {}
    for folder in sweep.allocations():
        points = [point for service in begun_services(folder) for point in service.points]
        if not all(sweep.point(point).row.exists() for point in points):
            lost |= lost_rows(folder, job_state(folder))
    return lost


def _goes_on(folder: AllocationDir) -> bool:
    """Whether another job does the rest: its directory comes a moment later."""
    outcome = read_outcome(folder)
    return outcome is not None and outcome.resubmitted is not None


def _errors(folder: AllocationDir) -> str:
    """Return the errors with which the ranks ended, or where to look."""
    job = read_job(folder)
    found = [
        f"; rank {rank} ({'headless' if rank else 'head'}): {error}"
        for rank in range(job.nodes if job else 0)
        if (error := own_error(read_tail(folder.stdout(rank))))
    ]
    return "".join(found) or f"; see {folder.stdout(0)}"
