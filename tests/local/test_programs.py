"""`launch.py` and `python -m jobs` as processes: bad input, and an output that nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from core_help import ROOT, python
from test_launch_cli import FURTHER, ISSUE, REAL, check

JOBS, LAUNCH = ("-m", "jobs"), (str(ROOT / "launch.py"),)


def unread(*words: str, cwd: Path) -> tuple[int, str]:
    """Run this Python with an output that nobody reads. Returns exit code and standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((*JOBS, "keys"), 141),  # print
        ((*JOBS, "plan"), 141),  # rich
        ((*LAUNCH, "--help"), 141),
        ((*LAUNCH, "--info"), 0),  # written by logging, which goes on after an error
    ],
    ids=lambda value: " ".join(Path(word).name for word in value) if isinstance(value, tuple) else str(value),
)
def test_a_closed_output_ends_the_program_silently(words: tuple[str, ...], code: int, tmp_path: Path) -> None:
    assert unread(*words, cwd=tmp_path) == (code, "")


def test_an_error_is_told_although_nobody_reads_the_output(tmp_path: Path) -> None:
    code, err = unread(*JOBS, "status", "nosuch", cwd=tmp_path)
    assert code == 1
    assert err.startswith("error: RUN = nosuch")


def test_the_real_program_answers_bad_input_with_one_line(tmp_path: Path) -> None:
    def call(name: str) -> tuple[int, str, str]:
        here = tmp_path / name
        here.mkdir()
        process = python(*LAUNCH, *(ISSUE | FURTHER)[name].words, cwd=here, path=here / "no-programs")
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    with ThreadPoolExecutor(2) as pool:
        for name, answer in zip(REAL, pool.map(call, REAL), strict=True):
            check((ISSUE | FURTHER)[name], *answer, tmp_path)


def test_jobs_plan_answers_bad_input_as_launch_does(tmp_path: Path) -> None:
    process = python("-m", "jobs", "plan", "bench.concurency=1,2", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: bench.concurency = 1,2: there is no such key. Did you mean 'bench.concurrency'?")
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
