"""What submitit runs in every task of an allocation, on Slurm and on this host: one rank, then what is left."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from jobs.allocation import rank
from jobs.allocation.submission import submit_allocation, submit_rest
from jobs.cluster.nodelist import Task, task_from_slurm
from jobs.core.rundir import AllocationDir


def run_task(folder: str, kind: str) -> None:
    """Run one rank; submitit calls this in every task. Ends with the rank's exit code."""
    task = task_from_slurm(os.environ) if kind == "slurm" else _local_task(os.environ)
    allocation = AllocationDir(Path(folder))
    code = rank.main(allocation, task)
    if task.rank == 0:
        submit_rest(allocation, task.ranks, partial(submit_allocation, entry=run_task))
    sys.exit(code)


def _local_task(env: Mapping[str, str]) -> Task:
    ranks = int(env["SUBMITIT_LOCAL_NTASKS"])
    number = int(env["SUBMITIT_LOCAL_GLOBALID"])
    hosts = ("localhost",) * ranks
    return Task(number, ranks, int(env["SUBMITIT_LOCAL_JOB_ID"]), hosts, "localhost")
