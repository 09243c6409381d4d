"""cluster=current on a real Slurm: steps of an allocation that was there before, and that stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from batching import QUICK, engines_of, the_run, until, verb
from lab import Lab
from launching import ROOT, python
from test_main_job import hosts_of

from jobs.core.files import read_lines

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600), pytest.mark.usefixtures("warm")]

NODES = ["npu-node1", "npu-node2"]
HOLD = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"


@pytest.fixture
def held(quiet: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Hold both nodes as `salloc -N2` does; this shell is then in the allocation. Yields its job id."""
    salloc = ["salloc", "--quiet", "-N2", "--exclusive", "--time=20", sys.executable, "-c", HOLD]
    shell = subprocess.Popen(
        salloc, env=os.environ | quiet.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert shell.stdout is not None
    for name, value in json.loads(shell.stdout.readline()).items():
        if name.startswith("SLURM"):
            monkeypatch.setenv(name, value)
    yield os.environ["SLURM_JOB_ID"]
    shell.communicate()


def state(lab: Lab, job: str) -> str:
    return lab.slurm("squeue", "-h", "-j", job, "-o", "%T")


def test_a_sweep_runs_in_the_allocation_that_is_held(held: str, quiet: Lab, tmp_path: Path) -> None:
    grid = ("cluster=current", f"results.root={tmp_path}", *QUICK, "parallel.max_model_len=8192,16384")
    done = python(quiet, "launch.py", "-m", *grid)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = the_run(tmp_path)
    table = pd.read_parquet(run.table("parquet"))
    assert table["valid"].all()
    assert (len(table), set(table["job_id"])) == (2, {held})
    [allocation] = run.allocations()
    assert hosts_of(allocation) == NODES
    assert " s left (squeue)" in allocation.stdout(0).read_text(), "the time limit is that of the allocation"
    assert state(quiet, held) == "RUNNING"
    assert quiet.slurm("squeue", "-h", "-o", "%i").split() == [held], "nothing was submitted"
    assert engines_of(held) == []
    record = json.loads(python(quiet, "-m", "jobs", "preflight", "--json", *grid[:2], "engine=simulator").stdout)
    assert [one["node"] for one in record["facts"]] == NODES


def test_cancel_ends_the_step_and_not_the_allocation(held: str, quiet: Lab, tmp_path: Path) -> None:
    words = ("cluster=current", f"results.root={tmp_path}", *QUICK, "bench.window_s=300", "launch.follow=false")
    done = python(quiet, "launch.py", "-m", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    run = the_run(tmp_path)

    def measuring() -> bool:
        states = run.path.glob("services/*/*/rank0/state.jsonl")
        return any(line["state"] == "measuring" for path in states for line in read_lines(path))

    until(measuring, "the window", tmp_path)
    said = json.loads(verb(quiet, "status", "--json", str(run.path)).stdout)["allocations"][0]
    assert (said["state"], said["job_id"]) == ("RUNNING", held)
    assert json.loads(verb(quiet, "cancel", "--json", str(run.path)).stdout) == {"cancelled": [held]}
    assert verb(quiet, "follow", "--json", str(run.path)).returncode == 1
    [reason] = pd.read_parquet(run.table("parquet"))["invalid_reason"]
    assert "SIGTERM" in reason
    assert engines_of(held) == []
    assert state(quiet, held) == "RUNNING"
    assert quiet.slurm("squeue", "-h", "-s", "-j", held, "-o", "%j") in ("", "extern")
