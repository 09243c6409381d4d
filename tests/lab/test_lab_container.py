"""A Slurm without pyxis and nodes without enroot: said clearly, before the job or in seconds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from lab import Lab
from launching import python

pytestmark = [pytest.mark.usefixtures("warm")]

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ("container.image=ascend/vllm-ascend:v0.9.1-openeuler", "container.registry=registry.example")


def launch(lab: Lab, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        "launch.py",
        "-m",
        "cluster=slurm",
        "engine=simulator",
        "bench.repeats=1",
        *IMAGE,
        f"results.root={root}",
        *words,
    ]
    return python(lab, *command, timeout_s=150)


def jobs(lab: Lab) -> list[str]:
    return lab.slurm("sacct", "-n", "-X", "-P", "-o", "JobID").split()


@pytest.mark.lab
def test_a_slurm_without_pyxis_is_refused_before_there_is_a_job(lab: Lab, tmp_path: Path) -> None:
    lab.wait_idle()
    before = jobs(lab)
    done = launch(lab, tmp_path, "container=pyxis")
    assert done.returncode != 0
    assert "error: container.runtime" in done.stderr
    assert "--container-image" in done.stderr
    assert jobs(lab) == before


@pytest.mark.lab
@pytest.mark.skipif(shutil.which("enroot") is not None, reason="this machine has enroot")
def test_a_node_without_enroot_ends_the_job_with_rows_that_say_it(lab: Lab, tmp_path: Path) -> None:
    lab.wait_idle()
    done = launch(lab, tmp_path, "container=enroot", "results.name=none")
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    table = pd.read_csv(tmp_path / "none" / "table.csv")
    assert not table["valid"].any()
    assert table["invalid_reason"].str.contains("enroot").all(), table["invalid_reason"].tolist()
    lab.wait_idle()
