"""A sweep on a real Slurm and what may happen to it: tests/fakes/world.py, with jobs instead of a local controller."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
from core_help import executable
from lab import Lab
from world import SWEEP, World

ON_SLURM = (
    *(one for one in SWEEP if one != "cluster=local"),
    *("cluster=slurm", "cluster.exclusive=false", "cluster.time_limit=10", "limits.rendezvous_s=30"),
    *("limits.heartbeat_s=4", "limits.probe_s=3", "limits.stop_s=5"),
)

SBATCH = """#!/bin/sh
# Slurm's own, but: it refuses while `refuses` is there; where `kills` is, its caller is dead before it hears the id.
cd {folder}
if [ -e refuses ]; then
  echo "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified" >&2
  exit 1
fi
if [ -e kills ]; then
  rm kills
  {sbatch} "$@" >/dev/null
  kill -9 $PPID
  exit 0
fi
exec {sbatch} "$@"
"""

STUCK_S = 20.0
"""A job of which no process lives is cancelled after that, as a user would: Slurm waits minutes for a dead
slurmstepd."""

MOST_SWEEPS = 2


@dataclass
class SlurmWorld(World):
    """One results.root on a cluster, and all that runs for it. `lab` is where."""

    lab: Lab = field(default_factory=Lab)
    sweep: tuple[str, ...] = ON_SLURM
    limit_s: float = 300.0
    _empty_since: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.bin = self.path / "bin"
        executable(self.bin / "sbatch", SBATCH.format(folder=self.bin, sbatch=shutil.which("sbatch")))

    # -- what may happen ------------------------------------------------------------------------------------------

    def launch(self) -> None:
        if len(self.sweeps()) < MOST_SWEEPS:
            super().launch()

    def refuse(self) -> None:
        """From now on the cluster refuses every job."""
        self.tell("sbatch refuses")
        (self.bin / "refuses").touch()

    def die(self) -> None:
        """Who submits next is killed when Slurm has taken the job."""
        self.tell("the next submitter is killed")
        (self.bin / "kills").touch()

    def free(self) -> None:
        super().free()
        for name in ("refuses", "kills"):
            (self.bin / name).unlink(missing_ok=True)

    def scancel(self) -> None:
        """Cancel a job by Slurm's own command."""
        if jobs := self.jobs():
            job = self.random.choice(sorted(jobs))
            self.tell(f"scancel {job}")
            with contextlib.suppress(Exception):
                self.lab.slurm("scancel", job)

    def twice(self) -> None:
        """Two resumes of one sweep at the same moment."""
        if sweeps := self.sweeps():
            sweep = self.random.choice(sweeps)
            self.tell(f"two resumes at once of {sweep.path.name}")
            for _ in range(2):
                self.run("-m", "jobs", "resume", str(sweep.path))

    # -- what is there --------------------------------------------------------------------------------------------

    def jobs(self) -> dict[str, str]:
        """Return the jobs that Slurm has for this world, and their states."""
        lines = self.lab.slurm("squeue", "--noheader", "--format=%i|%T|%o").splitlines()
        found = (line.split("|", 2) for line in lines)
        return {job: state for job, state, script in found if script.startswith(f"{self.path}/")}

    def takes_a_guard(self, words: list[str]) -> bool:
        """Slurm ends all that a step has started, guards too, where its srun or slurmstepd is gone."""
        slurms = words and (words[0].startswith("slurmstepd") or words[0].rpartition("/")[2] == "srun")
        return super().takes_a_guard(words) or bool(slurms)

    def ranks_sweep(self, words: list[str]) -> str | None:
        return super().ranks_sweep(words) if words[:1] == [sys.executable] else None  # srun has the same words

    def processes(self) -> list[psutil.Process]:
        return [*super().processes(), *self._steps()]

    def _steps(self) -> Iterator[psutil.Process]:
        """Slurm's own processes for our jobs."""
        jobs = self.jobs()
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                step = re.search(r"\[(\d+)\.", " ".join(one.cmdline())) if one.name() == "slurmstepd" else None
                if step and step[1] in jobs:
                    yield one

    # -- what must hold -------------------------------------------------------------------------------------------

    def wait_quiet(self) -> None:
        """Wait until nothing runs, and Slurm has no job of ours."""
        end = time.monotonic() + self.limit_s
        while True:
            super().wait_quiet()
            if not (jobs := self.jobs()):
                return
            self.while_waiting([])
            if time.monotonic() > end:
                raise AssertionError(f"Slurm still has {jobs}")
            time.sleep(0.2)

    def while_waiting(self, left: list[psutil.Process]) -> None:
        ours = {one.process.pid for one in self.started}
        if any(one.pid not in ours for one in left) or not self.jobs():
            self._empty_since = None
            return
        self._empty_since = self._empty_since or time.monotonic()
        if time.monotonic() - self._empty_since > STUCK_S and "PENDING" not in self.jobs().values():
            self.tell(f"cancel what has no process: {self.jobs()}")
            for job in self.jobs():
                self.lab.slurm("scancel", job)
            self._empty_since = None


def happen(world: SlurmWorld) -> None:
    """Let one thing happen."""
    verbs = (("resume",), ("resume",), ("cancel",), ("status",), ("follow",))
    what = world.random.choices(
        (world.kill, world.scancel, world.launch, world.interrupt, world.twice, world.refuse, world.die, world.free),
        (9, 3, 2, 2, 2, 1, 2, 1),
    )[0]
    world.verb(*world.random.choice(verbs)) if world.random.random() < 0.35 else what()
