"""Places that another user may write while a program of ours begins there: nothing that lies in them is run."""

from __future__ import annotations

import os
import pickle
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from core_help import change, config
from fake_slurm import FakeSlurm
from results_help import planned
from users import Host, two_users
from world import ONE, ROOT

from jobs.allocation import submission
from jobs.allocation.node.cleanup import SHM, baseline, leftovers
from jobs.cluster.base import Request
from jobs.core.files import private_place
from jobs.core.rundir import SweepDir
from jobs.core.tasks import ServiceTask

SHADOWED = ("jobs", "submitit", "containers", "pip", "hydra_plugins", "random", "logging", "psutil", "numpy")


@pytest.fixture
def host() -> Iterator[Host]:
    with two_users() as made:
        yield made


class Evil:
    """What runs a command where somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[list[str]]]:
        return subprocess.call, (["/bin/touch", str(self.mark)],)


def shadow(place: Path, mark: Path) -> None:
    """Make modules of every name that ours ask for, which leave a mark."""
    for name in SHADOWED:
        folder = place / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(f"import os\nos.system('/bin/touch {mark}')\n")


def test_no_module_of_the_directory_in_which_a_sweep_is_begun_is_loaded(host: Host) -> None:
    place, mark = host.shared / "there", host.shared / "mark"
    host.attacker.call(shadow, place, mark)
    argv = [sys.executable, str(ROOT / "launch.py"), *ONE, f"results.root={host.victim.home}/runs"]
    done = host.victim.ask("/bin/sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(place), *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("script", ["sweep", "serve"])
def test_a_batch_script_of_an_installed_wheel_runs_nothing_that_lies_where_sbatch_was_called(
    host: Host, script: str
) -> None:
    """Nor above it, which is looked at where it was called in sbatch/ of a checkout."""
    place, mark = host.shared / "there", host.shared / "mark"

    def prepare() -> None:
        for one in (place, host.shared):
            shadow(one, mark)
            (one / ".venv/bin").mkdir(parents=True)
            (one / ".venv/bin/python").write_text(f"#!/bin/sh\n/bin/touch {mark}\n")
            (one / ".venv/bin/python").chmod(0o755)
        (host.shared / "jobs/allocation").mkdir()
        (host.shared / "jobs/allocation/rank.py").write_text(f"import os\nos.system('/bin/touch {mark}')\n")

    host.attacker.call(prepare)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    words = ("/bin/bash", str(ROOT / f"sbatch/{script}.sbatch"), "engine=simulator")
    done = host.victim.ask(*words, SLURM_SUBMIT_DIR=str(place), PATH=path)
    assert done.returncode == 1 and "SLURM_JOB_ID = not set" in done.stderr, done.stdout + done.stderr
    assert not mark.exists()


def test_a_job_of_slurm_unpickles_nothing_from_a_directory_that_was_exchanged_while_it_waited(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who owns results.root can rename a sweep and put another in its place, and a job may wait for days."""
    root, mark = host.attacker.home.parent / "runs", host.shared / "mark"
    root.mkdir()
    root.chmod(0o777)
    os.chown(root, host.attacker.uid, host.attacker.uid)
    slurm = FakeSlurm(host.victim.home / "bin")
    for path in (slurm.folder, *slurm.folder.iterdir()):
        os.chown(path, host.victim.uid, host.victim.uid)

    def begin() -> tuple[Path, str]:
        os.chdir(ROOT)
        os.environ["PATH"] = f"{slurm.folder}:{os.environ['PATH']}"
        sweep, made = planned(root / "s", "engine=simulator", "bench.concurrency=1")
        task = ServiceTask(made.points[0].service, (made.points[0].point,))
        asked = Request(change(config("cluster=slurm")), 2)
        folder = submission.submit_allocation(sweep, 0, 1, [task], asked).folder
        [command] = (one for one in folder.submission.read_text().splitlines() if one.startswith("srun"))
        return folder.path, command

    folder, command = host.victim.call(begin)

    def exchange() -> None:
        (root / "s").rename(root / "away")
        there = SweepDir(root / "s").allocation(0, 1).submitit
        there.mkdir(parents=True)
        for name in ("4711_submitted.pkl", "4711_0_submitted.pkl"):
            (there / name).write_bytes(pickle.dumps(Evil(mark)))
        for path in (root / "s", *(root / "s").rglob("*")):
            path.chmod(0o777)

    host.attacker.call(exchange)
    words = shlex.split(command)
    argv = words[next(at for at, word in enumerate(words) if word.endswith(("python", "python3", "python3.11"))) :]
    task = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    step = task | {"SLURM_NODEID": "0", "SLURM_LOCALID": "0", "SUBMITIT_EXECUTOR": "slurm"}
    done = host.victim.ask("/bin/sh", "-c", f'cd {ROOT} && exec "$@"', "sh", *argv, **step)
    assert done.returncode == 1 and done.stdout.startswith("error: "), done.stdout + done.stderr
    assert not mark.exists()
    assert not list(folder.glob("job.json"))


def test_links_of_others_in_dev_shm_are_no_segments_of_ours(host: Host) -> None:
    """Else thousands of them would stand in the record of a service, which could not be read any more."""
    mine = host.victim.home / "mine"
    host.victim.call(mine.write_text, "mine")
    names = [SHM / f"psm_{os.getpid()}_{number}" for number in range(3)]
    before = host.victim.call(baseline)
    try:
        host.attacker.call(lambda: [name.symlink_to(mine) for name in names])
        assert host.victim.call(leftovers, before, ()) == []
        assert host.victim.call(mine.read_text) == "mine"
    finally:
        for name in names:
            name.unlink(missing_ok=True)


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_nothing_is_kept_in_a_temporary_directory_whose_owner_can_exchange_it(host: Host, mode: int) -> None:
    """An engine has its sockets there, and a container the script that it begins with."""
    place = host.shared / "tmp"
    host.attacker.call(lambda: (place.mkdir(), place.chmod(mode)))
    for bad in (place, host.attacker.home, host.attacker.home / "tmp"):
        assert host.victim.call(private_place, str(bad)) == "/tmp"
    for good in (host.victim.home / "tmp", host.shared, Path("/tmp"), Path("/nonexistent"), Path("/etc/passwd/x")):
        assert host.victim.call(private_place, str(good)) == str(good)
