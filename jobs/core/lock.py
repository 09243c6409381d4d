"""Locks between processes, of one node or of several: who holds one is said to whoever waits for it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from jobs.core import ways
from jobs.core.errors import RunError
from jobs.core.log import read_tail

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
            file = _open(path)
            stack.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(holder(path))
                fcntl.flock(file, fcntl.LOCK_EX)
            _sign(file)
        except OSError as error:
            if required or error.errno not in NO_LOCKS:
                remedy = "Choose a directory that you can write, on a file system with locks."
                raise RunError(str(path), "(lock)", str(error), remedy) from None
        yield


def _open(path: Path) -> int:
    """Open a lock, made where it is missing: who may make files in its directory may wait for it, and nobody else.

    Raises:
        OSError: it cannot be made, or is no regular file of its own.
    """
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with ways.folder(path.parent, named=True) as folder:
        shared = os.fstat(folder).st_mode & stat.S_IWGRP  # who only reads there could hold it for ever
        handle = os.open(path.name, os.O_RDWR | flags, 0o660 if shared else 0o600, dir_fd=folder)
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file of its own", str(path))
    return handle


def _sign(handle: int) -> None:
    """Write into a lock who holds it: a courtesy, for which a full disk is no hindrance."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        os.fsync(handle)


def is_free(path: Path) -> bool:
    """Return whether nobody holds this lock."""
    try:
        path.parent.stat()  # it is not made
        file = _open(path)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def holder(path: Path) -> str:
    """Return who wrote itself into a lock last; that is who holds it, but for an instant after it was taken."""
    with contextlib.suppress(OSError):
        if text := read_tail(path, 200).strip():
            return text
    return "another process"
