"""One suite over every scheduler: refused before anything is written, its own job and no other, no silent end.

Programs of Slurm are strict stand-ins (fake_slurm.py); the controller of local tasks is the real one.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import waiting_task
from core_help import ROOT, change, config
from fake_slurm import FakeSlurm

from jobs.allocation import submission
from jobs.allocation.submission import submit_allocation, submit_rest
from jobs.allocation.walltime import TIME_IS_UP
from jobs.cluster import base
from jobs.cluster.base import ENDED, UNKNOWN, Job, Request, cancel, job_state, queue_words, read_job, scheduler
from jobs.core import process
from jobs.core.errors import RunError, UserError
from jobs.core.files import read_json, write_json
from jobs.core.registry import SCHEDULERS
from jobs.core.rundir import SweepDir
from jobs.core.tasks import ServiceTask, read_task, write_config

HELD = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2"}
STRAY = "PYXIS_CONTAINER_IMAGE"
SERVICES = [ServiceTask("service", ("p", "q"))]
STEP = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "n[1-2]"}
LOCAL_STEP = {"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_JOB_ID": "4711"}


@dataclass(frozen=True)
class Case:
    """A back end where it works, and where it does not.

    Attributes:
        env: of the shell from which it submits.
        programs: that it needs.
        step: environment of the second task.
        refused: changes of `env`, and what is said of them; None takes a variable away.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    programs: tuple[str, ...] = ()
    step: Mapping[str, str] = field(default_factory=lambda: STEP)
    refused: tuple[tuple[Mapping[str, str | None], str], ...] = ()


NOT_HELD: tuple[Mapping[str, str | None], str] = ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID")
CASES = {
    "slurm": Case(programs=("sbatch", "srun")),
    "script": Case(HELD, refused=(NOT_HELD, ({"SLURM_JOB_NUM_NODES": "1"}, "needs 2 nodes and the job has 1"))),
    "local": Case(step=LOCAL_STEP),
    "current": Case(
        HELD,
        ("srun",),
        refused=(
            NOT_HELD,
            ({"SLURM_JOB_NUM_NODES": None}, "SLURM_JOB_NUM_NODES is not set"),
            ({"SLURM_JOB_NUM_NODES": "1"}, "needs 2 nodes and allocation 4711 has 1"),
            ({"SLURM_JOB_ID": "46"}, "SLURM_JOB_ID = 46: this allocation is over"),
        ),
    ),
}
for other in set(SCHEDULERS.names()) - set(CASES):  # of a distribution that is installed
    CASES[other] = Case(step=sys.modules[type(scheduler(other)).__module__].STEP)
ASKS_SLURM = [name for name in CASES if not scheduler(name).on_loopback]
every = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    for number in ("47", "4711", "47110"):
        fake.job(number, "RUNNING")
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    monkeypatch.setattr(base, "ENTRY", waiting_task.__name__)
    monkeypatch.setenv("PYTHONPATH", str(Path(waiting_task.__file__).parent))
    return fake


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Job]]:
    """Submit an allocation of two nodes; what runs here is ended afterwards."""
    jobs = []

    def go(name: str, index: int = 0, changes: Mapping[str, str | None] = {}, **values: Any) -> Job:
        for variable, value in (CASES[name].env | changes).items():
            monkeypatch.delenv(variable, raising=False) if value is None else monkeypatch.setenv(variable, value)
        made = change(config("cluster=slurm"), cluster__kind=name if name != "script" else "slurm", **values)
        sweep = SweepDir(tmp_path / "runs/s")
        job = submit_allocation(sweep, index, 1, SERVICES, Request(made, 2), kind=name)
        for point in SERVICES[0].points:
            write_config(sweep, point, made)
        jobs.append(job)
        return job

    yield go
    for job in jobs:
        if scheduler(job.kind).on_loopback:
            scheduler(job.kind).cancel(job)
        elif job.pid and process.alive(job.pid, str(job.folder.path)):
            process.terminate(job.pid)


def until(ask: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    """Wait for something that processes do."""
    end = time.monotonic() + limit_s
    while not ask():
        assert time.monotonic() < end, f"waited {limit_s:g} s for {what}"
        time.sleep(0.02)


def test_every_back_end_of_ours_is_in_this_suite() -> None:
    assert set(CASES) == set(SCHEDULERS.names())
    for name, module in SCHEDULERS.own.items():
        assert type(scheduler(name)).__module__ == module == f"jobs.cluster.{name}"


# --- before anything is written


def refused(submit: Callable[..., Job], tmp_path: Path, name: str, changes: Mapping[str, str | None]) -> UserError:
    with pytest.raises(UserError) as caught:
        submit(name, changes=changes)
    assert not (tmp_path / "runs").exists()
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("name", "changes", "words"), [(name, *one) for name, case in CASES.items() for one in case.refused]
)
def test_what_it_cannot_do_from_here_is_said(
    name: str,
    changes: Mapping[str, str | None],
    words: str,
    submit: Callable[..., Job],
    tmp_path: Path,
    slurm: FakeSlurm,
) -> None:
    assert words in str(refused(submit, tmp_path, name, changes))
    assert not slurm.calls("sbatch") + slurm.calls("srun")


@pytest.mark.parametrize(("name", "missing"), [(name, one) for name, case in CASES.items() for one in case.programs])
def test_a_host_without_its_programs_is_refused(
    name: str, missing: str, submit: Callable[..., Job], tmp_path: Path, slurm: FakeSlurm
) -> None:
    (slurm.folder / missing).unlink()
    assert f"no {missing} on PATH" in str(refused(submit, tmp_path, name, {"PATH": str(slurm.folder)}))


@every
def test_a_shell_that_would_move_the_ranks_into_a_container_is_refused(
    name: str, submit: Callable[..., Job], tmp_path: Path
) -> None:
    if scheduler(name).on_loopback:
        submit(name, changes={STRAY: "other"})  # no step, no pyxis
    else:
        assert STRAY in str(refused(submit, tmp_path, name, {STRAY: "other"}))


# --- a job


@every
def test_a_submitted_allocation_has_its_record(name: str, submit: Callable[..., Job]) -> None:
    began = time.time()
    job = submit(name)
    assert read_job(job.folder) == job
    assert (job.kind, job.nodes, job.submitted >= began - 1) == (name, 2, True)
    assert read_task(job.folder).services == tuple(SERVICES)
    assert stat.S_IMODE(job.folder.key.stat().st_mode) == 0o600
    assert job_state(job.folder) in ("PENDING", "RUNNING")


@every
def test_cancel_ends_its_own_job_and_no_other(name: str, submit: Callable[..., Job], slurm: FakeSlurm) -> None:
    one, other = submit(name), submit(name, 1) if name != "script" else None
    if name == "current":
        until(one.folder.stdout(0).exists, "the step")
    before = slurm.jobs
    assert cancel(one.folder) == one.job_id
    until(lambda: job_state(one.folder) in ENDED, "its end")
    assert cancel(one.folder) is None, "there is nothing left to cancel"
    assert other is None or job_state(other.folder) not in ENDED
    after = slurm.jobs
    assert {number for number in after if after[number] != before[number]} <= {one.job_id}
    if name == "current":
        assert after[one.job_id]["state"] == "RUNNING", "the allocation is the user's"


@pytest.mark.parametrize("name", ASKS_SLURM)
def test_silence_is_unknown_and_not_an_end(name: str, submit: Callable[..., Job], slurm: FakeSlurm) -> None:
    job = submit(name)
    if name == "current":  # until its step runs, srun's own words are the reason
        until(job.folder.stdout(0).exists, "the step")
    slurm.down("slurmdbd", "slurmctld")
    assert job_state(job.folder) == UNKNOWN
    assert queue_words(job.folder) == {}


@every
def test_what_is_known_of_a_job_that_waits_or_runs(name: str, submit: Callable[..., Job]) -> None:
    assert queue_words(submit(name).folder).keys() <= {"reason", "starts", "nodelist", "left"}


def test_what_was_not_submitted_is_unknown(tmp_path: Path, slurm: FakeSlurm) -> None:
    folder = SweepDir(tmp_path / "runs/s").allocation(0, 1)
    assert (job_state(folder), queue_words(folder)) == (UNKNOWN, {})
    with pytest.raises(RunError, match="being submitted"):
        cancel(folder)
    assert slurm.calls() == []


@every
def test_a_task_knows_its_place(name: str) -> None:
    task = scheduler(name).task(CASES[name].step)
    assert (task.rank, task.ranks, task.job_id, len(task.hosts)) == (1, 2, 4711, 2)
    assert task.on_loopback == scheduler(name).on_loopback == (task.host == "localhost")


@every
def test_what_the_time_limit_left_goes_on_or_gets_rows(
    name: str, submit: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "write_table", lambda _: None)
    job = submit(name)
    if name == "script":
        job.folder.submission.write_text((ROOT / "sbatch/sweep.sbatch").read_text())
    left = [{"service": one.service, "points": list(one.points)} for one in SERVICES]
    write_json(job.folder.outcome, {"ended": TIME_IS_UP, "valid": False, "time": 0, "left": left, "yielded": False})
    again = submit_rest(job.folder, name)
    after = job.folder.sweep.allocation(0, 2)
    if again is None:
        reasons = {read_json(job.folder.sweep.point(point).row)["invalid_reason"] for point in SERVICES[0].points}
        [reason] = reasons
        assert "the rest could not be submitted: " in reason
        assert not after.path.exists()
        return
    try:
        assert read_json(job.folder.outcome)["resubmitted"] == again
        assert job_state(after) in ("PENDING", "RUNNING")
        assert read_task(after).services == tuple(SERVICES)
    finally:
        cancel(after)


# --- each in its own way


def test_auto_is_slurm_where_sbatch_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert base.settled("auto") == "slurm"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert base.settled("auto") == "local"
    assert [base.settled(name) for name in CASES] == list(CASES)


@pytest.mark.parametrize("name", ASKS_SLURM)
def test_a_refused_cancel_is_said_in_slurms_words(name: str, submit: Callable[..., Job], slurm: FakeSlurm) -> None:
    job = submit(name)
    if name == "current":
        until(job.folder.stdout(0).exists, "the step")
    with slurm.change() as state:
        state["jobs"][job.job_id]["user"] = "you"
    with pytest.raises(RunError, match="permission denied"):
        cancel(job.folder)
    assert job_state(job.folder) not in ENDED


STRANGERS = (
    ("slurm", {"owner": "you(61002)"}, "belongs to you"),
    ("script", {"owner": "you(61002)"}, "belongs to you"),
    ("slurm", {"asked": {"job-name": "sweep-other-ab12-0"}}, "its name is 'sweep-other-ab12-0'"),
    ("script", {"submitted": "2001-02-03T04:05:06"}, "it was submitted at 2001-02-03T04:05:06"),
    ("slurm", {"purged": True}, "Slurm does not say what it is"),
)


@pytest.mark.parametrize(("name", "its", "words"), STRANGERS)
def test_a_job_that_has_the_id_of_ours_by_now_is_left_alone(
    name: str,
    its: dict[str, Any],
    words: str,
    submit: Callable[..., Job],
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = submit(name)
    with slurm.change() as state:
        state["jobs"][job.job_id] |= its
    monkeypatch.setattr(base, "_state", lambda *_: "RUNNING")
    with pytest.raises(RunError, match=words):
        cancel(job.folder)
    assert slurm.calls("scancel") == []


def test_an_id_that_slurm_has_given_again_is_not_our_job(submit: Callable[..., Job], slurm: FakeSlurm) -> None:
    job = submit("slurm")
    slurm.job(job.job_id, "RUNNING", owner="you(61002)")
    assert job_state(job.folder) == "RUNNING", "a colleague looks at a sweep too"
    Job(job.folder, job.job_id, "slurm", 2, 1.0).write()
    assert job_state(job.folder) == "GONE"
    slurm.job(job.job_id, "RUNNING", submitted="1970-01-01T00:00:05")
    assert job_state(job.folder) == "RUNNING"


def test_cancel_reads_the_record_of_an_allocation_once(
    submit: Callable[..., Job], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, read = submit("slurm"), list[Any]()
    monkeypatch.setattr(base, "read_job", lambda folder: read.append(folder) or read_job(folder))
    assert cancel(job.folder) == job.job_id
    assert len(read) == 1


def test_a_local_job_that_ended_has_failed_unless_rank_0_came_to_its_end(submit: Callable[..., Job]) -> None:
    job = submit("local")
    outputs = [job.folder.stdout(task) for task in (0, 1)]
    until(lambda: all(one.exists() and "task of local" in one.read_text() for one in outputs), "both tasks")
    cancel(job.folder)
    until(lambda: job_state(job.folder) != "RUNNING", "its end")
    assert job_state(job.folder) == "FAILED"
    write_json(job.folder.outcome, {"ended": None})
    assert job_state(job.folder) == "COMPLETED"


def test_a_controller_that_has_not_started_its_tasks_is_cancelled(tmp_path: Path) -> None:
    folder = SweepDir(tmp_path / "runs/s").allocation(0, 1)
    folder.submitit.mkdir(parents=True)
    deaf = "import signal as s; s.signal(s.SIGTERM, lambda *_: None); print(flush=True); s.sigtimedwait({10}, 60)"
    output = folder.submitit / "controller.log"
    with process.detached([sys.executable, "-c", deaf, str(folder.submitit.resolve())], os.environ, output) as started:
        pass
    until(lambda: output.stat().st_size > 0, "its handler")
    Job(folder, str(started.pid), "local", 2, 1.0).write()
    assert cancel(folder) == str(started.pid)
    assert started.wait(30) == -signal.SIGKILL
    assert job_state(folder) == "FAILED"


def test_a_stranger_with_the_pid_of_an_old_controller_is_left_alone(submit: Callable[..., Job], tmp_path: Path) -> None:
    stranger, ours = submit("local"), SweepDir(tmp_path / "other/s").allocation(0, 1)
    for pid in (stranger.job_id, str(os.getpid())):
        Job(ours, pid, "local", 2, 1.0).write()
        assert job_state(ours) == "FAILED"
        assert cancel(ours) is None
    assert job_state(stranger.folder) == "RUNNING"
