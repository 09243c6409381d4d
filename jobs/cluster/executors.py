"""submitit's executors: Slurm, and local processes that outlive their launcher. Nothing else imports submitit."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.local.local import LocalExecutor, LocalJob
from submitit.slurm.slurm import SlurmExecutor

from jobs.cluster.time_limit import SIGNAL_DELAY_S
from jobs.core import process

REFUSED = (FailedJobError, FailedSubmissionError)
"""What submitit raises when the cluster does not take a job."""


def slurm(folder: Path, parameters: Mapping[str, Any]) -> Any:
    """Return an executor that submits by sbatch; its files go to `folder`."""
    executor = SlurmExecutor(folder)
    executor.update_parameters(**parameters)
    return executor


def local(folder: Path, ranks: int, minutes: float) -> Any:
    """Return an executor of `ranks` processes of this host, which end after so many minutes."""
    executor = _DetachedLocalExecutor(folder)
    executor.update_parameters(tasks_per_node=ranks, timeout_min=minutes, stderr_to_stdout=True)
    return executor


class _DetachedLocalExecutor(LocalExecutor):
    """submitit's local executor in a session of its own, so that Ctrl-C in the launcher does not reach it."""

    def _submit_command(self, command: str) -> LocalJob[Any]:
        ranks = self.parameters["tasks_per_node"]
        env = {
            "SUBMITIT_LOCAL_NTASKS": str(ranks),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(int(60 * self.parameters["timeout_min"])),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(SIGNAL_DELAY_S),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
        }
        argv = [sys.executable, "-m", "submitit.local._local", str(Path(self.folder).resolve())]
        started = process.detach(argv, dict(os.environ) | env, Path(self.folder) / "controller.log")
        return LocalJob(folder=self.folder, job_id=str(started.pid), process=started, tasks=list(range(ranks)))
