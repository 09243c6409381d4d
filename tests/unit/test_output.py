"""`... | head`: the reader goes away, and the program ends without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from core_help import ROOT

from jobs import output

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


def test_a_broken_connection_is_not_taken_for_a_closed_output() -> None:
    def main() -> int:
        raise BrokenPipeError("of a socket")

    with pytest.raises(BrokenPipeError, match="of a socket"):
        output.until_closed(main)


def test_the_exit_code_is_handed_on() -> None:
    assert output.until_closed(lambda: 2) == 2
    with pytest.raises(SystemExit, match="3"):
        output.until_closed(lambda: sys.exit(3))
