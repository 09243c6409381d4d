"""`... | head`: the reader goes away, and the program ends without a word (tests/local has the processes)."""

from __future__ import annotations

import errno
import sys
import tempfile
from pathlib import Path

import pytest

from jobs.cli import output


def test_a_broken_connection_is_not_taken_for_a_closed_output() -> None:
    def main() -> int:
        raise BrokenPipeError("of a socket")

    with pytest.raises(BrokenPipeError, match="of a socket"):
        output.until_closed(main)


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give standard output and error back after the test, and show tracebacks."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setenv(output.DEBUG, "1")


def test_what_nobody_foresaw_is_one_line_and_a_private_file_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise KeyError("HF_TOKEN=hf_0123456789")

    monkeypatch.delenv(output.DEBUG)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["launch.py", "+engine.env.HF_TOKEN=hf_0123456789"])
    assert output.until_closed(main) == 70
    [said] = capsys.readouterr().err.splitlines()
    [file] = tmp_path.iterdir()
    assert str(file) in said and "KeyError" in said
    text = file.read_text()
    assert "Traceback" in text and "launch.py" in text
    assert "hf_0123456789" not in said + text
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    assert output.until_closed(main) == 70
    assert "could not be written" in capsys.readouterr().err


def test_ctrl_c_and_a_full_disk_behind_standard_output_are_no_defects(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise what

    monkeypatch.delenv(output.DEBUG)
    what: BaseException = KeyboardInterrupt()
    assert output.until_closed(main) == output.INTERRUPTED
    what = OSError(errno.ENOSPC, "No space left on device")
    assert output.until_closed(main) == 1
    assert "standard output = (write): No space left on device" in capsys.readouterr().err


def test_closed_streams_are_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as after `>&-`
    monkeypatch.setattr(sys, "stderr", None)
    assert output.until_closed(lambda: print("x")) is None


def test_the_exit_code_is_handed_on() -> None:
    assert output.until_closed(lambda: 2) == 2
    with pytest.raises(SystemExit, match="3"):
        output.until_closed(lambda: sys.exit(3))
