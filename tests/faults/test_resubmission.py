"""What the time limit of a batch job leaves is submitted again: minutes of waiting, in a lane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest
from batching import ROOT, engines_of, sbatch, the_run, verb
from lab import Lab
from lanes import Lanes
from processes import wait_until

from jobs.cluster.base import ENDED
from jobs.cluster.squeue import slurm_state
from jobs.core.files import read_json
from jobs.core.rundir import AllocationDir, SweepDir

LIMIT_MIN = 4
WINDOW_S = 70
"""The signal comes after 150 s. The first point has over a minute to begin in; no second one fits behind it."""

CLIENT = "the client was starved of its processor"
"""What a row may say of a long window here: the engines of the fault matrix have the machine at the same time."""


@dataclass(frozen=True)
class Resubmitted:
    """How it ended: both job ids, the run directory, what `follow` and Slurm said, engines that are left."""

    first: str
    last: str
    run: SweepDir
    followed: CompletedProcess[str]
    record: str
    left: list[int]


def attempts(run: SweepDir) -> list[AllocationDir]:
    return [AllocationDir(path) for path in sorted((run.path / "allocations/0").iterdir())]


def short_limit(lab: Lab, root: Path) -> Resubmitted:
    """Run two points of which the time limit allows one, on nodes that are shared; return when both jobs have ended."""
    root.mkdir()
    script = root / "sweep.sbatch"
    text = (ROOT / "sbatch/sweep.sbatch").read_text()
    assert "#SBATCH --exclusive\n" in text
    script.write_text(text.replace("#SBATCH --exclusive\n", ""))
    options = (f"--time={LIMIT_MIN}",)
    first = sbatch(lab, root, script, "bench.output_tokens=8,9", f"bench.window_s={WINDOW_S}", options=options)
    run = the_run(root)
    followed = verb(lab, "follow", "--json", str(run.path))
    last = str(read_json(attempts(run)[-1].job)["job_id"])
    wait_until(lambda: slurm_state(last) in ENDED, 60, "the last job has ended", poll=0.2)
    record = lab.slurm("scontrol", "-o", "show", "job", last)
    return Resubmitted(first, last, run, followed, record, engines_of(first, last))


@pytest.mark.lab
@pytest.mark.timeout(900)
@pytest.mark.beside(work=short_limit)
def test_what_the_time_limit_leaves_is_submitted_again(lanes: Lanes, request: pytest.FixtureRequest) -> None:
    found: Resubmitted = lanes.outcome(request.node.name)
    table = pd.read_parquet(found.run.table("parquet"))
    said = found.followed.stdout + found.followed.stderr
    assert all(
        valid or CLIENT in reason for valid, reason in zip(table["valid"], table["invalid_reason"], strict=True)
    ), said
    assert found.followed.returncode == (0 if table["valid"].all() else 1), said
    assert (table["completed"] > 0).all(), "both were measured"
    assert table["job_id"].tolist() == [found.first, found.last]
    assert len(attempts(found.run)) == 2
    assert read_json(attempts(found.run)[0].outcome)["resubmitted"] == found.last
    assert f"TimeLimit=00:0{LIMIT_MIN}:00" in found.record
    assert "Partition=npu" in found.record
    assert found.left == []
