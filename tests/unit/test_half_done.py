"""Nothing half-done is without a way back: a refused submission, a dead launcher, two resumes, a dead controller."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from core_help import config
from fake_slurm import FakeSlurm, executable
from results_help import planned, row

from jobs.allocation import submission
from jobs.cluster import base, ports
from jobs.cluster.base import Job, Request, cancel, job_state
from jobs.cluster.script import Script
from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.files import write_json
from jobs.core.lock import exclusive
from jobs.core.rundir import SweepDir
from jobs.core.tasks import AllocationTask, ServiceTask
from jobs.sweep import resume
from jobs.sweep.lost import lost_rows
from jobs.sweep.status import phase


class Refusing:
    """A cluster that refuses everything."""

    on_loopback, queues, poll_s = False, True, 1.0

    def check(self, request: Request) -> None:
        pass

    def submit(self, folder: object, request: Request) -> Job:
        raise RunError("sbatch", "x", "Invalid account", "Ask.")


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (submission, resume, base):
        monkeypatch.setattr(module, "scheduler", lambda _: Refusing())


def sweep_of(tmp_path: Path) -> tuple[SweepDir, str, str]:
    sweep, made = planned(tmp_path / "s", "engine=simulator", "bench.concurrency=1")
    return sweep, made.points[0].point, made.points[0].service


@pytest.mark.usefixtures("refusing")
def test_a_refused_submission_leaves_nothing_that_waits_for_ever(tmp_path: Path) -> None:
    sweep, point, service = sweep_of(tmp_path)
    work = AllocationTask((ServiceTask(service, (point,)),), 1)
    with pytest.raises(RunError, match="Invalid account"):
        submission.submit(sweep.allocation(0, 1), work, Request(config("cluster=local"), 1), "slurm")
    assert list(sweep.allocations()) == []


@pytest.mark.parametrize(
    ("program", "said"),
    [("exit 1", "it failed and said nothing"), ("kill -9 $$", "it failed and said nothing"), ("echo hello", "hello")],
)
def test_a_submission_that_fails_without_a_word_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    executable(tmp_path / "bin/sbatch", f"#!/bin/sh\n{program}\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    sweep, point, service = sweep_of(tmp_path)
    work = AllocationTask((ServiceTask(service, (point,)),), 1)
    with pytest.raises(RunError, match=said):
        submission.submit(sweep.allocation(0, 1), work, Request(config("cluster=slurm"), 1), "slurm")
    assert list(sweep.allocations()) == []


@pytest.mark.parametrize(("program", "said"), [("exit 1", "it failed and said nothing"), ("echo ../4711", "a number")])
def test_a_script_that_was_submitted_again_has_the_number_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    for name in ("sbatch", "scontrol"):
        executable(tmp_path / f"bin/{name}", f"#!/bin/sh\n{program if name == 'sbatch' else 'exit 0'}\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    sweep, _, _ = sweep_of(tmp_path)
    before, folder = (sweep.allocation(0, attempt) for attempt in (1, 2))
    for one in (before, folder):
        one.path.mkdir(parents=True)
    before.submission.write_text("#!/bin/sh\n")
    asked = replace(Request(config("cluster=slurm"), 1), after=Job(before, "4710", "script", 1, 0.0))
    with pytest.raises(RunError, match=said):
        Script().submit(folder, asked)


@pytest.mark.usefixtures("refusing")
def test_a_refused_resume_keeps_the_rows(tmp_path: Path) -> None:
    sweep, made = planned(tmp_path / "s", "engine=simulator", "bench.concurrency=1")
    row(sweep, made.points[0], invalid_reason="it failed")
    path = sweep.point(made.points[0].point).row
    before = path.read_bytes()
    for _ in range(2):  # and the next one finds its way too
        with pytest.raises(RunError, match="Invalid account"):
            resume.resume(sweep, retry_failed=True)
        assert path.read_bytes() == before


def half_submitted(tmp_path: Path) -> SweepDir:
    """Return a sweep whose launcher died between allocation.json and job.json."""
    sweep, point, service = sweep_of(tmp_path)
    folder = sweep.allocation(0, 1)
    folder.path.mkdir(parents=True)
    write_json(folder.task, AllocationTask((ServiceTask(service, (point,)),), 1))
    return sweep


def test_an_allocation_that_was_never_submitted_has_ended(tmp_path: Path) -> None:
    [folder] = half_submitted(tmp_path).allocations()
    with exclusive(folder.submitting):
        assert job_state(folder) == "UNKNOWN"  # its launcher is at it
        assert phase(folder) == f"being submitted by process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(RunError, match=f"being submitted by process {os.getpid()}"):
            cancel(folder)
    assert job_state(folder) == "GONE"
    assert cancel(folder) is None and not phase(folder)
    [lost] = lost_rows(folder, "GONE").values()
    assert lost["invalid_reason"] == "not run: its allocation was never submitted: the launcher ended before that"
    folder.head.write_text("{}")  # a rank of it has begun: it was submitted after all
    assert job_state(folder) == "UNKNOWN"


def test_a_job_that_slurm_had_taken_when_its_launcher_died_is_found_by_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = half_submitted(tmp_path)
    [folder] = sweep.allocations()
    slurm = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{slurm.folder}:{os.environ['PATH']}")
    assert job_state(folder) == "GONE"
    folder.submitit.mkdir()
    script = folder.submitit / ".submission_file_0123.sh"
    script.write_text("")
    assert job_state(folder) == "GONE", "sbatch refused it"
    slurm.down("slurmctld")
    assert job_state(folder) == "UNKNOWN"
    slurm.down()
    slurm.job("4710", "PENDING", nodes="2", script=f"{folder.path}-other/submitit/x.sh")
    slurm.job("4711", "PENDING", nodes="2", script=str(script), asked={"job-name": f"sweep-{sweep.path.name}-ab12-0"})
    folder.head.write_text("{}")  # its launcher lived when its first rank looked
    assert cancel(folder) == "4711", "nobody has asked for its state before"
    slurm.job("4711", "PENDING", nodes="2", script=str(script), asked={"job-name": f"sweep-{sweep.path.name}-ab12-0"})
    with pytest.raises(RunError, match="allocation 0 is pending"):
        resume.resume(sweep, retry_failed=False)


DYING = """
import os, signal, sys
from pathlib import Path
from core_help import config
from jobs.cluster import base, local
from jobs.core.rundir import AllocationDir
before, write = sys.argv[2] == "before", base.Job.write
def die(job):
    print(job.job_id, flush=True)
    before or write(job)
    os.kill(os.getpid(), signal.SIGKILL)
base.Job.write = die
local.Local().submit(AllocationDir(Path(sys.argv[1])), base.Request(config("cluster=local"), 2))
"""


@pytest.mark.parametrize(("when", "state"), [("before", "GONE"), ("after", "FAILED")])
def test_no_rank_runs_before_its_record_whenever_its_launcher_is_killed(tmp_path: Path, when: str, state: str) -> None:
    [folder] = half_submitted(tmp_path).allocations()
    words = [sys.executable, "-c", DYING, str(folder.path), when]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    died = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(died.stdout)).wait(30)  # it was never told to go
    assert job_state(folder) == state
    assert not folder.stdout(0).exists() and cancel(folder) is None


def test_a_sweep_whose_configs_are_missing_was_never_begun(tmp_path: Path) -> None:
    sweep, point, _ = sweep_of(tmp_path)
    sweep.point(point).config.unlink()
    with pytest.raises(RunError, match="it was never begun"):
        resume.resume(sweep, retry_failed=False)


def test_of_two_resumes_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, _, _ = sweep_of(tmp_path)
    inside, both = [], []

    def once(_: SweepDir, *, retry_failed: bool) -> int:
        inside.append(1)
        both.append(len(inside))
        threading.Event().wait(0.05)
        inside.pop()
        return 0

    monkeypatch.setattr(resume, "submit_left", once)
    threads = [threading.Thread(target=resume.resume, args=(sweep,), kwargs={"retry_failed": False}) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert both == [1, 1, 1, 1]


def test_a_process_is_found_by_the_end_of_its_command_line(tmp_path: Path) -> None:
    words = ["-c", "import sys; sys.stdin.read()", str(tmp_path), "local"]
    with subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE) as child:
        assert process.with_arguments(words[-2:]) == [child.pid]
        assert process.with_arguments([str(tmp_path), "other"]) == []
        assert child.stdin
        child.stdin.close()


TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:3E80 00000000:0000 0A 00000000:00000000 00:00000000 00000000 {uid}        0 1 1 0 100 0 0 10 0
   1: 0100007F:3E81 00000000:0000 0A 00000000:00000000 00:00000000 00000000  61003        0 2 1 0 100 0 0 10 0
   2: 0100007F:3E80 0100007F:9999 01 00000000:00000000 00:00000000 00000000  61004        0 1 1 0 100 0 0 10 0
"""


@pytest.mark.parametrize(("uid", "good"), [(os.geteuid(), True), (0, True), (61_002, False)])
def test_the_api_that_gets_the_key_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, good: bool
) -> None:
    monkeypatch.setattr(ports, "PROC_NET", tmp_path)
    assert ports.listeners(16_000) is None
    assert ports.listens("127.0.0.1", 16_000, mine), "nobody can tell"
    (tmp_path / "tcp").write_text(TABLE.format(uid=f"{uid:5}"))
    assert ports.listeners(16_000) == {ports.Listener(uid, 1)}
    assert ports.listeners(1) == set()
    assert ports.listeners(16_001) == {ports.Listener(61_003, 2)}
    assert ports.listeners(16_001, "127.0.0.2") == set(), "another replica's, on a loopback address of its own"
    assert not ports.listens("127.0.0.1", 1, mine), "nobody listens yet: nothing is sent"
    if good:
        assert ports.listens("127.0.0.1", 16_000, nobodys)
    else:
        with pytest.raises(RunError, match="user 61002 listens there in the engine's place"):
            ports.listens("127.0.0.1", 16_000, mine)


def mine(pid: int) -> bool:
    return pid == os.getpid()


def nobodys(_: int) -> bool:
    return False


def test_another_program_of_ours_is_not_the_engine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        [one] = ports.listeners(port) or ()
        assert one.pids() == [os.getpid()]
        assert ports.listens("127.0.0.1", port, mine)
        with pytest.raises(RunError, match=rf"process {os.getpid()} \S+, which is not of this service, listens there"):
            ports.listens("127.0.0.1", port, nobodys)
