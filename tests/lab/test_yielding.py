"""A sweep that gives way: after a point it ends for another user's job, and the rest runs behind that one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from batching import ROOT, verb
from lab import Lab
from processes import wait_until

from jobs.core.files import read_json, read_lines
from jobs.core.rundir import SweepDir

COMMAND = (
    "launch.py -m cluster=slurm engine=simulator bench.output_tokens=8,9 bench.concurrency=2 bench.warmup_s=1"
    " bench.repeats=1 bench.window_s=10 limits.stop_s=10 cluster.yield_to_others=true preflight.enabled=false"
)


def measuring(root: Path) -> bool:
    return any("'measuring'" in str(line) for path in root.rglob("state.jsonl") for line in read_lines(path))


@pytest.mark.lab
def test_the_job_of_another_user_goes_first_and_nothing_is_lost(quiet: Lab, tmp_path: Path) -> None:
    words = [sys.executable, *COMMAND.split(), f"results.root={tmp_path}"]
    launched = subprocess.Popen(words, cwd=ROOT, env=os.environ | quiet.env, text=True, stdout=subprocess.PIPE)
    try:
        wait_until(lambda: measuring(tmp_path), 120, "the first point is measured", poll=0.1)
        # Not root's: nobody may write no output here.
        wrap = ("--nodes=2", "--exclusive", "--uid=nobody", "--chdir=/", "--output=/dev/null", "--wrap=true")
        other = quiet.slurm("sbatch", "--parsable", *wrap)
        said, _ = launched.communicate(timeout=240)
    finally:
        launched.kill()
        launched.wait()
    assert launched.returncode == 0, said
    run = SweepDir(next(p for p in tmp_path.iterdir() if (p / "plan.json").exists() and not p.is_symlink()))
    first, second = run.allocation(0, 1), run.allocation(0, 2)
    outcome = read_json(first.outcome)
    assert (outcome["yielded"], outcome["ended"]) == (True, None)
    jobs = [str(read_json(one.job)["job_id"]) for one in (first, second)]
    table = pd.read_parquet(run.table("parquet"))
    assert table["valid"].all(), table["invalid_reason"].tolist()
    assert table["job_id"].tolist() == jobs
    began = [quiet.slurm("sacct", "-XnPo", "start", "-j", job) for job in (jobs[0], other, jobs[1])]
    assert began == sorted(began), "the other user's job ran between the two"
    assert "other users' jobs wait" in first.stdout(0).read_text()
    assert verb(quiet, "status", str(run.path)).returncode == 0
