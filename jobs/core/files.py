"""Files that are the record: written atomically, read with clear errors. Their names: jobs/core/rundir.py."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from jobs.core.errors import RunError

CHUNK_BYTES = 8 << 20


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old content or the new one, never half of it.

    Raises:
        RunError: the directory cannot be written (full disk, no right).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunError(str(path), "(write)", str(error), "Free space, or choose another results.root.") from error


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write text atomically."""
    write_bytes(path, text.encode(), mode)


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Write one JSON value atomically, readable by people."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", mode)


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        RunError: it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(str(path), "(read)", str(error), "Is this the directory of a sweep?") from None


def from_yaml(text: str) -> Any:
    """Return the data of a YAML text, read by libyaml where PyYAML has it: ten times as fast.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


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


def sha256(path: Path, stop: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 of a whole file.

    Raises:
        InterruptedError: `stop`, which is asked meanwhile, was true.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            if stop():
                raise InterruptedError(str(path))
            digest.update(chunk)
    return digest.hexdigest()


def append_json(path: Path, value: Any) -> None:
    """Append one line of JSON; one write call, so that lines of two processes do not mix.

    Raises:
        RunError: the file cannot be written (full disk, no right).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write((json.dumps(value, ensure_ascii=False, default=str) + "\n").encode())
    except OSError as error:
        raise RunError(str(path), "(write)", str(error), "Free space, or choose another results.root.") from error


def read_lines(path: Path) -> list[Any]:
    """Return the JSON values of a `.jsonl` file; a half-written last line is left out."""
    if not path.exists():
        return []
    values = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            continue
    return values
