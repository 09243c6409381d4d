"""The way to a file or directory, part by part: whoever may make names on it cannot exchange a part while we go.

A link of another user is followed only where its maker owns what it leads to, or (for reading) the file at the end of
the way: else it would lead us to what only we may read or write. `opened` is for what is there, `folder` for what is
to be made.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NOBODY = 65534
"""Owner of a file where a file system does not tell whose it is: NFS with root_squash, or without a map of ids."""

_PART = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_SHARED = stat.S_ISGID | stat.S_IRGRP | stat.S_IXGRP
_MOST_LINKS = 40
"""As many as the kernel follows."""


def is_ours(info: os.stat_result) -> bool:
    """Return whether a file is this user's own, or root's."""
    return info.st_uid in (os.geteuid(), 0)


def is_anothers(info: os.stat_result) -> bool:
    """Return whether a file is another user's for certain."""
    return not is_ours(info) and info.st_uid != NOBODY


def is_shared(info: os.stat_result) -> bool:
    """Return whether a directory is for reading to its group, and so is what is made in it (jobs/core/sharing.py)."""
    return info.st_mode & _SHARED == _SHARED


def opened(path: Path, flags: int) -> tuple[int, os.stat_result]:
    """Open a file that is there. Returns its descriptor, and what it is.

    Raises:
        OSError: it cannot be opened; a link, or a second name, that is not to be followed leads to it.
    """
    if (handle := _directly(path, flags)) is not None:
        if (info := os.fstat(handle)).st_nlink == 1 or stat.S_ISDIR(info.st_mode):
            return handle, info
        os.close(handle)
    with _walked(path) as end:
        info = os.fstat(end.handle)
        if any(link.st_uid not in (led.st_uid, info.st_uid) for link, led in end.links):
            raise _refused("a link of another user leads to what is not that user's", path)
        if info.st_nlink > 1 and end.folder.st_uid != info.st_uid and not is_ours(end.folder):
            raise _refused("it is a second name that another user gave to a file", path)
        return os.open(f"/proc/self/fd/{end.handle}", flags | os.O_CLOEXEC), info


def _directly(path: Path, flags: int) -> int | None:
    """Open what is there; None where a link is on the way to it, or that cannot be told."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return None
        raise
    try:
        real = os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115 (at every file: a third of the time)
    except OSError:
        real = ""
    if real == os.fspath(path) or real == str(path.absolute()):
        return handle
    os.close(handle)
    return None


@contextmanager
def folder(path: Path, *, named: bool = False) -> Iterator[int]:
    """Open a directory, to make files in it by its descriptor (`dir_fd`). It and those above are made where missing.

    What is made is for this user alone, or for the group of a shared directory too; another rank of this user may make
    it at the same moment. `named`: the user named this directory, so it may be another's.

    Raises:
        OSError: it cannot be made, or is another user's; a link of somebody else leads there.
    """
    try:
        handle = _directly(path, _FOLDER)
    except FileNotFoundError:
        with folder((path := path.absolute()).parent, named=True) as above:
            handle = _made(above, path.name)
    handle = _reached(path) if handle is None else handle
    try:
        if not named and is_anothers(os.fstat(handle)):
            raise _refused("this directory belongs to another user", path)
        yield handle
    finally:
        os.close(handle)


def _made(above: int, name: str) -> int:
    """Make a directory in one that is open, where nobody was faster, and open it."""
    with suppress(FileExistsError):  # of another rank, or of somebody else
        os.mkdir(name, 0o750 if is_shared(os.fstat(above)) else 0o700, dir_fd=above)
    handle = os.open(name, _PART, dir_fd=above)
    info = os.fstat(handle)
    if not stat.S_ISDIR(info.st_mode) or is_anothers(info):
        os.close(handle)
        raise _refused("another user has put something there just now", name)
    return handle


def _reached(path: Path) -> int:
    """Open a directory to which links lead."""
    with _walked(path) as end:
        if not stat.S_ISDIR(os.fstat(end.handle).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        if any(link.st_uid != led.st_uid for link, led in end.links):
            raise _refused("a link of another user leads to what is not that user's", path)
        return os.dup(end.handle)


@dataclass
class _End:
    """The end of a way: what is there, opened by O_PATH; the directory that it was found in; and the links of other
    users on the way, each with what it led to."""

    handle: int
    folder: os.stat_result
    links: list[tuple[os.stat_result, os.stat_result]] = field(default_factory=list)

    def move(self, there: int) -> None:
        """Go on to what was opened."""
        os.close(self.handle)
        self.handle = there


@contextmanager
def _walked(path: Path) -> Iterator[_End]:
    """Go a way part by part, each opened in the one before."""
    root = os.open("/", _FOLDER)
    end, links = _End(root, os.fstat(root)), 0
    try:
        todo: list[str | os.stat_result] = [*reversed(path.absolute().parts[1:])]
        while todo:
            if not isinstance(part := todo.pop(), str):
                end.links.append((part, os.fstat(end.handle)))  # here is what that link led to
                continue
            end.folder = os.fstat(end.handle)
            there = os.open(part, _PART, dir_fd=end.handle)
            if not stat.S_ISLNK((info := os.fstat(there)).st_mode):
                end.move(there)
                continue
            target = _target(there)
            if (links := links + 1) > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            todo += [*([] if is_ours(info) else [info]), *reversed([one for one in target.split("/") if one])]
            if target.startswith("/"):
                end.move(os.open("/", _FOLDER))
        yield end
    finally:
        os.close(end.handle)


def _target(link: int) -> str:
    """Return what an open link leads to, and close it."""
    try:
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _refused(reason: str, path: Path | str) -> OSError:
    return PermissionError(errno.EPERM, reason, str(path))
