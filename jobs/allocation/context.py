"""Where a task of an allocation runs: what every rank knows before it begins."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.allocation.handshake import Secret
from jobs.allocation.walltime import Walltime
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import Ports
from jobs.core.rundir import AllocationDir
from jobs.core.tasks import AllocationTask


@dataclass(frozen=True)
class RankContext:
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

    def tag(self, service: str) -> str:
        """Return the process tag of this rank's engine processes."""
        return f"{self.task.job_id}/{service}/{self.task.rank}"

    def secret(self) -> Secret:
        """Return what proves a rank of this allocation to the others."""
        return Secret(self.folder.key.read_text(encoding="utf-8"), str(self.task.job_id))
