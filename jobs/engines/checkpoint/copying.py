"""Copy the files of a directory in parallel: each is whole under its name or not there, and a copy can be resumed."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.core.errors import RunError
from jobs.core.files import CHUNK_BYTES, new_file
from jobs.core.foreign import regular
from jobs.engines.checkpoint.checkpoint import PART

SPARE = 0.01
"""Share of the needed space that must stay free on top: a file system's own records grow too."""

Progress = Callable[["Copied"], None]


@dataclass(frozen=True)
class Copied:
    """How far a copy is, in bytes: `done` of `total`, `kept` of which were there before."""

    done: int
    total: int
    kept: int


class Abandoned(Exception):
    """Work on one file that was given up since another one failed."""


class Count:
    """Bytes copied by all threads."""

    def __init__(self, total: int, kept: int, progress: Progress) -> None:
        self._lock, self._progress, self._now = threading.Lock(), progress, Copied(kept, total, kept)
        self.stop = threading.Event()
        progress(self._now)

    def add(self, count: int) -> None:
        """Count so many more; one thread at a time is heard."""
        with self._lock:
            self._now = Copied(min(self._now.total, self._now.done + count), self._now.total, self._now.kept)
            self._progress(self._now)


def is_copied(source: Path, target: Path) -> bool:
    """Return whether a file has been copied whole: size and time of change are those of its source."""
    try:
        there, origin = target.stat(), source.stat()
    except OSError:
        return False
    return there.st_size == origin.st_size and there.st_mtime_ns == origin.st_mtime_ns


def check_space(key: str, target: Path, needed: int, advice: str) -> None:
    """Raise RunError unless the file system of `target` has so many bytes free, and one per cent more."""
    free = shutil.disk_usage(target).free
    if needed * (1 + SPARE) > free:
        reason = f"{needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free there"
        raise RunError(key, target, reason, advice)


def copy_files(
    source: Path,
    target: Path,
    sizes: Mapping[str, int],
    *,
    parallel: int,
    progress: Progress = lambda _: None,
    private: bool = False,
) -> Copied:
    """Copy files from one directory to another, which is made; what was copied before is kept.

    Args:
        sizes: names relative to `source`, and their bytes.
        parallel: files at a time. One stream seldom fills a shared file system's bandwidth.
        progress: told how far it is, by any thread, one at a time.
        private: only this user may read the copies.

    Raises:
        RunError: a file cannot be read or written; nothing half is left under a final name.
    """
    todo = [name for name in sizes if not is_copied(source / name, target / name)]
    total, kept = sum(sizes.values()), sum(sizes.values()) - sum(sizes[name] for name in todo)
    count = Count(total, kept, progress)
    # The largest first: the last ones to end are then short.
    todo.sort(key=lambda name: -sizes[name])
    with ThreadPoolExecutor(parallel) as pool:
        jobs = [pool.submit(_copy, source / name, target / name, count, 0o600 if private else 0o666) for name in todo]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:
            count.stop.set()
            for job in jobs:
                job.cancel()
    raise_first(jobs)
    return Copied(total, total, kept)


def raise_first(jobs: Sequence[Future[Any]]) -> None:
    """Raise the error of the first piece of work that failed by itself; what was given up for it does not count."""
    errors = [error for job in jobs if not job.cancelled() and (error := job.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, Abandoned)):
        raise error


def _copy(source: Path, target: Path, count: Count, mode: int) -> None:
    part = target.with_name(target.name + PART)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with regular(source) as read, new_file(part, mode) as write:
            buffer = memoryview(bytearray(CHUNK_BYTES))
            while size := read.readinto(buffer):
                if count.stop.is_set():
                    raise Abandoned(target)
                _write(write.fileno(), buffer[:size])
                count.add(size)
            os.fsync(write.fileno())
        origin = source.stat()
        os.utime(part, ns=(origin.st_atime_ns, origin.st_mtime_ns))
        if part.stat().st_size != origin.st_size:
            raise RunError(str(source), "(copy)", "it changed while it was copied", "Wait until its writer is done.")
        part.replace(target)
    except OSError as error:
        count.stop.set()
        reason = f"{error.strerror or error} ({error.filename or target})"
        raise RunError(str(target), "(copy)", reason, "Free space or mend the file, and run it again.") from error
    except RunError:
        count.stop.set()
        raise
    finally:
        part.unlink(missing_ok=True)


def _write(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]
