"""Imported images on a file system that all nodes see, one squashfs file for each digest. A half file is never trusted.

A file gets its name only after the import ended well, its superblock is valid and its length agrees. Of many nodes and
sweeps that want one image at once, one imports and the others wait for its lock, which dies with its holder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from containers.spec import Image
from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.files import sha256
from jobs.core.lock import exclusive, is_free

_MAGIC = b"hsqs"
_BYTES_USED = slice(40, 48)
"""Offset of `bytes_used` in a squashfs 4.0 superblock (Linux, Documentation/filesystems/squashfs.rst)."""


def problem(path: Path) -> str | None:
    """Return why a file is no whole squashfs image, or None.

    `unsquashfs -s` reads the superblock alone: a file that was cut short passes it, so the length is looked at too.

    Raises:
        RunError: there is no unsquashfs here.
    """
    try:
        with path.open("rb") as file:
            head = file.read(96)
        size = path.stat().st_size
    except OSError as error:
        return str(error)
    if len(head) < 96 or head[:4] != _MAGIC:
        return "it has no squashfs superblock"
    needed = int.from_bytes(head[_BYTES_USED], "little")
    if size < needed:
        return f"it has {size:,} bytes of {needed:,}"
    if process.run(["unsquashfs", "-s", str(path)]).returncode != 0:
        return "`unsquashfs -s` finds no valid superblock"
    return None


@dataclass(frozen=True)
class Entry:
    """An imported image. `digest` is the registry's where it is known, else that of the file itself."""

    reference: str
    arch: str
    digest: str
    sha256: str
    bytes: int
    imported: float
    path: str


class Store:
    """The directory of imported images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _stem(self, image: Image, arch: str) -> str:
        name = re.sub(r"[^A-Za-z0-9._-]+", "+", str(image).partition("://")[2])
        return f"{name}+{arch}+{hashlib.sha256(str(image).encode()).hexdigest()[:8]}"

    def _record(self, image: Image, arch: str) -> Path:
        return self.folder / f"{self._stem(image, arch)}.json"

    def find(self, image: Image, arch: str | None = None) -> Entry | None:
        """Return an imported image whose file is there and whole, else None."""
        entry = _read(self._record(image, arch or platform.machine()))
        if entry is None or not _length_agrees(entry):
            return None
        return entry if problem(Path(entry.path)) is None else None

    def entries(self) -> list[Entry]:
        """Return all records, oldest first."""
        found = [_read(path) for path in sorted(self.folder.glob("*.json"))]
        return sorted((entry for entry in found if entry), key=lambda entry: entry.imported)

    def ensure(
        self,
        image: Image,
        fetch: Callable[[Path], None],
        digest: Callable[[], str | None] = lambda: None,
        arch: str | None = None,
        log: Callable[[str], None] = lambda _: None,
        refresh: bool = False,
    ) -> Entry:
        """Return an image, importing it where it is not there yet.

        References of one digest share its file: the second is a record, no import.

        Args:
            image: what is wanted; it is no path.
            fetch: writes the squashfs file to the given path, which does not exist; raises where it fails.
            digest: asks the registry for the image's digest; None where that is not possible.
            arch: architecture, as `uname -m` says it; None: this host's.
            log: tells a person what is going on.
            refresh: ask the registry what the reference stands for now; where it does not tell, import again.

        Raises:
            RunError: `fetch` failed, or what it wrote is no image, or the directory cannot be written.
        """
        arch = arch or platform.machine()
        if not refresh and (found := self.find(image, arch)):
            return found
        stem = self._stem(image, arch)
        with exclusive(self.folder / f"{stem}.lock", lambda who: log(f"{who} imports {image}: waiting")):
            if not refresh and (found := self.find(image, arch)):
                return found
            known = image.digest or digest()
            if known is None:
                return self._import(image, arch, stem, None, fetch, log)
            # Another reference may stand for the same: they would replace each other's file.
            shared = f"{known.replace(':', '-')}+{arch}"
            with exclusive(self.folder / f"{shared}.lock", lambda who: log(f"{who} imports {known}: waiting")):
                if entry := self._shared(image, arch, known):
                    log(f"{image} is here already: {known}")
                    return entry
                return self._import(image, arch, stem, known, fetch, log)

    def _shared(self, image: Image, arch: str, digest: str) -> Entry | None:
        """Return a new record of an image whose digest has a whole file already; None: no reference has one."""
        for entry in self.entries():
            if (entry.digest, entry.arch) != (digest, arch) or not _length_agrees(entry) or problem(Path(entry.path)):
                continue
            if entry.reference != str(image):
                entry = replace(entry, reference=str(image), imported=time.time())
                self._write(image, entry)
            return entry
        return None

    def _import(
        self,
        image: Image,
        arch: str,
        stem: str,
        known: str | None,
        fetch: Callable[[Path], None],
        log: Callable[[str], None],
    ) -> Entry:
        for dead in self.folder.glob(f".{stem}.*.part"):  # whoever wrote it held this lock, and is gone
            dead.unlink(missing_ok=True)
        part = self.folder / f".{stem}.{_host()}.{os.getpid()}.part"
        try:
            fetch(part)
            if wrong := problem(part):
                reason = f"the import ended without an error, but {wrong}"
                raise RunError("container.image", image, reason, "Import it again; look at the space that is left.")
            entry = self._keep(image, arch, part, known)
        finally:
            part.unlink(missing_ok=True)
        log(f"imported {image}: {entry.digest}")
        return entry

    def _keep(self, image: Image, arch: str, part: Path, known: str | None) -> Entry:
        content = sha256(part)
        digest = known or f"sha256:{content}"
        path = self.folder / f"{digest.replace(':', '-')}+{arch}.sqsh"
        with part.open("rb") as file:
            os.fsync(file.fileno())
        size = part.stat().st_size
        part.replace(path)
        entry = Entry(str(image), arch, digest, content, size, time.time(), str(path.absolute()))
        self._write(image, entry)
        return entry

    def _write(self, image: Image, entry: Entry) -> None:
        record = self._record(image, entry.arch)
        fresh = record.with_name(f".{record.name}.{_host()}.{os.getpid()}")
        fresh.write_text(json.dumps(asdict(entry), indent=1) + "\n", encoding="utf-8")
        fresh.replace(record)

    def verify(self, entry: Entry) -> str | None:
        """Read a whole file again. Returns what is wrong with it, or None."""
        if not _length_agrees(entry):
            return "the file is not there, or has another length than when it was imported"
        if wrong := problem(Path(entry.path)):
            return wrong
        return None if sha256(Path(entry.path)) == entry.sha256 else "its content has changed since it was imported"

    def prune(self, older_s: float | None = None) -> list[str]:
        """Remove what dead imports left, and images that were imported more than `older_s` seconds ago.

        Returns what was removed, by name. None: every image stays.
        """
        removed = []
        for record in sorted(self.folder.glob("*.json")):
            entry = _read(record)
            if entry and older_s is not None and entry.imported <= time.time() - older_s:
                record.unlink(missing_ok=True)
                removed.append(entry.reference)
        return removed + self._sweep()

    def _sweep(self) -> list[str]:
        """Remove half files of imports that are over, and whole files that no record names."""
        removed = []
        for path in self.folder.glob(".*.part"):
            stem = path.name[1:].rsplit(".", 3)[0]
            if is_free(self.folder / f"{stem}.lock"):
                path.unlink(missing_ok=True)
                removed.append(path.name)
        if all(is_free(path) for path in self.folder.glob("*.lock")):
            named = {Path(entry.path).name for entry in self.entries()}
            for path in self.folder.glob("*.sqsh"):
                if path.name not in named:
                    path.unlink(missing_ok=True)
                    removed.append(path.name)
        return removed


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _length_agrees(entry: Entry) -> bool:
    try:
        return Path(entry.path).stat().st_size == entry.bytes
    except OSError:
        return False


def _read(path: Path) -> Entry | None:
    """Return a record; None where there is none, or none of ours."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        entry = Entry(**json.loads(path.read_text(encoding="utf-8")))
        # The directory may have moved, or be mounted elsewhere on another node.
        beside = path.parent / Path(entry.path).name
        return Entry(**asdict(entry) | {"path": str(beside.absolute())})
    return None
