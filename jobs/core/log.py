"""What the end of a log says, and how a rank writes a line of its own."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from pathlib import Path

from jobs.core import hidden, masking
from jobs.core.foreign import regular

_ERROR = re.compile(
    r"^(?:(?!\b(?:DEBUG|INFO|WARNING)\b).)*?"  # a warning tells of a library that is missed, or of errors that may come
    r"(?:\b(?:[A-Z]\w*(?:Error|Exception)\b|ERROR|error:|FATAL|CRITICAL)|E[IJZ]\d{4}|not found)"
)

_NOISE = re.compile(
    r"Engine core initialization failed|ERR02200|EI0009|resource_tracker|leaked|Traceback|^\s*\^+\s*$|raise "
    r"|srun: error: \S+ tasks? [\d,-]+: (?:Exited with exit code|Killed|Terminated)"
    r"|spank: required plugin|Failed to invoke spank plugin"
    r"|pyxis: (?:printing enroot log|child \d+ failed|couldn't start)"
)
"""Follow-on errors that only repeat what another line said first."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

TAIL_BYTES = 256 * 1024


def read_tail(path: Path, size: int = TAIL_BYTES) -> str:
    """Return the last `size` bytes of a log as text; an empty string where there is none."""
    try:
        with regular(path) as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(path: Path) -> str:
    """Return the last line of a log of our own."""
    lines = read_tail(path, 4096).strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def read_all(path: Path) -> str:
    """Return a whole log as text; an empty string where there is none."""
    return read_tail(path, 64 * 1024 * 1024)


def last_words(text: str) -> str:
    """Return the line that says most about a failure: the last real error line, else the last line."""
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    own = [line for line in lines if not _NOISE.search(line)]
    errors = [line for line in own if _ERROR.search(line)]
    return (errors or own or lines or ["(its log is empty)"])[-1][:400]


def own_error(text: str) -> str | None:
    """Return the error with which a rank of ours ended (its output, see jobs/allocation/rank.py), or None."""
    found = [line for line in text.splitlines() if line.startswith("error: ")]
    return found[-1].removeprefix("error: ")[:400] if found else None


def take_any_text() -> None:
    """Let standard output take what the locale of the shell has no letters for: such a one is shown as its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def log(text: str) -> None:
    """Write one line of a task's own output, with the time of day; on a full disk it is what can be missed."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%H:%M:%S')} {hidden.visible(masking.text(text))}", flush=True)
