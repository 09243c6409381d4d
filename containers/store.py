"""Imported images on a file system that all nodes see, one squashfs file for each digest. A half file is never trusted.

A file gets its name only after the import ended well, its superblock is valid and its length agrees. Of many nodes and
sweeps that want one image at once, one imports and the others wait for its lock, which dies with its holder.

The digest of an image that is given by path is the SHA-256 of its file. 15 GB take half a minute or more, so what was
read is kept in a small record for each state of a file: its path, length, time of change, and inode. Whoever changes
content and puts all four back is not found out. The device's number is left out: each node has its own for one shared
file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from containers.base import Log, Order, Stock
from containers.spec import Image
from jobs.core import process, ways
from jobs.core.errors import RunError
from jobs.core.files import public, sha256, write_json
from jobs.core.foreign import SMALL, load_form, load_json, regular
from jobs.core.lock import exclusive, is_free

_MAGIC = b"hsqs"
_BYTES_USED = slice(40, 48)
"""Offset of `bytes_used` in a squashfs 4.0 superblock (Linux, Documentation/filesystems/squashfs.rst)."""

KEPT = ".digests"
"""Name of the directory of records, beside the imported images."""

WORTH_SAYING_BYTES = 1 << 30
"""Reading a file of this length takes so long that a person should know what is being waited for."""

_FLAGS = slice(24, 26)
_PLAIN_DATA = 0x2
"""Flags of a squashfs 4.0 superblock: data blocks are not compressed (Linux, fs/squashfs/squashfs_fs.h)."""

TABLES_BYTES = 4 << 20
"""So much of the end of a file is read to tell it from others."""

IMPORT_FOLD = 3.0
"""An import unpacks all layers beside each other: two to three times the image."""

PACKED_FOLD = 3
"""How much larger the root of a compressed squashfs file may be; enroot's own files hold their data as it is."""


def problem(path: Path) -> str | None:
    """Return why a file is no whole squashfs image, or None.

    `unsquashfs -s` reads the superblock alone: a file that was cut short passes it, so the length is looked at too.

    Raises:
        RunError: there is no unsquashfs here.
    """
    try:
        with regular(path) as file:
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


def tables(path: Path) -> str:
    """Return what tells a squashfs file from others without reading its data: a hash of its superblock and its tables.

    The tables, at its end, have each file's name, length, time and place (Linux, fs/squashfs).

    Raises:
        RunError: it cannot be read.
    """
    try:
        with regular(path) as file:
            head = file.read(96)
            file.seek(max(96, path.stat().st_size - TABLES_BYTES))
            return "tables-" + hashlib.sha256(head + file.read()).hexdigest()
    except OSError as error:
        raise RunError("container.image", path, str(error), "Check the file on this node.") from None


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


@dataclass(frozen=True)
class Form:
    """A form of image files: how their names end, and why a file is no whole one (None: it is)."""

    suffix: str
    problem: Callable[[Path], str | None]


SQUASHFS = Form(".sqsh", problem)


class Store:
    """The directory of imported images of one form."""

    def __init__(self, folder: Path, form: Form = SQUASHFS) -> None:
        self.folder, self._form = folder, form

    def _stem(self, image: Image, arch: str) -> str:
        name = re.sub(r"[^A-Za-z0-9._-]+", "+", str(image).partition("://")[2])
        return f"{name}+{arch}+{hashlib.sha256(str(image).encode()).hexdigest()[:8]}"

    def _record(self, image: Image, arch: str) -> Path:
        return self.folder / f"{self._stem(image, arch)}.json"

    def find(self, image: Image, arch: str | None = None) -> Entry | None:
        """Return an imported image whose file is there and whole, else None."""
        entry = _read(self._record(image, arch or platform.machine()))
        return entry if entry and not self._wrong(entry) else None

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
        log: Log = lambda _: None,
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
            if (entry.digest, entry.arch) != (digest, arch) or self._wrong(entry):
                continue
            if entry.reference != str(image):
                entry = replace(entry, reference=str(image), imported=time.time())
                write_json(self._record(image, arch), entry, public())
            return entry
        return None

    def _import(
        self, image: Image, arch: str, stem: str, known: str | None, fetch: Callable[[Path], None], log: Log
    ) -> Entry:
        for dead in self.folder.glob(f".{stem}.*.part"):  # whoever wrote it held this lock, and is gone
            dead.unlink(missing_ok=True)
        part = self.folder / f".{stem}.{socket.gethostname().partition('.')[0]}.{os.getpid()}.part"
        try:
            fetch(part)
            if wrong := self._form.problem(part):
                reason = f"the import ended without an error, but {wrong}"
                raise RunError("container.image", image, reason, "Import it again; look at the space that is left.")
            content = sha256(part)
            digest = known or f"sha256:{content}"
            path = self.folder / f"{digest.replace(':', '-')}+{arch}{self._form.suffix}"
            with regular(part) as file:
                os.fsync(file.fileno())
            size = part.stat().st_size
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        entry = Entry(str(image), arch, digest, content, size, time.time(), str(path.absolute()))
        write_json(self._record(image, arch), entry, public())
        log(f"imported {image}: {digest}")
        return entry

    def _wrong(self, entry: Entry) -> str | None:
        """Return what is wrong with an image's file, as far as it can be told without reading it; None: nothing."""
        with contextlib.suppress(OSError):
            if Path(entry.path).stat().st_size == entry.bytes:
                return self._form.problem(Path(entry.path))
        return "the file is not there, or has another length than when it was imported"

    def verify(self, entry: Entry) -> str | None:
        """Read a whole file again. Returns what is wrong with it, or None."""
        if wrong := self._wrong(entry):
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
            for path in self.folder.glob(f"*{self._form.suffix}"):
                if path.name not in named:
                    path.unlink(missing_ok=True)
                    removed.append(path.name)
        return removed


def _read(path: Path) -> Entry | None:
    """Return a record; None where there is none, or none of ours."""
    with contextlib.suppress(RunError, OSError):
        entry = load_form(path, Entry, SMALL, ours=True)
        # The directory may have moved, or be mounted elsewhere on another node.
        beside = path.parent / Path(entry.path).name
        if ways.is_ours(beside.stat()):  # a root file system of another user would run as this one
            return replace(entry, path=str(beside.absolute()))
    return None


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
        with contextlib.suppress(RunError, ValueError, TypeError):
            record = dict(load_json(self._record(now), SMALL, ours=True))
            digest = str(record.pop("digest", ""))
            return digest if record == asdict(now) and digest.startswith("sha256:") else None
        return None


def stock(order: Order) -> Stock:
    """Return what the store, or the path of the image, has; what an import takes, where it has nothing."""
    image, path, known = order.spec.image, order.spec.image.path, None
    with contextlib.suppress(RunError, OSError):
        if path is None and (entry := Store(order.store).find(image)):
            path, known = entry.path, entry.digest
        if path is not None:
            return Stock(None, known, _unpacked_gib(Path(path)))
    local = order.local
    imports = ((local.temp, IMPORT_FOLD, 0.0), (local.cache, 1.0, 1.0))
    needs = [("container.local_dir", *one) for one in imports] + [("container.images_path", order.store, 1.0, 1.0)]
    return Stock(needs=tuple(needs))


def _unpacked_gib(file: Path) -> float:
    with regular(file) as opened:
        flags = int.from_bytes(opened.read(_FLAGS.stop)[_FLAGS], "little")
    return file.stat().st_size / 2**30 * (1 if flags & _PLAIN_DATA else PACKED_FOLD)
