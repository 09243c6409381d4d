"""Squashfs images by `enroot import`, for enroot and pyxis: imported once into the store, which all nodes see."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from containers.base import Env, Order, Stock, log
from containers.local import Local
from containers.spec import Image
from containers.store import Store
from jobs.core import process
from jobs.core.errors import RunError

PREFIX = "serving-sweep."
"""Names of our roots: PREFIX job . service . rank, so that the leftovers of a dead job are known by their names."""


def import_argv(image: Image, output: Path, arch: str | None = None) -> list[str]:
    """Return the import of an image to a squashfs file."""
    return ["enroot", "import", *(("--arch", arch) if arch else ()), "--output", str(output), image.enroot()]


def fetch(image: Image, output: Path, local: Local, env: Mapping[str, str], arch: str | None = None) -> None:
    """Import an image into a file. Whatever ends it ends all its processes and takes its unpacked layers away.

    Raises:
        RunError: enroot failed.
    """
    local.make()
    _sweep_temp(local.temp)
    temp = local.temp / f"{PREFIX}import.{os.getpid()}"
    temp.mkdir(mode=0o700)
    try:
        whole = dict(env) | local.env() | {"ENROOT_TEMP_PATH": str(temp)}
        code, output_text = process.stream(import_argv(image, output, arch), whole, sys.stderr)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    if code != 0:
        raise failure("import", "container.image", image, code, output_text)


def _sweep_temp(temp: Path) -> None:
    """Remove the unpacked layers of imports that were killed: enroot leaves them in full size."""
    for path in temp.glob(f"{PREFIX}import.*"):
        pid = path.name.rpartition(".")[2]
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            shutil.rmtree(path, ignore_errors=True)


def digest(image: Image, env: Mapping[str, str]) -> str | None:
    """Ask the registry for an image's digest; None where this enroot cannot (before 4.0) or the registry does not."""
    if not image.remote:
        return None
    found = process.run(["enroot", "digest", image.enroot()], env=env, timeout_s=120)
    match = re.search(r"sha256:[0-9a-f]{64}", found.stdout)
    return match.group() if match and found.returncode == 0 else None


_FAULTS = (
    (r"Could not resolve host|curl: \(6\)", "the registry's name is not known here", "Check container.registry."),
    (r"curl: \((35|60)\)", "the registry's TLS does not work", "See ENROOT_ALLOW_HTTP and the site's certificates."),
    (r"error code: 40[13]|401 Unauthorized|403 Forbidden", "the registry refuses access, or has no such image",
     "Put its credentials into enroot's .credentials (netrc lines, the authentication host's too)."),
    (r"error code: 404|404 Not Found", "the registry has no such image or tag", "Check container.image."),
    (r"No space left on device|Disk quota exceeded", "the disk is full",
     "Free space, or set container.local_dir or container.images_path."),
    (r"File system corruption|Invalid image format|find a SQUASHFS superblock", "the squashfs file is damaged",
     "Import it again: python -m jobs image prune, then import."),
    (r"Could not acquire rootfs lock", "another start holds the root for more than 30 s", "Start one at a time."),
    (r"cannot create directory|Permission denied", "a directory of enroot cannot be written",
     "Set container.local_dir to a directory of the node that is yours."),
    (r"user namespace|unshare.*(Operation not permitted|No space left)|max_user_namespaces",
     "user namespaces are not allowed on this node", "Ask for user.max_user_namespaces > 0."),
    (r"File already exists", "a file or root of this name is there already", "Remove it, or choose another name."),
    (r"No such file or directory", "a file is not there", "Check the paths of `container`."),
    (r"^Usage:", "this enroot does not know the options that were used", "Use enroot 3.4 or newer."),
)  # fmt: skip


def failure(what: str, key: str, value: object, code: int, output: str) -> RunError:
    """Return enroot's failure as an error that says what to do; its own code is 1 for nearly everything."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\[ERROR\]|FATAL ERROR|^curl:|^mkdir:|^enroot-", line)]
    words = (errors or lines or ["(it said nothing)"])[-1][:300]
    for pattern, reason, remedy in _FAULTS:
        if re.search(pattern, output, re.MULTILINE):
            return RunError(key, value, f"enroot {what} ended with code {code}: {reason} ({words})", remedy)
    return RunError(key, value, f"enroot {what} ended with code {code}: {words}", "Try it by hand.")


_FLAGS = slice(24, 26)
_PLAIN_DATA = 0x2
"""Flags of a squashfs 4.0 superblock: data blocks are not compressed (Linux, fs/squashfs/squashfs_fs.h)."""

IMPORT_FOLD = 3.0
"""An import unpacks all layers beside each other: two to three times the image."""

PACKED_FOLD = 3
"""How much larger the root of a compressed squashfs file may be; enroot's own files hold their data as it is."""


def stored(order: Order, env: Env) -> str:
    """Return the file of an image in the store, importing it where the store has it not yet."""
    image, local = order.spec.image, order.local
    return (
        Store(order.store)
        .ensure(
            image,
            lambda output: fetch(image, output, local, env),
            lambda: digest(image, dict(env) | local.env()),
            log=log,
        )
        .path
    )


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
    with file.open("rb") as opened:
        flags = int.from_bytes(opened.read(_FLAGS.stop)[_FLAGS], "little")
    return file.stat().st_size / 2**30 * (1 if flags & _PLAIN_DATA else PACKED_FOLD)
