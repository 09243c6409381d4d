"""What imports unpack: each has a directory of its own, which ends with it; what killed ones left is found by name."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from jobs.core.files import remove_tree

PREFIX = "serving-sweep."
"""Names of our containers: PREFIX job . service . rank, so that the leftovers of a dead job are known by them."""


@contextlib.contextmanager
def scratch(temp: Path) -> Iterator[Path]:
    """Make a directory in `temp` for the layers of one import, and take it away; those of dead ones go first."""
    sweep(temp)
    own = temp / f"{_own()}{os.getpid()}"
    own.mkdir(mode=0o700)
    try:
        yield own
    finally:
        remove_tree(own)


def _own() -> str:
    """Return how the directories of this node's imports begin: a file system that several share has others' too."""
    return f"{PREFIX}import.{socket.gethostname()}."


def sweep(temp: Path) -> list[str]:
    """Remove the unpacked layers of imports that were killed: they stay in full size. Returns their names."""
    dead = [path for path in temp.glob(f"{_own()}*") if not _is_at_work(path)]
    return [path.name for path in dead if remove_tree(path)]


def _is_at_work(path: Path) -> bool:
    """Whether the import that made this directory lives: a process of its number that came later is another one.

    A thread of another process may have the number too: it has no process of its own.
    """
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        pid = int(path.name.rpartition(".")[2])
        return psutil.pid_exists(pid) and psutil.Process(pid).create_time() <= path.stat().st_mtime + 1.0
    return False
