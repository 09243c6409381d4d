"""Stage a checkpoint to a node's own disk: once a node, whole or not at all.

The copy has a directory of its own, named after the source's identity: another state of the source is another copy
and never writes over one that an engine reads. Its stamp is written last of all, after sizes, headers and sampled
blocks agree with the source; a copy without its stamp is taken up again and never used. A lock beside it lets one
process of the node work; the others wait, and find the copy.

A rank has it done by `python -m jobs.engines.checkpoint`: its order and the answer are a file each.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.core.errors import RunError
from jobs.core.files import is_there, make_private, not_private, read_json, write_json
from jobs.core.lock import exclusive
from jobs.engines.checkpoint.checkpoint import BESIDE, CONFIG, PART, STAMP, check_small, files, read_shards
from jobs.engines.checkpoint.copying import Copied, Progress, check_space, copy_files, is_copied
from jobs.engines.checkpoint.manifest import SAMPLED, compare, make_manifest

PARALLEL = 8

KEY = "model.stage_to"


@dataclass(frozen=True)
class Staged:
    """A staged copy: where it is, whether it was there before, what was copied (bytes), and how long it took (s)."""

    path: Path
    reused: bool
    bytes: int
    seconds: float


def identity(source: Path) -> str:
    """Return a short hash of what the source is now (path, names, sizes, times of change), and of who copies it.

    A copy belongs to one user: nobody can put other weights or code into what somebody else serves.
    """
    states = [(name, (source / name).stat()) for name in files(source)]
    lines = [f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states]
    return hashlib.sha256("\n".join([str(source.resolve()), str(os.geteuid()), *lines]).encode()).hexdigest()[:12]


def check_there(source: Path) -> None:
    """Raise RunError unless the checkpoint's directory is on this node."""
    if is_there(source) is None:
        reason, remedy = "this user cannot see it on this node", "Open the directory above it, or set model.path."
        raise RunError("model.path", source, reason, remedy)
    if not source.is_dir():
        remedy = "Fetch the checkpoint (`python -m jobs model fetch`), or set model.path."
        raise RunError("model.path", source, "there is no such directory on this node", remedy)


def stage(
    source: Path,
    root: Path,
    *,
    parallel: int = PARALLEL,
    weights: bool = True,
    progress: Progress = lambda _: None,
    waiting: Callable[[str], None] = lambda _: None,
) -> Staged:
    """Copy a checkpoint below `root`, a directory on the node's own disk, which is made, unless that has been done.

    Args:
        parallel: files that are copied at a time.
        weights: whether the checkpoint holds weights that are to be checked.
        waiting: called once where another process of this node stages the same, with who that is.

    Raises:
        RunError: there is no such source, too little space, a failed copy, or a copy that differs from its source.
    """
    begun = time.monotonic()
    check_there(source)
    try:
        root.mkdir(parents=True, exist_ok=True)
        name = f"{source.resolve().name}-{identity(source)}"
        target = root / name
        with exclusive(root / f".{name}.lock", waiting):
            if is_staged(target):
                return Staged(target, True, 0, time.monotonic() - begun)
            copied = _fill(source, target, parallel, weights, progress)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or root})"
        raise RunError(KEY, root, reason, "Name a directory that you can write on every node.") from None
    return Staged(target, False, copied.total - copied.kept, time.monotonic() - begun)


def is_staged(target: Path) -> bool:
    """Return whether a copy is complete: its stamp is there, and every file of the stamp has its size."""
    stamp = target / STAMP
    if not stamp.exists() or not_private(target):
        return False
    try:
        sizes = dict(read_json(stamp)["files"])
    except (RunError, KeyError, TypeError, ValueError):
        return False
    return bool(sizes) and sizes == files(target)


def _fill(source: Path, target: Path, parallel: int, weights: bool, progress: Progress) -> Copied:
    sizes = files(source)
    for name, size in sizes.items():
        if name in (CONFIG, *BESIDE) or name.endswith(".py"):
            check_small("model.path", source / name, size)
    make_private(target)
    (target / STAMP).unlink(missing_ok=True)
    _clear(target, source)
    needed = sum(size for name, size in sizes.items() if not is_copied(source / name, target / name))
    check_space(KEY, target, needed, _advice(target))
    try:
        copied = copy_files(source, target, sizes, parallel=parallel, progress=progress, private=True)
    except RunError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
            # Nobody can use it, and others of this node need the space.
            shutil.rmtree(target, ignore_errors=True)
            raise RunError(KEY, target.parent, f"the disk ran full: {error.reason}", _advice(target)) from None
        raise
    _check(source, target, weights)
    record = {"source": str(source.resolve()), "files": sizes, "time": time.time()}
    write_json(target / STAMP, record)
    return copied


def _clear(target: Path, source: Path) -> None:
    """Remove what a killed copy left that cannot be used: halves, and files that are no copies."""
    for file in [path for path in target.rglob("*") if path.is_file()]:
        name = file.relative_to(target)
        if file.suffix == PART or not is_copied(source / name, file):
            file.unlink()


def _check(source: Path, target: Path, weights: bool) -> None:
    """Raise RunError unless the copy is what its source is."""
    wrong = list(read_shards(target).findings) if weights else []
    if not wrong:
        original, _ = make_manifest(source, sampled=SAMPLED)
        copy, unreadable = make_manifest(target, like=original)
        wrong = [*unreadable, *compare(copy, original, "the source")]
    if wrong:
        for name in {finding.file for finding in wrong} & files(target).keys():  # nothing that lies elsewhere
            (target / name).unlink(missing_ok=True)
        remedy = "Check the source: `python -m jobs model verify`."
        raise RunError(KEY, target, f"the copy is not right: {wrong[0]}", remedy)


def _advice(target: Path) -> str:
    """Name the other copies beside it: what could be removed."""
    root = target.parent
    others = [path for path in root.iterdir() if path.is_dir() and (path / STAMP).exists()] if root.is_dir() else []
    names = [f"{path} ({sum(files(path).values()) / 2**30:.1f} GiB)" for path in sorted(others) if path != target]
    if names:
        return f"Remove a staged copy that nobody uses: {', '.join(names)}; or name a larger disk."
    return "Free space there, or name a larger disk."


@dataclass(frozen=True)
class StageOrder:
    """What is to be done before the engine starts, and the file for the answer.

    Attributes:
        stage_to: directory of this node that it is copied into; None: it is served from where it is.
        check: whether its sizes are compared with its index.
        sampled: how many shards are read and hashed in part as well.
        quantized: what its weights shall be: W8A8, W4A8 or empty.
        weights: whether there are any; else only what describes the model.
    """

    source: str
    stage_to: str | None
    check: bool
    sampled: int
    quantized: str
    weights: bool
    result: str

    def write(self, path: Path) -> None:
        """Write the order; an old answer is removed."""
        Path(self.result).unlink(missing_ok=True)
        write_json(path, self)

    @staticmethod
    def read(path: Path) -> StageOrder:
        """Read an order."""
        return StageOrder(**read_json(path))


@dataclass(frozen=True)
class Answer:
    """The checkpoint as it is now: where, short hashes of its parts, its manifest; GB/s of its copy, if it was one."""

    path: str
    parts: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, Any] | None = None
    gb_s: float | None = None


def read_answer(path: Path) -> Answer | None:
    """Return the answer, an `Answer` or the arguments of an error; None: there is none. RunError: it is an error."""
    if not path.exists():
        return None
    found = read_json(path)
    if "error" in found:
        raise RunError(*found["error"])
    return Answer(**found)
