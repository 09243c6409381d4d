"""What every task of an allocation runs (jobs/cluster/base.py: ENTRY): one rank, then what is left."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.allocation import rank
from jobs.allocation.submission import submit_rest
from jobs.cluster.base import scheduler
from jobs.core.rundir import AllocationDir


def main(arguments: Sequence[str]) -> int:
    """Run one rank of the allocation in this directory, on this kind of cluster. Returns its exit code."""
    folder, kind = AllocationDir(Path(arguments[0])), arguments[1]
    task = scheduler(kind).task(os.environ)
    code = rank.main(folder, task)
    if task.rank == 0:
        submit_rest(folder)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
