"""What imports unpack: each has a directory of its own, which ends with it; what killed ones left is found by name."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from jobs.core.errors import RunError
from jobs.core.files import remove_tree
from jobs.core.foreign import SMALL, load_bytes

PREFIX = "serving-sweep."
"""Names of our containers: PREFIX job . service . rank, so that the leftovers of a dead job are known by them."""


@contextlib.contextmanager
def scratch(temp: Path) -> Iterator[Path]:
    """Make a directory in `temp` for the layers of one import, and take it away; those of dead ones go first."""
    sweep(temp)
    own = temp / f"{_own()}{_mark(os.getpid())}"
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
    with contextlib.suppress(RunError):
        mark = path.name.rpartition(".")[2]
        return _mark(mark.partition("-")[0]) == mark
    return False


def _mark(pid: int | str) -> str:
    """Return what tells a process, or a thread, from a later one of its number: when it began, in ticks of the kernel.

    A clock would not do: it may be set while an import runs, and a file system has another one.

    Raises:
        RunError: there is none.
    """
    stat = load_bytes(Path(f"/proc/{pid}/stat"), SMALL)
    return f"{pid}-{int(stat.rpartition(b')')[2].split()[19])}"  # field 22 (proc(5))
