"""A sweep and what may happen to it: launches, kills, resumes, cancels, a full disk, in any order and at any time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
from forks import ROOT, Zygote

from jobs.core.rundir import SweepDir

ENGINE = f"[{sys.executable},-I,-S,{ROOT / 'tests/fakes/quick_engine.py'}]"
ONE = (
    *("-m", "experiment=demo", "engine=simulator", "cluster=local", f"engine.command={ENGINE}", "bench.canary=off"),
    *("bench.num_requests=4", "bench.warmup_s=0", "bench.repeats=1", "bench.check_share=0", "bench.input_tokens=16"),
    "bench.concurrency=1",
)
"""The least sweep."""
SWEEP = (*ONE[:-1], "parallel.max_model_len=2048,4096", "bench.concurrency=1,2")
POINTS = 4
LIMIT_S = 120.0
"""A verb, or what a sweep leaves behind, that takes longer hangs: this is a hundred times what it needs."""
READERS = (("status",), ("table",), ("report",), ("diagnose",), ("follow",), ("cancel",))


@dataclass
class Started:
    """A launch or a verb: what it was, and what it said."""

    words: str
    process: psutil.Process
    output: Path
    hit: bool = False
    """It was killed: what it says ends anywhere."""

    def said(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


@dataclass
class World:
    """One results.root, and all that runs for it."""

    path: Path
    zygote: Zygote
    random: Random
    started: list[Started] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    valid: dict[Path, list[Any]] = field(default_factory=dict)

    sweep: tuple[str, ...] = SWEEP
    limit_s: float = LIMIT_S
    env: dict[str, str] = field(default_factory=dict)
    unguarded: bool = False
    """A guard was killed: what it would have ended and removed is left where its rank is killed as well."""

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.disk, self.filler = self.path / "disk", self.path / "disk/filler"
        self.root = self.disk / "runs"
        for name in ("disk", "bin", "said"):
            (self.path / name).mkdir()
        self.tmp = Path(tempfile.mkdtemp(prefix="w-", dir="/tmp"))  # short, or an engine takes another one

    def tell(self, words: str) -> None:
        self.told.append(f"{time.monotonic() - self.began:6.2f} {words}")

    # -- what may happen ------------------------------------------------------------------------------------------

    def run(self, *argv: str) -> Started:
        """Start a program of ours."""
        env = self.env | {"TMPDIR": str(self.tmp), "PATH": f"{self.path}/bin:{os.environ['PATH']}", "COLUMNS": "200"}
        output = self.path / "said" / str(len(self.started))
        words = " ".join(argv[:4])
        one = Started(words, self.zygote.start(list(argv), env, output), output)
        self.started.append(one)
        return one

    def launch(self) -> None:
        self.tell("launch")
        self.run("launch.py", *self.sweep, f"results.root={self.root}")

    def verb(self, *words: str) -> None:
        if sweeps := self.sweeps():
            sweep = self.random.choice(sweeps)
            self.tell(f"{words} {sweep.path.name}")
            self.run("-m", "jobs", words[0], str(sweep.path), *words[1:])

    def kill(self) -> None:
        """Kill any process of this world."""
        if living := self.processes():
            one = self.random.choice(living)
            with contextlib.suppress(psutil.Error):
                words = one.cmdline()
                self.tell(f"kill -9 {one.pid} {' '.join(words)[-150:]}")
                self.unguarded |= self.takes_a_guard(words)
                for mine in self.started:
                    mine.hit |= mine.process == one
                one.kill()

    def takes_a_guard(self, words: list[str]) -> bool:
        """Return whether a guard ends with the process of this command line."""
        return "serving-sweep-guard" in words

    def interrupt(self) -> None:
        """Ctrl-C in one of the programs that we started."""
        if living := [one for one in self.started if one.process.is_running()]:
            one = self.random.choice(living)
            self.tell(f"Ctrl-C {one.words}")
            with contextlib.suppress(psutil.Error):
                one.process.send_signal(signal.SIGINT)

    def fill(self) -> None:
        """Fill the disk. Without rights to mount one: nothing."""
        if self.disk.is_mount():
            self.tell("disk full")
            with contextlib.suppress(OSError), self.filler.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    def free(self) -> None:
        self.filler.unlink(missing_ok=True)

    # -- what is there --------------------------------------------------------------------------------------------

    def sweeps(self) -> list[SweepDir]:
        found = [path for path in self.root.glob("*") if not path.name.startswith(".") and not path.is_symlink()]
        return [SweepDir(path) for path in sorted(found) if (path / "plan.json").exists()]

    def processes(self) -> list[psutil.Process]:
        """Return what lives for this world: each has its path in its command line or its environment."""
        mark = os.fsencode(self.path) + b"/"
        found = [one.process for one in self.started if one.process.is_running()]  # a fork may say who it is later
        for one in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, psutil.Error):
                if mark in (one / "cmdline").read_bytes() + (one / "environ").read_bytes():
                    process = psutil.Process(int(one.name))
                    if process not in found and process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    def ranks_sweep(self, words: list[str]) -> str | None:
        """Return the sweep that the command line of a rank is of; None: it is none."""
        return str(Path(words[-2]).parents[2]) if "jobs.allocation.rank" in words else None

    def heads(self) -> int:
        """Return how many rank 0 of one sweep live at once."""
        found: dict[int, tuple[int, str]] = {}
        for one in self.processes():
            with contextlib.suppress(psutil.Error):
                sweep, env = self.ranks_sweep(one.cmdline()), one.environ()
                if sweep and "0" in (env.get("SUBMITIT_LOCAL_GLOBALID"), env.get("SLURM_PROCID")):
                    found[one.pid] = one.ppid(), sweep
        sweeps = [sweep for parent, sweep in found.values() if parent not in found]  # a child that is just being forked
        return max(map(sweeps.count, sweeps), default=0)

    # -- what must hold -------------------------------------------------------------------------------------------

    def wait_quiet(self) -> None:
        """Wait until nothing runs any more: it all ends by itself."""
        end = time.monotonic() + self.limit_s
        while left := self.processes():
            if self.unguarded:
                self._end_orphans(left)
            self.while_waiting(left)
            assert self.heads() <= 1, "a sweep is measured twice at once"
            if time.monotonic() > end:
                lines = [f"{one.pid} {' '.join(one.cmdline())[-200:]}" for one in left]
                raise AssertionError("still running:\n" + "\n".join(lines))
            time.sleep(0.1)

    def while_waiting(self, left: list[psutil.Process]) -> None:
        """Look at what is left, again and again."""

    def _end_orphans(self, living: list[psutil.Process]) -> None:
        """Do what a guard does that was killed: without it, what its rank leaves when that is killed too lives on."""
        for one in living:
            with contextlib.suppress(psutil.Error):
                owner = one.parent()
                lives = owner is not None and self.ranks_sweep(owner.cmdline()) is not None
                if any("quick_engine" in word for word in one.cmdline()) and not lives:
                    one.kill()

    def remember(self) -> None:
        """Look at the rows: what a valid one says stays, though the end of its service adds to it."""
        for sweep in self.sweeps():
            for path in sweep.path.glob("points/*/row.json"):
                with contextlib.suppress(OSError, ValueError):
                    row = json.loads(path.read_bytes())
                    if row["valid"]:
                        said = [row[name] for name in ("job_id", "attempt", "output_tok_per_s", "e2el_ms_p50")]
                        assert self.valid.setdefault(path, said) == said, f"{path}: a valid row was measured again"

    def check(self) -> None:
        """Bring every sweep to its end, and look at what is there.

        Raises:
            AssertionError: something was lost or doubled, is left running, does not answer, or ended in a traceback.
        """
        self.free()
        self.wait_quiet()
        self.remember()
        for sweep in self.sweeps():
            for words in self.random.sample(READERS, 2):
                self._answers(sweep, *words)
            if self._resumed(sweep):
                self._whole(sweep)
        for one in self.started:
            assert "Traceback" not in one.said(), f"{one.words}:\n{one.said()[-3000:]}"
        for path in self.root.glob("*/allocations/*/*/stdout-*.log"):
            text = (
                path.read_text(errors="replace") if path.exists() else ""
            )  # its controller was killed before it began
            assert "Traceback" not in text, f"{path}:\n{text[-3000:]}"

    def _answers(self, sweep: SweepDir, *words: str) -> str:
        one = self.run("-m", "jobs", words[0], str(sweep.path), *words[1:])
        try:
            self.wait_quiet()
        except AssertionError as error:
            raise AssertionError(f"{one.words} does not end: {error}\n{one.said()}") from None
        return one.said()

    def _resumed(self, sweep: SweepDir) -> bool:
        """Resume a sweep until nothing is left. Returns whether it was begun at all.

        A machine that stands still for a second makes a window invalid, and rightly: so it may take another one.
        """
        for _ in range(4):
            said = self._answers(sweep, "resume", "--retry-failed")
            self.remember()
            if "it was never begun" in said:
                return False
            if "0 points are left" in said:
                return True
            rows = [json.loads(path.read_bytes()) for path in sweep.path.glob("points/*/row.json")]
            self.told += [f"left: {row['point']}: {row['invalid_reason']}" for row in rows if not row["valid"]]
        raise AssertionError(said)

    def _whole(self, sweep: SweepDir) -> None:
        said = self._answers(sweep, "table", "--json")
        assert "[{" in said, said
        rows = json.loads(said[said.index("[{") :])
        assert len(rows) == len({row["point"] for row in rows}) == POINTS, rows
        assert all(row["valid"] for row in rows), [row["invalid_reason"] for row in rows]
        left = [str(path) for path in self.tmp.iterdir()]
        assert left == [] or self.unguarded, left
        reserves = [str(path) for path in sweep.path.rglob("reserve")]
        assert reserves == [], reserves
