"""The faults themselves. Each waits for an exact moment by the files of the run, acts, and returns its time."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import processes
import psutil
from harness import Started, until

from jobs.core.files import read_json
from jobs.core.rundir import RankDir

Act = Callable[[Started], float]
Repair = Callable[[Started], None]


def nothing(_: object) -> None:
    """Do nothing."""


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


# -- engines -----------------------------------------------------------------------------------------------------


def engine(rank: int, number: signal.Signals) -> Act:
    """Signal a rank's whole engine tree in the second window."""

    def act(started: Started) -> float:
        started.wait_second_window()
        tree = started.engine(rank)
        assert tree, f"rank {rank} has no engine"
        moment = time.time()
        # SIGTERM goes to the main process: that is how a service is asked to end, and then exits with code 0.
        for process in tree[:1] if number == signal.SIGTERM else tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return moment

    return act


def task(rank: int, number: signal.Signals) -> Act:
    """Signal the Slurm task of a rank in the second window; its engine is not touched."""

    def act(started: Started) -> float:
        started.wait_second_window()
        owner = started.engine(rank)[0].parent()
        assert owner is not None and owner.pid > 1, f"rank {rank} has no task"
        moment = time.time()
        owner.send_signal(number)
        return moment

    return act


def engine_gone(rank: int) -> Act:
    """Wait until a rank's engine has ended by itself."""

    def act(started: Started) -> float:
        main = psutil.Process(started.wait_state("loading", rank)["pid"])
        until(lambda: _is_dead(main), 60, f"the engine of rank {rank} to end")
        return time.time()

    return act


def _is_dead(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def limit_of_loading(rank: int, limit_s: float) -> Act:
    """Return the moment at which a rank that loads for ever exceeds its limit."""
    return lambda started: float(started.wait_state("loading", rank)["time"]) + limit_s


def healthy(started: Started) -> float:
    """Return when /health was 200, a moment before the first request."""
    return float(started.wait_state("healthy")["time"])


def done(started: Started) -> float:
    """Return when the service was stopped after its last point."""
    return float(started.wait_state("done")["time"])


# -- nodes -------------------------------------------------------------------------------------------------------


def cut(node: str) -> Act:
    """Pull a node's network cable."""

    def act(started: Started) -> float:
        started.wait_second_window()
        moment = time.time()
        started.lab.cut(node)
        return moment

    return act


def heal(node: str) -> Repair:
    """Plug it in again. Slurm asks for a node that was away only now and then: a new slurmd speaks up at once."""

    def repair(started: Started) -> None:
        started.lab.heal(node)
        started.lab.kill_slurmd(node)
        started.lab.start_slurmd(node)

    return repair


def node_down(node: str) -> Act:
    """Kill slurmd and everything else on a node, all at once as a power cut does.

    What outlives the others for a moment acts on their deaths: srun tells the other node to kill its tasks. So all are
    stopped before one is killed; and srun is the first, for the kernel lets go on what was stopped when a parent dies
    and leaves its process group without one.
    """

    def act(started: Started) -> float:
        started.wait_second_window()
        layout = started.lab.layout
        moment = time.time()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in sorted(processes.inside(layout.namespace(layout.node(node), "net")), key=_is_not_srun):
                process.signal(number)
        started.lab.kill_slurmd(node)
        return moment

    return act


def _is_not_srun(process: processes.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).name() != "srun"
    return True


def node_up(node: str) -> Repair:
    """Start slurmd again."""
    return lambda started: started.lab.start_slurmd(node)


# -- the run directory -------------------------------------------------------------------------------------------


def mount_small(root: Path) -> None:
    """Make results.root a file system of its own that is soon full."""
    _mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", root)


def unmount(root: Path) -> None:
    """Take away every mount at and under this directory, the last one first."""
    mounts = [Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed([path for path in mounts if path.is_relative_to(root.resolve())]):
        subprocess.run(["umount", "-l", str(mount)], check=True)


def mend(started: Started) -> None:
    """Make the run directory writable again."""
    unmount(started.root)


def fill_root(started: Started) -> float:
    """Fill results.root in the second window."""
    started.wait_second_window()
    _fill(started.root)
    return time.time()


def _fill(folder: Path) -> None:
    """Fill a file system to its last block."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (65536, 512):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def lock_root(started: Started) -> float:
    """Make results.root read-only in the second window; files that are open stay so."""
    started.wait_second_window()
    _lock(started.root)
    return time.time()


def _lock(folder: Path) -> None:
    _mount("--bind", folder, folder)
    _mount("-o", "remount,bind,ro", folder)


def _rank_directory(started: Started, rank: int) -> RankDir:
    sweep = started.sweep
    service: str = read_json(sweep.plan)["services"][0]["service"]
    return sweep.service(service, 1).rank(rank)


def rank_directory(rank: int, how: Literal["full", "locked"]) -> Act:
    """Spoil the directory of one rank before its job, which is held, may start."""

    def act(started: Started) -> float:
        folder = _rank_directory(started, rank).path
        folder.mkdir(parents=True)
        if how == "full":
            _mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", folder)
            _fill(folder)
        else:
            _lock(folder)
        started.lab.slurm("scontrol", "release", started.job)
        until(started.allocation.head.exists, 60, "rank 0 to begin")
        return time.time()

    return act


# -- the job and the launcher ------------------------------------------------------------------------------------


def scancel(started: Started) -> float:
    """Cancel the job in the second window."""
    started.wait_second_window()
    moment = time.time()
    started.lab.slurm("scancel", started.job)
    return moment


def time_limit(started: Started) -> float:
    """Shorten the time limit in the second window; return when Slurm's SIGUSR2 came.

    Slurm looks at time limits every 30 s: the new one, in whole minutes, leaves it time for SIGUSR2. The head's state
    is the first thing that tells of the signal.
    """
    started.wait_second_window()
    ran_s = time.time() - float(read_json(started.allocation.job)["submitted"])
    limit = f"TimeLimit={math.ceil((ran_s + 40) / 60)}"
    started.lab.slurm("scontrol", "update", f"JobId={started.job}", limit)
    return float(started.wait_state("drain", times=2)["time"])


def preempt(started: Started) -> float:
    """Let a job of the higher partition take the nodes in the second window."""
    started.wait_second_window()
    moment = time.time()
    words = ("-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")
    started.lab.slurm("sbatch", *words)
    return moment


def launcher(number: signal.Signals) -> Act:
    """Signal launch.py, which follows, in the second window."""

    def act(started: Started) -> float:
        started.wait_second_window()
        moment = time.time()
        os.killpg(started.launcher.pid, number)
        started.launcher.wait(timeout=30)
        return moment

    return act
