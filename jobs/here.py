"""Where a task of an allocation runs: what every rank knows before it begins."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.cluster import Task
from jobs.ports import Ports
from jobs.rundir import AllocationDir
from jobs.service.task import AllocationTask
from jobs.walltime import Walltime


@dataclass(frozen=True)
class Here:
    """Where this task runs and what its allocation has to do."""

    task: Task
    interface: str
    address: str
    ports: Ports
    folder: AllocationDir
    work: AllocationTask
    inherited: Mapping[str, str]
    walltime: Walltime
    started: float = field(default_factory=time.time)

    def mark(self, service: str) -> str:
        """Return the mark of this rank's engine processes."""
        return f"{self.task.job_id}/{service}/{self.task.rank}"
