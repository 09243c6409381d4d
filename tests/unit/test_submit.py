"""Allocation to submitit: what sbatch is given, and what stands in the run directory afterwards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from core_help import change, check_golden, config
from fake_slurm import FakeSlurm
from submitit.slurm.slurm import _make_sbatch_string

from jobs.allocation import submission
from jobs.cluster.base import Job, Request
from jobs.cluster.slurm import sbatch_parameters
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import read_json
from jobs.core.rundir import SweepDir
from jobs.core.tasks import ServiceTask


def script(made: Config, nodes: int = 2, name: str = "sweep-s-0") -> str:
    """Return the batch script as submitit itself renders it."""
    parameters = sbatch_parameters(made, nodes, name)
    return str(_make_sbatch_string(command="<command>", folder="/runs/s/allocations/0/1/submitit", **parameters))


def options(text: str) -> dict[str, str]:
    """Return the #SBATCH options of a script; a flag has the value ''."""
    found = {}
    for line in re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE):
        name, _, value = line.partition("=")
        assert name not in found, f"{name} twice"
        found[name] = value
    return found


FULL = change(
    config("cluster=slurm"),
    cluster__partition="npu",
    cluster__account="team",
    cluster__qos="high",
    cluster__gres="npu:8",
    cluster__reservation="maintenance window",
    cluster__constraint="a2&roce",
    cluster__nodelist="n[1-4]",
    cluster__exclude="n3",
    cluster__time_limit="1-02:30:10",
    cluster__mem="0",
    cluster__cpus_per_task=64,
    cluster__sbatch_args={"licenses": "x:1", "--mail_type": "END", "spread-job": True, "nice": None, "hold": False},
    cluster__srun_args=("--mpi=none", "--cpu-bind=map_cpu:0,1 2"),
    cluster__setup=("module load cann", "export A='b c'"),
)


@pytest.mark.parametrize(("name", "made"), [("sbatch_default.sh", config("cluster=slurm")), ("sbatch_full.sh", FULL)])
def test_golden_batch_script(name: str, made: Config, tmp_path: Path) -> None:
    check_golden(name, script(made), tmp_path)


def test_keys_that_are_null_are_not_emitted() -> None:
    bare = change(config("cluster=slurm"), cluster__time_limit=None, cluster__exclusive=False)
    assert options(script(bare)).keys() == {
        "--dependency", "--job-name", "--no-requeue", "--nodes", "--ntasks-per-node",
        "--open-mode", "--output", "--signal",
    }  # fmt: skip


def test_what_every_allocation_asks_for() -> None:
    text = script(config("cluster=slurm"))
    asked = options(text)
    assert (asked["--nodes"], asked["--ntasks-per-node"]) == ("2", "1")
    assert asked["--no-requeue"] == asked["--exclusive"] == ""
    assert asked["--job-name"] == "sweep-s-0"
    [srun] = re.findall(r"^srun .*$", text, re.MULTILINE)
    assert " --kill-on-bad-exit=1 --wait=60 <command>" in srun
    assert "--error" not in srun


def test_further_words_reach_sbatch_and_srun_as_they_are() -> None:
    asked = options(script(FULL))
    assert asked["--reservation"] == "'maintenance window'"
    assert (asked["--gres"], asked["--licenses"], asked["--mail-type"]) == ("npu:8", "x:1", "END")
    assert asked["--spread-job"] == ""
    assert not {"--nice", "--hold"} & asked.keys()
    assert " --mpi=none '--cpu-bind=map_cpu:0,1 2' <command>" in script(FULL)
    before_srun = script(FULL).partition("srun ")[0].splitlines()
    assert [line for line in before_srun if line in FULL.cluster.setup] == list(FULL.cluster.setup)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("8:00:00", "480"), ("30", "30"), ("0:00:01", "1"), ("1-0", "1440"), ("0", "0"), ("UNLIMITED", "0"), (None, None)],
)
def test_the_time_limit_in_minutes_rounded_up(limit: str | None, minutes: str | None) -> None:
    asked = options(script(change(config("cluster=slurm"), cluster__time_limit=limit)))
    assert asked.get("--time") == minutes


@pytest.mark.parametrize("exclusive", [True, False])
def test_exclusive_is_a_flag_or_nothing(exclusive: bool) -> None:
    asked = options(script(change(config("cluster=slurm"), cluster__exclusive=exclusive)))
    assert asked.get("--exclusive") == ("" if exclusive else None)


# --- a real submission to the stand-in


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(fake.folder))
    return fake


def allocate(tmp_path: Path, index: int = 0, **values: Any) -> Job:
    request = Request(change(config("cluster=slurm"), **values), 2)
    sweep = SweepDir(tmp_path / "runs/s")
    return submission.submit_allocation(sweep, index, 1, [ServiceTask("service", ("p", "q"))], request)


def test_one_allocation_is_one_job_with_its_record(tmp_path: Path, slurm: FakeSlurm) -> None:
    job = allocate(tmp_path, cluster__partition="npu", cluster__gres="npu:8")
    folder = job.folder
    assert (job.job_id, job.kind) == ("101", "slurm")
    assert len(slurm.calls("sbatch")) == 1
    assert slurm.jobs["101"]["asked"]["gres"] == "npu:8"
    record = read_json(folder.job)
    assert (record["job_id"], record["kind"], record["nodes"]) == ("101", "slurm", 2)
    assert "#SBATCH --partition=npu" in folder.submission.read_text()
    for rank in (0, 1):
        assert folder.stdout(rank).readlink() == Path(f"submitit/101_{rank}_log.out")


def test_allocations_of_one_sweep_run_one_at_a_time_unless_more_may(tmp_path: Path, slurm: FakeSlurm) -> None:
    for index in range(3):
        allocate(tmp_path / "one", index)
        allocate(tmp_path / "two", index, cluster__max_allocations=2)
    asked = [job["asked"] for job in slurm.jobs.values()]
    assert {one["dependency"] for one in asked} == {"singleton"}
    names = [one["job-name"] for one in asked]
    assert all(name.startswith("sweep-s-") for name in names)
    assert len(set(names[::2])) == 1
    assert [name[-2:] for name in names[1::2]] == ["-0", "-1", "-0"]
    assert not set(names[::2]) & set(names[1::2]), "sweeps of one name under two roots do not wait for each other"


def test_a_refusal_is_said_in_slurms_words(tmp_path: Path, slurm: FakeSlurm) -> None:
    with pytest.raises(RunError) as caught:
        allocate(tmp_path, cluster__partition="nosuch")
    assert caught.value.key == "sbatch"
    assert "Invalid partition name specified" in caught.value.reason
    assert "Traceback" not in caught.value.reason
    assert not slurm.jobs
    assert not (tmp_path / "runs/s/allocations/0/1/job.json").exists()


def test_an_option_that_sbatch_does_not_know_is_said(tmp_path: Path, slurm: FakeSlurm) -> None:
    with pytest.raises(RunError, match="unrecognized option '--nosuch=1'"):
        allocate(tmp_path, cluster__sbatch_args={"nosuch": 1})


def test_no_answer_from_the_controller_is_said(tmp_path: Path, slurm: FakeSlurm) -> None:
    slurm.down("slurmctld")
    with pytest.raises(RunError, match="Unable to contact slurm controller"):
        allocate(tmp_path)
