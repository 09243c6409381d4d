"""The scripts in sbatch/ and what they call: a run directory without submitit, the rest by the script itself."""

from __future__ import annotations

import datetime
import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from core_help import ROOT, executable
from fake_slurm import FakeSlurm

from jobs.allocation import rank
from jobs.allocation.walltime import TIME_IS_UP
from jobs.cluster import script, squeue
from jobs.cluster.time_limit import SIGNAL_DELAY_S
from jobs.core.errors import ConfigError, RunError
from jobs.core.files import read_json, write_json
from jobs.core.rundir import AllocationDir
from jobs.core.tasks import read_config, read_task
from jobs.sweep import batch, road

JOB = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2"}
SCRIPTS = ("sweep.sbatch", "serve.sbatch")

RECORD = (
    "JobId=4711 JobName=serving-sweep UserId=me(1) GroupId=me(1) Priority=1 Account=(null) QOS=normal JobState=RUNNING"
    " TimeLimit=04:00:00 SubmitTime=2026-11-25T03:00:00 Partition=npu NumNodes=2 NumCPUs=4 TresPerNode=gres:npu:8"
    " Reservation=night StdOut=/home/me/logs/slurm-4711.out Command=/home/me/project/sbatch/sweep.sbatch"
)


def prepare(tmp_path: Path, *overrides: str, env: Mapping[str, str] = JOB, serve: bool = False) -> AllocationDir:
    words = ["engine=simulator", f"results.root={tmp_path / 'runs'}", *overrides]
    with pytest.MonkeyPatch.context() as shell:
        for name in JOB:
            shell.delenv(name, raising=False)
        for name, value in env.items():
            shell.setenv(name, value)
        return batch.prepare(words, ROOT / "sbatch/sweep.sbatch", serve=serve)


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    return fake


# --- prepare


def test_one_job_carries_out_the_whole_sweep(tmp_path: Path) -> None:
    folder = prepare(tmp_path, "parallel.max_model_len=8192,16384", "bench.concurrency=1,2")
    task = read_task(folder)
    assert [len(service.points) for service in task.services] == [2, 2]
    assert task.serve is False
    record = read_json(folder.job)
    assert (record["job_id"], record["kind"], record["nodes"]) == ("4711", "script", 2)
    assert len(read_json(folder.sweep.plan)["points"]) == 4
    assert read_config(folder.sweep, task.services[0].points[0]).cluster.kind == "slurm", "though it rehearses"
    assert "srun" in folder.submission.read_text()
    assert stat.S_IMODE(folder.key.stat().st_mode) == 0o600


def test_the_same_question_has_the_same_name_as_from_launch(tmp_path: Path) -> None:
    one = prepare(tmp_path, "bench.concurrency=3")
    made = road.plan([["engine=simulator", "bench.concurrency=3"]])
    assert read_task(one).services[0].points == (made.points[0].point,)
    assert read_task(one).services[0].service == made.services[0].service


def test_the_queueing_time_counts_from_the_submission(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squeue, "job_record", lambda _: RECORD)
    submitted = read_json(prepare(tmp_path).job)["submitted"]
    assert datetime.datetime.fromtimestamp(submitted).isoformat() == "2026-11-25T03:00:00"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "SLURM_JOB_ID = not set: this process is not a task of a Slurm step"),
        (
            JOB | {"SLURM_JOB_NUM_NODES": "1"},
            "--nodes = 1: the sweep needs 2 nodes and the job has 1. Submit it by sbatch --nodes=2",
        ),
    ],
)
def test_what_cannot_be_prepared_is_said(tmp_path: Path, env: Mapping[str, str], words: str) -> None:
    with pytest.raises((ConfigError, RunError)) as caught:
        prepare(tmp_path, env=env)
    assert words in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_one_service_at_a_time_is_served(tmp_path: Path) -> None:
    folder = prepare(tmp_path, serve=True)
    task = read_task(folder)
    assert task.serve
    [point] = task.services[0].points
    assert read_config(folder.sweep, point).limits.idle_s > 24 * 3600, "people think between two requests"
    with pytest.raises(ConfigError, match="these are 2 points"):
        prepare(tmp_path, "parallel.max_model_len=8192,16384", serve=True)
    given = prepare(tmp_path, "limits.idle_s=60", serve=True)
    assert read_config(given.sweep, point).limits.idle_s == 60


# --- what the time limit leaves


def left(folder: AllocationDir) -> None:
    services = [{"service": s.service, "points": list(s.points)} for s in read_task(folder).services]
    write_json(folder.outcome, {"ended": TIME_IS_UP, "valid": False, "time": 0, "left": services, "yielded": False})


SBATCH = """#!PYTHON -SE
import json, sys
json.dump(sys.argv, open("LOG", "w"))
REFUSE
print("4712;cluster")
"""


def sbatch(tmp_path: Path, slurm: FakeSlurm, refuse: str = "") -> Path:
    log = tmp_path / "sbatch.json"
    text = SBATCH.replace("PYTHON", sys.executable).replace("LOG", str(log)).replace("REFUSE", refuse)
    executable(slurm.folder / "sbatch", text)
    return log


def test_the_rest_is_submitted_by_the_same_script(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = sbatch(tmp_path, slurm)
    monkeypatch.setattr(squeue, "job_record", lambda _: RECORD)
    folder = prepare(tmp_path, "parallel.max_model_len=8192,16384")
    assert batch.rest(folder) is None, "nothing is left"
    left(folder)
    assert batch.rest(folder) == "4712"
    after = folder.sweep.allocation(0, 2)
    assert read_json(log)[1:] == [
        "--parsable", "--dependency=afterany:4711", "--partition=npu", "--qos=normal", "--reservation=night",
        "--time=04:00:00", "--nodes=2", "--gres=npu:8", "--job-name=serving-sweep",
        "--output=/home/me/logs/slurm-%j.out",
        str(after.submission), "--allocation", str(after.path),
    ]  # fmt: skip
    assert read_task(after).services == read_task(folder).services
    assert read_json(after.job)["job_id"] == "4712"
    assert after.submission.read_text() == folder.submission.read_text()
    assert read_json(folder.outcome)["resubmitted"] == "4712"
    assert list(folder.sweep.allocations()) == [after]


@pytest.mark.parametrize(
    ("output", "next_one"),
    [
        ("/data/run-47/4711/slurm-4711.out", "/data/run-47/4711/slurm-%j.out"),
        ("/data/14711/4711-147110.log", "/data/14711/%j-147110.log"),
        ("/data/my runs/sweep.log", "/data/my runs/sweep.log"),
    ],
)
def test_the_next_job_writes_into_the_directory_of_this_one(tmp_path: Path, output: str, next_one: str) -> None:
    record = RECORD.replace("/home/me/logs/slurm-4711.out", output).replace("serving-sweep", "my sweep", 1)
    words = script.sbatch_command("4711", record, prepare(tmp_path))
    assert f"--output={next_one}" in words
    assert "--job-name=my sweep" in words


def test_a_rest_that_cannot_be_submitted_gets_rows(tmp_path: Path, slurm: FakeSlurm) -> None:
    sbatch(tmp_path, slurm, refuse='sys.exit("sbatch: error: the partition is closed")')
    folder = prepare(tmp_path)
    left(folder)
    assert batch.rest(folder) is None
    [point] = read_task(folder).services[0].points
    reason = read_json(folder.sweep.point(point).row)["invalid_reason"]
    assert "could not be submitted: sbatch: error: the partition is closed" in reason


def test_attempts_are_limited(tmp_path: Path, slurm: FakeSlurm) -> None:
    log = sbatch(tmp_path, slurm)
    folder = prepare(tmp_path, "limits.attempts=1")
    left(folder)
    assert batch.rest(folder) is None
    assert not log.exists()


# --- the scripts


def text(name: str) -> str:
    return (ROOT / "sbatch" / name).read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_shell_accepts_it(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / "sbatch" / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "set -euo pipefail" in text(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_asks_for_what_a_submitted_allocation_asks_for(name: str) -> None:
    asked = set(re.findall(r"^#SBATCH (--\S+)", text(name), re.MULTILINE))
    assert {"--nodes=2", "--ntasks-per-node=1", "--no-requeue", f"--signal=USR2@{SIGNAL_DELAY_S}"} <= asked
    assert "--kill-on-bad-exit=1 --wait=60" in text(name)


def test_ranks_write_where_the_run_directory_looks() -> None:
    folder = AllocationDir(Path("/a"))
    for name in SCRIPTS:
        assert f'--output="$allocation/{folder.stdout(0).name.replace("0", "%t")}"' in text(name)


STAND_IN = """#!/bin/bash
echo "$0 $*${PYXIS_CONTAINER_IMAGE:+ in a container}" >> LOG
case "$*" in
  *" prepare "*) echo PLACE/allocations/0/1 ;;
esac
exit CODE
"""


def run_script(
    tmp_path: Path, name: str, *words: str, code: int = 0, **env: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a script as slurmd does, a copy of it elsewhere, with stand-ins for python and srun."""
    project, log = tmp_path / "my project", tmp_path / "calls"
    (project / "jobs/allocation").mkdir(parents=True)
    (project / "jobs/allocation/rank.py").write_text("")
    stand_in = STAND_IN.replace("LOG", str(log)).replace("PLACE", "'/runs/my sweep'")
    executable(project / ".venv/bin/python", stand_in.replace("CODE", "0"))
    executable(tmp_path / "bin/srun", stand_in.replace("CODE", str(code)))
    script = executable(tmp_path / "spool/slurm_script", text(name))
    variables: dict[str, Any] = os.environ | {"SLURM_SUBMIT_DIR": str(project), "SLURM_JOB_NUM_NODES": "2"} | env
    done = subprocess.run(
        ["bash", str(script), *words], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    return done, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("code", [0, 3])
def test_a_sweep_script_runs_prepare_the_ranks_and_the_rest(tmp_path: Path, code: int) -> None:
    done, calls = run_script(tmp_path, "sweep.sbatch", "a=1,2", "b=x y", code=code)
    assert done.returncode == code, done.stderr
    python, spool = tmp_path / "my project/.venv/bin/python", tmp_path / "spool/slurm_script"
    allocation = "/runs/my sweep/allocations/0/1"
    assert calls == [
        f"{python} -m jobs prepare --script {spool} -- a=1,2 b=x y",
        f"{tmp_path}/bin/srun --nodes=2 --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=60 --unbuffered"
        f" --output={allocation}/stdout-%t.log {python} -m jobs.allocation.rank {allocation}",
        f"{python} -m jobs rest {allocation}",
    ]
    assert "run directory: /runs/my sweep\n" in done.stdout


def test_a_resubmitted_script_takes_its_allocation(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, "sweep.sbatch", "--allocation", "/runs/s/allocations/0/2")
    assert done.returncode == 0
    assert not any(" prepare " in call for call in calls)
    assert calls[0].endswith("-m jobs.allocation.rank /runs/s/allocations/0/2")


def test_a_serve_script_leaves_nothing_to_submit_again(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, "serve.sbatch", "a=1")
    assert done.returncode == 0
    assert [" prepare --serve " in calls[0], "srun" in calls[1], len(calls)] == [True, True, 2]
    assert "-m jobs reach /runs/my sweep\n" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_finds_the_project_from_below_or_says_so(tmp_path: Path, name: str) -> None:
    below = tmp_path / "my project/sbatch"
    done, calls = run_script(tmp_path, name, SLURM_SUBMIT_DIR=str(below))
    assert done.returncode == 0
    assert calls
    done, calls = run_script(tmp_path / "again", name, SLURM_SUBMIT_DIR="/usr/share")
    assert (done.returncode, calls) == (2, [])
    assert "error: /usr/share is not the project's directory" in done.stderr


def test_nothing_here_needs_submitit(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['submitit'] = None\n"
        "from jobs.__main__ import main\n"
        f"sys.exit(main(['prepare', 'engine=simulator', 'results.root={tmp_path / 'runs'}']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | JOB, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read_task(AllocationDir(Path(done.stdout.strip()))).services


@pytest.mark.parametrize(
    ("words", "code", "said"), [([], 2, "usage: srun"), (["/nowhere"], 1, "SLURM_PROCID = not set")]
)
def test_a_rank_outside_of_a_step_says_so(
    words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert rank.main(words) == code
    output = capsys.readouterr()
    assert said in output.out + output.err


def test_a_sweep_that_cannot_fit_says_so_and_keeps_its_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no point can be run"):
        prepare(tmp_path, "parallel.gpu_memory_utilization=0.5", "launch.infeasible=drop")
    [run] = [path for path in (tmp_path / "runs").iterdir() if path.is_dir() and not path.is_symlink()]
    assert (run / "table.csv").exists()
