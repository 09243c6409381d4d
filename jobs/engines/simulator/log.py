"""What the engine says: vLLM's words (words.yaml), and log lines in the form of vLLM 0.9.1 (vllm/logger.py)."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from jobs.core.foreign import from_yaml

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}

_WORDS = from_yaml(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))


def error(name: str, /, **values: object) -> str:
    """Return the text of an exception with which an engine does not start."""
    return str(_WORDS["errors"][name].format(**values))


class Log:
    """Writes `LEVEL MM-DD HH:MM:SS [file:line] text` to stdout, flushed line by line.

    Args:
        level: lines below it are not written (VLLM_LOGGING_LEVEL; uvicorn's lines do not obey it).
        process: name that stands before each line of an engine process, as vLLM has it with data parallelism.
    """

    def __init__(self, level: str = "INFO", process: str = "") -> None:
        self.level = level if level in LEVELS else "INFO"
        self._prefix = f"\033[1;36m({process} pid={os.getpid()})\033[0;0m " if process else ""

    def named(self, process: str) -> Log:
        """Return a log of the same level for an engine or worker process."""
        return Log(self.level, process)

    def write(self, name: str, /, *, quiet: bool = False, **values: object) -> None:
        """Write one of vLLM's records, at level DEBUG where `quiet`; each of its lines gets the prefix."""
        level, where, text = _WORDS["log"][name]
        level = "DEBUG" if quiet else level
        if LEVELS[level] >= LEVELS[self.level]:
            head = f"{self._prefix}{level} {time.strftime('%m-%d %H:%M:%S')} [{where}] "
            _emit("".join(f"{head}{line}\n" for line in text.format(**values).split("\n")))


def server_line(text: str, *, access: bool = False) -> None:
    """Write a line as uvicorn does: its own form, to stderr; access lines to stdout."""
    _emit(f"INFO:     {text}\n", error=not access)


def traceback_line(text: str) -> None:
    """Write what Python prints when a process ends with an uncaught exception."""
    _emit(f"Traceback (most recent call last):\n  (rehearsal: no stack)\n{text}\n", error=True)


def _emit(text: str, *, error: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    with contextlib.suppress(OSError):  # a full disk or a closed pipe does not end vLLM either
        stream.write(text)
        stream.flush()
