"""The scripts of sbatch/ on a real Slurm with two nodes, with the rehearsal engine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from batching import ROOT, engines_of, sbatch, the_run, until, verb
from lab import Lab
from test_main_job import hosts_of

from jobs.allocation import serving
from jobs.core.files import read_json

pytestmark = [pytest.mark.usefixtures("warm")]


@pytest.mark.lab
@pytest.mark.timeout(900)
def test_a_sweep_gives_the_same_run_directory_and_table(lab: Lab, tmp_path: Path) -> None:
    lab.wait_idle()
    job = sbatch(lab, tmp_path, "sweep.sbatch", "parallel.max_model_len=8192,16384")
    run = the_run(tmp_path)
    followed = verb(lab, "follow", "--json", str(run.path))
    assert followed.returncode == 0, followed.stdout + followed.stderr
    table = pd.read_parquet(run.table("parquet"))
    assert table["parallel.max_model_len"].tolist() == [8192, 16384]
    assert table["valid"].all()
    assert set(table["job_id"]) == {job}
    assert (table["queue_s"] >= 0).all()
    [allocation] = run.allocations()
    assert hosts_of(allocation) == ["npu-node1", "npu-node2"]
    assert read_json(allocation.head)["address"] == "10.213.0.11", "the master address is that of the interface"
    assert allocation.submission.read_text() == (ROOT / "sbatch/sweep.sbatch").read_text()
    lab.wait_idle()
    assert engines_of(job) == []
    state = lab.slurm("sacct", "-n", "-P", "-X", "-j", job, "-o", "State,ExitCode")
    assert state == "COMPLETED|0:0"


@pytest.mark.lab
@pytest.mark.timeout(600)
def test_a_failing_sweep_fails_its_job(lab: Lab, tmp_path: Path) -> None:
    lab.wait_idle()
    fault = "engine.rehearsal.faults=[{rank: 1, kind: exit, code: 0, when: load}]"
    job = sbatch(lab, tmp_path, "sweep.sbatch", fault)
    run = the_run(tmp_path)
    assert verb(lab, "follow", "--json", str(run.path)).returncode == 1
    assert pd.read_parquet(run.table("parquet"))["invalid_reason"][0].startswith("rank 1")
    lab.wait_idle()
    assert lab.slurm("sacct", "-n", "-P", "-X", "-j", job, "-o", "State") == "FAILED"
    wrong = sbatch(lab, tmp_path, "sweep.sbatch", "parallel.max_model_length=1")
    lab.wait_idle()
    assert lab.slurm("sacct", "-n", "-P", "-X", "-j", wrong, "-o", "State,ExitCode") == "FAILED|2:0"
    assert "Did you mean" in (tmp_path / f"slurm-{wrong}.out").read_text()


@pytest.mark.lab
@pytest.mark.timeout(600)
def test_a_service_for_hand_tests_answers_and_ends_with_its_job(lab: Lab, tmp_path: Path) -> None:
    lab.wait_idle()
    job = sbatch(lab, tmp_path, "serve.sbatch")
    run = the_run(tmp_path)
    [folder] = run.allocations()
    until(folder.serving.exists, "the service", tmp_path)
    reached = verb(lab, "reach", "--json", str(run.path))
    assert reached.returncode == 0, reached.stderr
    info = json.loads(reached.stdout)
    assert info["host"] == "npu-node1"
    assert info["base_url"].startswith("http://10.213.0.11:")
    assert info["tunnel"].startswith(f"ssh -N -L {info['base_url'].split(':')[2].partition('/')[0]}:10.213.0.11:")
    line = serving.request(info)
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(answer.stdout)["usage"]["completion_tokens"] > 0
    assert line in folder.stdout(0).read_text()
    assert verb(lab, "cancel", str(run.path)).returncode == 0
    lab.wait_idle()
    assert engines_of(job) == []
    assert not folder.serving.exists()
    outcome = read_json(folder.outcome)
    assert (outcome["ended"], outcome["left"]) == (None, [])
    assert lab.slurm("sacct", "-n", "-P", "-X", "-j", job, "-o", "State").startswith("CANCELLED")
