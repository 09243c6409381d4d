"""Start a sweep on the lab, wait for an exact moment by its files, and say what is left when it is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from lab import Lab
from rich.console import Console

from jobs.follow import follow
from jobs.jobstate import ENDED, slurm_state
from jobs.process import MARK
from jobs.results.table import read_table
from jobs.rundir import AllocationDir, SweepDir, read_json, read_lines
from jobs.service.clean import SEGMENTS, SHM

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.03

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
    "bench.input_tokens=64",
    "bench.output_tokens=8",
)
"""Limits for a small machine. Two points: the first is over in a second, the second lasts until the fault."""

POINTS = ("bench.window_s=1,60",)


class Late(AssertionError):
    """Something did not happen in time."""


def until(ask: Callable[[], Any], limit_s: float, what: str) -> Any:
    """Wait until `ask` gives something true, and return it."""
    end = time.monotonic() + limit_s
    while not (found := ask()):
        if time.monotonic() > end:
            raise Late(f"waited {limit_s:g} s for {what}")
        time.sleep(POLL_S)
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
            [sys.executable, "launch.py", "-m", *words],
            cwd=ROOT,
            env=self.lab.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A test run in the background has SIGINT ignored, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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

    def wait_state(self, state: str, rank: int = 0, times: int = 1, limit_s: float = 60) -> Any:
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
        """Return the living processes of a rank's engine, the main one first."""
        found = [p for p, mark in marked() if mark.startswith(f"{self.job}/") and mark.endswith(f"/{rank}")]
        return sorted(found, key=lambda process: process.create_time())

    def wait_released(self, limit_s: float, alive: Iterable[str] | None = None) -> float:
        """Wait until the job holds no node that is alive; return the time of that moment (Unix seconds).

        Args:
            limit_s: how long to wait.
            alive: names of the nodes that can be idle; default: both.
        """
        wanted = set(alive if alive is not None else (node.name for node in self.lab.layout.nodes))

        def released() -> bool:
            states = self.lab.node_states()
            queue = self.lab.slurm("squeue", "--noheader", "--states=all", f"--jobs={self.job}", "--format=%T %N")
            if any(word in queue for word in ("RUNNING", "PENDING")):
                return False
            return all(states.get(name) == "idle" for name in wanted)

        until(released, limit_s, f"job {self.job} to release {', '.join(sorted(wanted))}")
        return time.time()

    def end(self) -> End:
        """Complete the table as `python -m jobs follow` does, and return how everything ended."""
        if self.follows:
            self.output = self.launcher.communicate(timeout=90)[0]
        else:
            with Path(os.devnull).open("w") as nowhere:
                follow(self.sweep, Console(file=nowhere))
        until(lambda: slurm_state(self.job) in ENDED, 30, "Slurm to know the end of the job")
        outcome = self.allocation.outcome
        return End(
            state=slurm_state(self.job),
            table=read_table(self.sweep),
            outcome=read_json(outcome) if outcome.exists() else None,
            orphans=self.orphans(),
            leaked=sorted(segments() - self.segments - in_use()),
            output="\n".join(self.allocation.stdout(rank).read_text() for rank in (0, 1) if self._has(rank)),
        )

    def _has(self, rank: int) -> bool:
        return self.allocation.stdout(rank).exists()

    def orphans(self) -> list[str]:
        """Return living processes of this job on either node: engines by their mark, ranks by their job id."""
        found = []
        for process in psutil.process_iter():
            try:
                env = process.environ()
                ours = env.get(MARK, "").startswith(f"{self.job}/") or env.get("SLURM_JOB_ID") == self.job
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
            except psutil.Error:
                continue
        return found

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
    output: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [dict(row) for _, row in self.table.iterrows()]

    def text(self) -> str:
        rows = [(row["valid"], row["truncated"], row["completed"], row["invalid_reason"]) for row in self.rows]
        return f"{self.state} {self.outcome}\n{rows}\n{self.orphans} {self.leaked}\n{self.output[-3000:]}"


def marked() -> list[tuple[psutil.Process, str]]:
    """Return the living engine processes of this machine, on both nodes, with their marks."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK)
            if mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, mark))
        except psutil.Error:
            continue
    return found


def segments() -> set[str]:
    """Return names in /dev/shm that engines give."""
    return {path.name for path in SHM.iterdir() if SEGMENTS.match(path.name)}


def in_use() -> set[str]:
    """Return names in /dev/shm that a living process has mapped: they are not leaked."""
    used = set()
    for process in psutil.process_iter():
        try:
            used |= {Path(region.path).name for region in process.memory_maps() if region.path.startswith(str(SHM))}
        except (psutil.Error, OSError):
            continue
    return used
