"""Start a sweep on the lab, wait for an exact moment by its files, and say what is left when it is over."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from forks import HEARS_CTRL_C
from lab import Lab
from rich.console import Console

from jobs.allocation.node.cleanup import SEGMENTS, SHM, unused
from jobs.cluster.base import ENDED
from jobs.cluster.nodelist import expand_nodelist
from jobs.cluster.squeue import slurm_state
from jobs.core.files import read_json, read_lines
from jobs.core.process import TAG
from jobs.core.rundir import AllocationDir, SweepDir
from jobs.results.table import read_table
from jobs.sweep.follow import follow
from jobs.sweep.status import describe

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.03
ASK_SLURM_S = 0.15

SHORT = (
    "cluster=slurm",
    "cluster.time_limit=10",
    "limits.heartbeat_s=4",
    "limits.probe_s=3",
    "limits.stop_s=5",
    "limits.attempts=1",
    "parallel.max_model_len=1024",
    "bench.concurrency=4",
    "bench.warmup_s=0.5",
    "bench.repeats=1",
    "bench.input_tokens=64",
    "bench.output_tokens=8",
)
"""Limits for a small machine."""

POINTS = ("bench.window_s=1,120",)
"""Two points: the first is over in a second, the second lasts until the fault."""


class Late(AssertionError):
    """Something did not happen in time."""


def until(ask: Callable[[], Any], limit_s: float, what: str, poll_s: float = POLL_S) -> Any:
    """Wait until `ask` gives something true, and return it."""
    end = time.monotonic() + limit_s
    while not (found := ask()):
        if time.monotonic() > end:
            raise Late(f"waited {limit_s:g} s for {what}")
        time.sleep(poll_s)
    return found


@dataclass
class Started:
    """One sweep of one allocation on the lab, and what can be asked of it."""

    lab: Lab
    root: Path
    overrides: tuple[str, ...]
    follows: bool = False
    segments: frozenset[str] = field(default_factory=lambda: frozenset(segments()))
    launcher: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        words = [*SHORT, *self.overrides, f"results.root={self.root}", f"launch.follow={str(self.follows).lower()}"]
        self.launcher = subprocess.Popen(
            [*HEARS_CTRL_C, sys.executable, "launch.py", "-m", *words],
            cwd=ROOT,
            env=self.lab.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if not self.follows:
            self.output = self.launcher.communicate(timeout=60)[0]
            if self.launcher.returncode:
                raise AssertionError(self.output)

    @property
    def sweep(self) -> SweepDir:
        return SweepDir(until((self.root / "latest").exists, 30, "the sweep's directory") and (self.root / "latest"))

    @property
    def allocation(self) -> AllocationDir:
        until(lambda: list(self.sweep.allocations()), 30, "an allocation")
        return next(self.sweep.allocations())

    @property
    def job(self) -> str:
        """The job id of the first attempt."""
        until(self.allocation.job.exists, 30, "the job id")
        return str(read_json(self.allocation.job)["job_id"])

    def states(self, rank: int) -> list[Any]:
        """Return what a rank recorded, of all attempts at all services."""
        files = sorted((self.root / "latest").glob(f"services/*/*/rank{rank}/state.jsonl"))
        return [entry for file in files for entry in read_lines(file)]

    def wait_state(self, state: str, rank: int = 0, times: int = 1, limit_s: float = 240) -> Any:
        """Wait until a rank has entered a state so many times; return the entry."""

        def found() -> Any:
            entries = [entry for entry in self.states(rank) if entry["state"] == state]
            if self.allocation.outcome.exists() and len(entries) < times:
                raise Late(f"rank {rank} never came to {state}: {read_json(self.allocation.outcome)}")
            return entries[times - 1 : times]

        return until(found, limit_s, f"rank {rank} to be {state}")[0]

    def wait_second_window(self) -> Any:
        """Wait until the first point has its row and the window of the second is open."""
        return self.wait_state("measuring", times=2)

    def engine(self, rank: int) -> list[psutil.Process]:
        """Return the living processes of a rank's engine, the main one first.

        vLLM's engine core writes its title over its environment: it is known by its process group only.
        """
        groups = {entry["pid"] for entry in self.states(rank) if "pid" in entry}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def wait_released(self, limit_s: float, alive: Iterable[str] | None = None) -> float:
        """Wait until the job holds no node that is alive; return the time of that moment (Unix seconds).

        Args:
            limit_s: how long to wait.
            alive: names of the nodes that can be idle; default: both.
        """
        wanted = set(alive if alive is not None else (node.name for node in self.lab.layout.nodes))

        def released() -> bool:
            words = ("squeue", "--noheader", "--states=all", f"--jobs={self.job}", "--format=%T %N")
            state, _, nodes = self.lab.slurm(*words).partition(" ")
            # While a job is completing, Slurm lists the nodes that it still holds.
            return state in ENDED or (state == "COMPLETING" and not wanted & set(expand_nodelist(nodes)))

        until(released, limit_s, f"job {self.job} to release {', '.join(sorted(wanted))}", ASK_SLURM_S)
        return time.time()

    def end(self) -> End:
        """Complete the table as `python -m jobs follow` does, and return how everything ended."""
        if self.follows:
            self.output = self.launcher.communicate(timeout=90)[0]
        until(lambda: slurm_state(self.job) in ENDED, 60, "Slurm to know the end of the job", ASK_SLURM_S)
        with Path(os.devnull).open("w") as nowhere:
            follow(self.sweep, Console(file=nowhere))
        with contextlib.suppress(Late):
            # What an engine of another case leaves, which was killed, goes when that one's rank has cleaned up.
            until(lambda: not self._leaked(), 30, "shared memory to be given back", ASK_SLURM_S)
        outcome = self.allocation.outcome
        return End(
            state=slurm_state(self.job),
            table=read_table(self.sweep),
            outcome=read_json(outcome) if outcome.exists() else None,
            orphans=self.orphans(),
            leaked=self._leaked(),
            told=frozenset(point["invalid_reason"] for point in describe(self.sweep)["points"]),
            output="\n".join(self.allocation.stdout(rank).read_text() for rank in (0, 1) if self._has(rank)),
        )

    def _leaked(self) -> list[str]:
        new = segments() - self.segments
        return unused(new)

    def _has(self, rank: int) -> bool:
        return self.allocation.stdout(rank).exists()

    def orphans(self) -> list[str]:
        """Return living processes of this job on either node: engines by mark and group, ranks by their job id.

        Slurm's own srun is none of ours: on a node that was cut off it lives on for up to a minute.
        """
        found = {process.pid for rank in (0, 1) for process in self.engine(rank)}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                env = process.environ()
                ours = env.get(TAG, "").startswith(f"{self.job}/") or env.get("SLURM_JOB_ID") == self.job
                if ours and process.name() != "srun" and process.status() != psutil.STATUS_ZOMBIE:
                    found.add(process.pid)
        return [f"{pid} {_command(pid)}" for pid in sorted(found)]

    def close(self) -> None:
        """Leave nothing: cancel the jobs of this sweep and end the launcher, whatever happened before."""
        if self.launcher.poll() is None:
            self.launcher.kill()
            self.launcher.communicate()
        for job in (self.root / "latest").glob("allocations/*/*/job.json"):
            subprocess.run(["scancel", str(read_json(job)["job_id"])], env=self.lab.env, check=False)


@dataclass(frozen=True)
class End:
    """How a sweep ended."""

    state: str
    table: pd.DataFrame
    outcome: dict[str, Any] | None
    orphans: list[str]
    leaked: list[str]
    told: frozenset[str]
    """Reasons that `python -m jobs status --json` names."""
    output: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [dict(row) for _, row in self.table.iterrows()]

    def text(self) -> str:
        rows = [(row["valid"], row["truncated"], row["completed"], row["invalid_reason"]) for row in self.rows]
        return f"{self.state} {self.outcome}\n{rows}\n{self.orphans} {self.leaked}\n{self.output[-3000:]}"


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())[:100]
    except psutil.Error:
        return "(gone)"


def segments() -> set[str]:
    """Return names in /dev/shm that engines give."""
    return {path.name for path in SHM.iterdir() if SEGMENTS.match(path.name)}
