"""What an allocation left in the run directory: its job, its attempts, the states of its head."""

from __future__ import annotations

from typing import Any

from jobs.cluster.base import read_job
from jobs.core.files import read_lines
from jobs.core.rundir import AllocationDir, ServiceDir


def job_id(folder: AllocationDir) -> str:
    """Return the job of an allocation; "?" before it is known."""
    job = read_job(folder)
    return job.job_id if job else "?"


def attempts(folder: AllocationDir, service: str) -> list[ServiceDir]:
    """Return this allocation's attempts at a service, oldest first."""
    return [a for a in folder.sweep.service_attempts(service) if int(a.path.name) >= folder.attempt]


def states(folder: AllocationDir, service: str) -> list[Any]:
    """Return the states of rank 0 in this allocation's attempts at a service, in order."""
    return [entry for attempt in attempts(folder, service) for entry in read_lines(attempt.rank(0).states)]
