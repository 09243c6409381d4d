"""Files that are the record: written atomically, read with clear errors. Their names: jobs/core/rundir.py."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from jobs.core import masking, ways
from jobs.core.errors import RunError
from jobs.core.foreign import load_bytes, load_json, parse_json, regular

CHUNK_BYTES = 8 << 20

SECRET = 0o600
"""Mode of a file that is there to hold a secret."""


def write_bytes(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file so that a reader sees the old content or the new one, never half of it. No link is followed.

    Directories that are missing are made. `mode` None: for this user alone, in a directory that is shared with a group
    for that group too (jobs/core/sharing.py).

    Raises:
        RunError: the directory cannot be written (full disk, no right).
    """
    try:
        # What the user has named alone may lie in a directory of another user.
        with ways.folder(path.parent, named=mode not in (None, SECRET)) as folder:
            _put(folder, path.name, data, _mode(folder) if mode is None else mode)
    except OSError as error:
        raise unwritten(path, error) from error


def _put(folder: int, name: str, data: bytes, mode: int) -> None:
    part = f".{name[:50]}.{secrets.token_hex(4)}"
    handle = os.open(part, _NEW, 0o600, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
        raise


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _mode(folder: int) -> int:
    return 0o640 if ways.is_shared(os.fstat(folder)) else 0o600


def public() -> int:
    """Return the mode of a file that the user asked for by its name: the umask decides, as with any program."""
    os.umask(mask := os.umask(0o077))
    return 0o666 & ~mask


def make_directory(path: Path) -> None:
    """Make a directory and those above it, for this user alone or for the group of a shared one.

    Another rank may make the same one at the same moment.

    Raises:
        OSError: it cannot be made.
    """
    with ways.folder(path, named=True):
        pass


def new_file(path: Path, mode: int) -> io.FileIO:
    """Open a new file for writing: one that is there already, a link too, is an error. OSError: it cannot be made."""
    with ways.folder(path.parent, named=True) as folder:
        return os.fdopen(os.open(path.name, _NEW, mode, dir_fd=folder), "wb", 0)


def open_append(path: Path, mode: int | None = None) -> io.FileIO:
    """Open a regular file for appending, made where it is missing (modes: see `write_bytes`); no link is followed.

    Raises:
        OSError: it cannot be written, or is none.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with ways.folder(path.parent, named=mode is not None) as folder:
        place = os.fstat(folder)
        handle = os.open(path.name, flags, _mode(folder) if mode is None else mode, dir_fd=folder)
    info = os.fstat(handle)
    # Where others make names one of them may be a second name of a file of ours.
    is_second = info.st_nlink > 1 and (place.st_uid != os.geteuid() or place.st_mode & 0o022)
    if is_second or not stat.S_ISREG(info.st_mode):
        os.close(handle)
        reason = "it is a second name of a file" if is_second else "it is no regular file"
        raise OSError(errno.EINVAL, reason, str(path))
    return os.fdopen(handle, "ab", 0)


def remove(path: Path) -> None:
    """Remove a file of ours, where it is there; through no link of somebody else. OSError: it cannot be removed."""
    with contextlib.suppress(FileNotFoundError):
        path.parent.lstat()  # it is not made
        with ways.folder(path.parent) as folder:
            os.unlink(path.name, dir_fd=folder)


def not_private(path: Path) -> str | None:
    """Return why others could put something of theirs in the place of a directory or one above it; None: they can't.

    Where anybody may make names (/tmp), everything below has to be this user's, and writable to nobody else.
    """
    below_all = False
    parts = [*reversed(path.absolute().parents), path.absolute()]
    for number, part in enumerate(parts):
        try:
            info = part.lstat()
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # who wants to make something there will fail
            return None
        others = info.st_mode & 0o022
        if stat.S_ISLNK(info.st_mode):
            if not ways.is_ours(info):
                return f"{part} is a link of somebody else"
            return not_private(Path(os.path.realpath(part)).joinpath(*path.absolute().parts[number + 1 :]))
        last, sticky = part == parts[-1], bool(info.st_mode & stat.S_ISVTX)
        if (below_all or last) and info.st_uid != os.geteuid() and not (ways.is_ours(info) and not last):
            return f"{part} belongs to somebody else"
        if below_all and others and (last or not sticky):
            return f"others may write to {part}"
        if others & 0o002 and not last:
            if not sticky:
                return f"anybody may rename what is in {part}"
            below_all = True
    return None


def make_private(path: Path) -> None:
    """Make a directory for this user alone; one that is there is only good where nobody else can exchange it.

    Raises:
        OSError: it cannot be made, or is not good.
    """
    make_directory(path)
    if wrong := not_private(path):
        raise PermissionError(errno.EPERM, wrong, str(path))
    path.chmod(0o700)


def private_place(place: str) -> str:
    """Return a directory for temporary directories: this one, or /tmp where others can exchange what is made in it."""
    return "/tmp" if not_private(Path(place) / "x") else place


def own_folder(root: Path, name: str) -> Path:
    """Return the directory of this name below a root that several users share; where it is another's, with the uid.

    Others may have taken that too, or have put a link there: then its name ends in letters that nobody can know before.
    """
    uid = os.geteuid()
    for path in (root / name, own := root / f"{name}-{uid}"):
        if not os.path.lexists(path) or _is_own_folder(path):
            return path
    mine = sorted(path for path in root.glob(f"{own.name}-*") if _is_own_folder(path))
    return mine[0] if mine else root / f"{own.name}-{secrets.token_hex(4)}"


def _is_own_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        info = path.lstat()
        return info.st_uid == os.geteuid() and stat.S_ISDIR(info.st_mode)
    return False


def write_text(path: Path, text: str, mode: int | None = None) -> None:
    """Write text atomically; modes: see `write_bytes`. Known secrets are masked, but in a file of mode SECRET."""
    write_bytes(path, _utf8(text if mode == SECRET else masking.known_away(text)), mode)


def _utf8(text: str) -> bytes:
    """Return a text in UTF-8; of a path that the locale of the shell could not read its own bytes, where they are."""
    for errors in ("strict", "surrogateescape"):
        with contextlib.suppress(UnicodeError):
            content = text.encode("utf-8", errors)
            content.decode()
            return content
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, value: Any, mode: int | None = None) -> None:
    """Write one JSON value, or a dataclass as `load_form` reads it, atomically; modes: see `write_bytes`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n", mode)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def read_json(path: Path) -> Any:
    """Read one JSON file. RunError: it is missing, is not JSON, or is not to be read (jobs/core/foreign.py)."""
    return load_json(path)


def is_there(path: Path) -> bool | None:
    """Return whether a path exists; None: it cannot be seen, for example behind a directory of root's.

    `Path.exists` raises PermissionError in that case.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    return True


def nearest_there(path: Path) -> Path:
    """Return the nearest directory above that can be seen; a directory of root's counts as its parent."""
    while path != path.parent and not is_there(path):
        path = path.parent
    return path


def remove_tree(path: Path) -> bool:
    """Remove a directory with all that is in it, also what its owner may not write. Returns whether it is gone.

    Layers of images have such directories; where one lies on the way its owner opens it.
    """

    def opened(remove: Callable[..., Any], name: str, _: Any) -> None:
        with contextlib.suppress(OSError):
            for one in (Path(name).parent, Path(name)):
                if one.is_dir() and not one.is_symlink() and (one == path or path in one.parents):
                    one.chmod(0o700)
            if remove in (os.unlink, os.rmdir):
                remove(name)
            else:
                shutil.rmtree(name, ignore_errors=True)

    shutil.rmtree(path, onerror=opened)
    return not path.exists()


def sha256(path: Path, stop: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 of a whole file.

    Raises:
        InterruptedError: `stop`, which is asked meanwhile, was true.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with regular(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            if stop():
                raise InterruptedError(str(path))
            digest.update(chunk)
    return digest.hexdigest()


def unwritten(path: Path, error: OSError) -> RunError:
    """Return what is said of a file that could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "Free space, or choose another results.root." if full else "Choose a place that you can write."
    return RunError(str(path), "(write)", error.strerror or str(error), remedy)


def append_json(path: Path, value: Any) -> None:
    """Append one line of JSON; one write call, so that lines of two processes do not mix.

    Raises:
        RunError: the file cannot be written (full disk, no right).
    """
    try:
        make_directory(path.parent)
        with open_append(path) as file:
            file.write(_utf8(masking.known_away(json.dumps(value, ensure_ascii=False, default=str)) + "\n"))
    except OSError as error:
        raise unwritten(path, error) from error


def read_lines(path: Path) -> list[Any]:
    """Return the JSON values of a `.jsonl` file, without half-written lines; none where it cannot be read."""
    values = []
    try:
        lines = load_bytes(path).splitlines()
    except RunError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError):
            values.append(parse_json(line))
    return values
