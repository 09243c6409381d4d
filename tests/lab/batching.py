"""Submit the scripts of sbatch/ on the lab and look at what becomes of them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from lab import Lab
from launching import python

from jobs.core.process import TAG
from jobs.core.rundir import SweepDir

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("engine=simulator", "bench.concurrency=2", "bench.warmup_s=1", "bench.repeats=1", "limits.stop_s=10")


def sbatch(lab: Lab, tmp_path: Path, script: str | Path, *overrides: str, options: tuple[str, ...] = ()) -> str:
    """Submit a script, given by path or by its name in sbatch/, from the project's directory. Returns the job id."""
    output = f"--output={tmp_path}/slurm-%j.out"
    words = [
        "sbatch",
        "--parsable",
        output,
        *options,
        str(ROOT / "sbatch" / script),
        f"results.root={tmp_path}",
        *QUICK,
        *overrides,
    ]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | lab.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().partition(";")[0]


def verb(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return python(lab, "-m", "jobs", *words)


def until(ask: Callable[[], bool], what: str, tmp_path: Path, limit_s: float = 240) -> None:
    end = time.monotonic() + limit_s
    while not ask():
        said = "".join(path.read_text() for path in tmp_path.glob("slurm-*.out"))
        assert time.monotonic() < end, f"waited {limit_s:g} s for {what}: {said[-2000:]}"
        time.sleep(0.2)


def engines_of(*jobs: str) -> list[int]:
    """Return the pids of living engine processes of these jobs, on both nodes: the machine is shared by them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TAG, "").partition("/")[0] in jobs and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def the_run(tmp_path: Path) -> SweepDir:
    until(lambda: any(tmp_path.glob("latest/allocations/*/*/job.json")), "the run directory", tmp_path)
    return SweepDir((tmp_path / "latest").resolve())
