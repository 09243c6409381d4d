"""The digest of an image that is given by path: SHA-256 of the file, read once for as long as the file stays as it is.

15 GB take half a minute or more. So what was read is kept in a small record for each state of a file: its path, length,
time of change, and inode. Whoever changes content and puts all four back is not found out. The device's number is left
out: each node has its own for one shared file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.core.errors import RunError
from jobs.core.files import sha256, write_json

KEPT = ".digests"
"""Name of the directory of records, beside the imported images."""

WORTH_SAYING_BYTES = 1 << 30
"""Reading a file of this length takes so long that a person should know what is being waited for."""


@dataclass(frozen=True)
class State:
    """What a file is known by without reading it."""

    path: str
    bytes: int
    changed_ns: int
    inode: int


def state(path: Path) -> State | None:
    """Return the state of a file, of the target where it is a link; None where it cannot be seen from here."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return State(str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ino)
    return None


class Digests:
    """What is known of image files, kept in a directory that all nodes see. Digests look like a registry's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def known(self, path: Path) -> str | None:
        """Return the digest of a file as it is now, if it was read before; the file is not opened."""
        now = state(path)
        return self._kept(now) if now else None

    def read(self, path: Path, stop: Callable[[], bool] = lambda: False) -> str | None:
        """Return the digest of a file, reading it where it was not read before.

        Args:
            path: the file.
            stop: asked now and then while the file is read; once true the reading is given up.

        Returns:
            None: it cannot be read from here, it changed meanwhile, or the reading was given up.
        """
        now = state(path)
        if now is None or (kept := self._kept(now)):
            return kept if now else None
        if now.bytes >= WORTH_SAYING_BYTES:
            print(f"reading {path} for its digest, once: {now.bytes / 2**30:.1f} GiB", file=sys.stderr, flush=True)
        try:
            content = sha256(path, stop)
        except OSError:  # given up, too
            return None
        if state(path) != now:
            return None
        digest = f"sha256:{content}"
        with contextlib.suppress(RunError):  # not ours to write, or full: then it is read again the next time
            write_json(self._record(now), asdict(now) | {"digest": digest})
        return digest

    def _record(self, now: State) -> Path:
        name = hashlib.sha256(json.dumps(asdict(now)).encode()).hexdigest()[:16]
        return self.folder / f"{name}.json"

    def _kept(self, now: State) -> str | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            record = dict(json.loads(self._record(now).read_text(encoding="utf-8")))
            digest = str(record.pop("digest", ""))
            return digest if record == asdict(now) and digest.startswith("sha256:") else None
        return None
