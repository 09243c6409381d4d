"""Locks between processes, of one node or of several: who holds one is said to whoever waits for it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from jobs.core.errors import RunError

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers: Lustre mounted without -o flock, some NFS servers."""


@contextlib.contextmanager
def exclusive(
    path: Path, waiting: Callable[[str], None] = lambda _: None, *, required: bool = True
) -> Iterator[None]:  # fmt: skip
    """Hold a lock that ends with its holder.

    flock(2) works between the nodes on NFS (since Linux 2.6.12) and on Lustre mounted with -o flock.

    Args:
        path: the lock's file; made where it is missing, and left there: whoever removed it could remove a held one.
        waiting: called once where another one holds the lock, with who that is: "process 4711 on node1".
        required: False: on a file system without locks go on without one.

    Raises:
        RunError: the file cannot be made, or its file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(_holder(path))
                fcntl.flock(file, fcntl.LOCK_EX)
            _sign(file.fileno())
        except OSError as error:
            if required or error.errno not in NO_LOCKS:
                remedy = "Choose a directory that you can write, on a file system with locks."
                raise RunError(str(path), "(lock)", str(error), remedy) from None
        yield


def _sign(handle: int) -> None:
    """Write into a lock who holds it: a courtesy, for which a full disk is no hindrance."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        os.fsync(handle)


def is_free(path: Path) -> bool:
    """Return whether nobody holds this lock."""
    try:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def _holder(path: Path) -> str:
    """Return who wrote itself into a lock last; that is who holds it, but for an instant after it was taken."""
    with contextlib.suppress(OSError):
        if text := path.read_text(encoding="utf-8", errors="replace").strip():
            return text
    return "another process"
