"""What the cluster says of a job; cancelling touches that job only."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from jobs.cluster import slurm as jobstate
from jobs.cluster.slurm import ENDED, UNKNOWN, cancel, job_state, slurm_state
from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.files import write_json
from jobs.core.rundir import AllocationDir


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(fake.folder))
    return fake


def submitted(folder: Path, job_id: object, kind: str = "slurm") -> AllocationDir:
    allocation = AllocationDir(folder / "0/1")
    write_json(allocation.job, {"job_id": job_id, "kind": kind, "nodes": 2, "submitted": 1.0})
    return allocation


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


def test_a_job_that_was_not_submitted_is_unknown(tmp_path: Path, slurm: FakeSlurm) -> None:
    assert job_state(AllocationDir(tmp_path / "0/1")) == UNKNOWN
    assert cancel(AllocationDir(tmp_path / "0/1")) is False
    assert slurm.calls() == []


def test_cancel_touches_its_own_job_and_no_other(tmp_path: Path, slurm: FakeSlurm) -> None:
    for number in ("7", "77", "777"):
        slurm.job(number, "RUNNING")
    folder = submitted(tmp_path, 77)
    assert cancel(folder) is True
    assert slurm.calls("scancel") == [["scancel", "77"]]
    assert {number: job["state"] for number, job in slurm.jobs.items()} == {
        "7": "RUNNING", "77": "CANCELLED", "777": "RUNNING",
    }  # fmt: skip
    assert cancel(folder) is False, "there is nothing left to cancel"
    assert len(slurm.calls("scancel")) == 1


def test_a_refused_cancel_is_said_in_slurms_words(tmp_path: Path, slurm: FakeSlurm) -> None:
    slurm.job("77", "RUNNING", user="you")
    with pytest.raises(RunError, match="permission denied"):
        cancel(submitted(tmp_path, 77))
    assert slurm.jobs["77"]["state"] == "RUNNING"


def test_the_time_that_is_left(slurm: FakeSlurm) -> None:
    slurm.job("77", "RUNNING", left="1-02:03:04")
    slurm.job("78", "RUNNING", left="UNLIMITED")
    assert jobstate.seconds_left("77") == ((24 + 2) * 60 + 3) * 60 + 4
    assert jobstate.seconds_left("78") == math.inf
    assert jobstate.seconds_left("99") is None


def test_whether_others_wait(slurm: FakeSlurm) -> None:
    slurm.job("1", "PENDING", user="me", partition="npu", reason="Resources")
    slurm.job("2", "RUNNING", user="you", partition="npu")
    slurm.job("3", "PENDING", user="you", partition="cpu", reason="Priority")
    slurm.job("4", "PENDING", user="you", partition="big", reason="Resources")
    assert not jobstate.others_wait("npu", "me")
    assert jobstate.others_wait("cpu", "me")
    assert jobstate.others_wait("big", "me")
    slurm.down("slurmctld")
    assert not jobstate.others_wait("cpu", "me")


@pytest.mark.parametrize(
    "reason",
    ["JobHeldUser", "JobHeldAdmin", "Dependency", "DependencyNeverSatisfied", "BeginTime", "PartitionNodeLimit"],
)
def test_a_job_that_would_not_start_if_we_gave_way_does_not_wait_for_us(slurm: FakeSlurm, reason: str) -> None:
    slurm.job("1", "PENDING", user="you", partition="npu", reason=reason)
    assert not jobstate.others_wait("npu", "me")


# --- local


CONTROLLER = "import sys; print('up', flush=True); sys.stdin.read()"


def controller(folder: Path) -> subprocess.Popen[str]:
    """A process with the arguments of a local controller."""
    words = [sys.executable, "-c", CONTROLLER, str(AllocationDir(folder / "0/1").submitit.resolve())]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_a_local_job_is_its_controller(tmp_path: Path) -> None:
    own, other = controller(tmp_path / "own"), controller(tmp_path / "other")
    folder = submitted(tmp_path / "own", own.pid, "local")
    assert job_state(folder) == "RUNNING"
    assert cancel(folder) is True
    assert own.wait(20) != 0
    assert other.poll() is None
    assert job_state(folder) == "FAILED"
    write_json(folder.outcome, {"ended": None})
    assert job_state(folder) == "COMPLETED"
    other.communicate(timeout=20)


def test_a_stranger_with_the_pid_of_an_old_controller_is_left_alone(tmp_path: Path) -> None:
    stranger = controller(tmp_path / "stranger")
    folder = submitted(tmp_path / "own", stranger.pid, "local")
    assert job_state(folder) == "FAILED"
    assert cancel(folder) is False
    assert stranger.poll() is None
    assert job_state(submitted(tmp_path / "ours", os.getpid(), "local")) == "FAILED"
    stranger.communicate(timeout=20)


def test_the_stand_in_refuses_what_slurm_refuses(slurm: FakeSlurm) -> None:
    for words in (["squeue", "--nosuch"], ["squeue", "-j", "x", "-o", "%T"], ["sacct", "-z"], ["scancel", "-u", "me"]):
        done = process.run(words)
        assert done.returncode == 1
        assert done.stderr
