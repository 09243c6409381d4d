"""Where a task of an allocation runs: what every rank knows before it begins."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.allocation.handshake import Secret
from jobs.allocation.walltime import Walltime
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import Ports
from jobs.core import masking
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

    def api_key(self, service: str, attempt: int) -> str:
        """Return the key of a service: every rank of the allocation can tell it, and it never crosses the channel."""
        key = self.secret().mac(f"API key of {service}/{attempt}", 0, (b"", b"")).hex()[:32]
        masking.learn([key])
        return key

    def secret(self) -> Secret:
        """Return what proves a rank of this allocation to the others."""
        return Secret(self.folder.key.read_text(encoding="utf-8"), str(self.task.job_id))
