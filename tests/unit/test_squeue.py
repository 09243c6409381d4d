"""What Slurm says of a job."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from jobs.cluster import squeue
from jobs.cluster.base import ENDED, UNKNOWN
from jobs.cluster.squeue import slurm_state
from jobs.core import process


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(fake.folder))
    return fake


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING"])
def test_a_job_in_the_queue_is_what_the_queue_says(slurm: FakeSlurm, state: str) -> None:
    slurm.job("77", state, accounted="FAILED")
    slurm.job("7", "PENDING")
    assert slurm_state("77") == state
    assert [call[0] for call in slurm.calls()] == ["squeue"]
    assert state not in ENDED


@pytest.mark.parametrize(
    ("accounted", "state"),
    [
        ("COMPLETED", "COMPLETED"),
        ("CANCELLED by 1000", "CANCELLED"),
        ("TIMEOUT", "TIMEOUT"),
        ("NODE_FAIL", "NODE_FAIL"),
    ],
)
def test_a_job_that_left_the_queue_is_what_the_accounting_says(slurm: FakeSlurm, accounted: str, state: str) -> None:
    slurm.job("77", "COMPLETED", purged=True, accounted=accounted)
    assert slurm_state("77") == state
    assert state in ENDED


def test_an_empty_queue_is_no_success_where_the_accounting_fails_and_the_controller_knows(slurm: FakeSlurm) -> None:
    slurm.job("77", "FAILED")
    slurm.down("slurmdbd")
    assert slurm_state("77") == "FAILED"
    assert [call[0] for call in slurm.calls()] == ["squeue", "sacct", "scontrol"]


def test_silence_of_all_is_unknown_and_not_an_end(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.job("77", "RUNNING")
    slurm.down("slurmdbd", "slurmctld")
    assert slurm_state("77") == UNKNOWN
    assert UNKNOWN not in ENDED
    monkeypatch.setenv("PATH", "/nowhere")  # not even the programs are there
    assert slurm_state("77") == UNKNOWN


def test_a_job_that_is_accounted_for_while_the_controller_is_down(slurm: FakeSlurm) -> None:
    slurm.job("77", "COMPLETED")
    slurm.down("slurmctld")
    assert slurm_state("77") == "COMPLETED"


def test_a_job_that_nobody_knows_is_gone(slurm: FakeSlurm) -> None:
    assert slurm_state("77") == "GONE"
    slurm.job("77", "COMPLETED", purged=True, accounted="")  # purged, and not yet in the accounting
    assert slurm_state("77") == "GONE"
    assert "GONE" in ENDED


def test_the_time_that_is_left(slurm: FakeSlurm) -> None:
    slurm.job("77", "RUNNING", left="1-02:03:04")
    slurm.job("78", "RUNNING", left="UNLIMITED")
    assert squeue.seconds_left("77") == ((24 + 2) * 60 + 3) * 60 + 4
    assert squeue.seconds_left("78") == math.inf
    assert squeue.seconds_left("99") is None


def test_whether_others_wait(slurm: FakeSlurm) -> None:
    slurm.job("1", "PENDING", user="me", partition="npu", reason="Resources")
    slurm.job("2", "RUNNING", user="you", partition="npu")
    slurm.job("3", "PENDING", user="you", partition="cpu", reason="Priority")
    slurm.job("4", "PENDING", user="you", partition="big", reason="Resources")
    assert not squeue.others_wait("npu", "me")
    assert squeue.others_wait("cpu", "me")
    assert squeue.others_wait("big", "me")
    slurm.down("slurmctld")
    assert not squeue.others_wait("cpu", "me")


@pytest.mark.parametrize(
    "reason",
    ["JobHeldUser", "JobHeldAdmin", "Dependency", "DependencyNeverSatisfied", "BeginTime", "PartitionNodeLimit"],
)
def test_a_job_that_would_not_start_if_we_gave_way_does_not_wait_for_us(slurm: FakeSlurm, reason: str) -> None:
    slurm.job("1", "PENDING", user="you", partition="npu", reason=reason)
    assert not squeue.others_wait("npu", "me")


def test_the_stand_in_refuses_what_slurm_refuses(slurm: FakeSlurm) -> None:
    for words in (["squeue", "--nosuch"], ["squeue", "-j", "x", "-o", "%T"], ["sacct", "-z"], ["scancel", "-u", "me"]):
        done = process.run(words)
        assert done.returncode == 1
        assert done.stderr
