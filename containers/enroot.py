"""enroot by subprocess: import, create, start, remove. What it lacks is added here: locks, whole results, clear errors.

Grammar of enroot 3.4 to 4.1 (enroot.in, runtime.sh, docker.sh). enroot itself checks and then unpacks, without a lock:
a half-made root shows in `enroot list` and starts. So a root is made under another name and renamed when it is whole.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from containers.spec import Image, Mount, Spec, check_flags
from jobs.core import process
from jobs.core.errors import ConfigError, RunError
from jobs.core.lock import exclusive

PREFIX = "serving-sweep."
"""Names of our roots: PREFIX job . service . rank, so that the leftovers of a dead job are known by their names."""

PART = ".part."
"""Stands in the name of a root that is being made."""

MARKER = ".serving-sweep"
"""File in a root of ours: the mark of the rank that it was made for, and the identity that no copy of it has."""

REMOVE_TRIES = 5


@dataclass(frozen=True)
class Paths:
    """Where enroot keeps things on this node; unset in a batch job, where XDG_RUNTIME_DIR is missing."""

    data: Path
    cache: Path
    runtime: Path
    temp: Path

    def env(self) -> dict[str, str]:
        """Return the variables that name these directories."""
        return {
            "ENROOT_DATA_PATH": str(self.data),
            "ENROOT_CACHE_PATH": str(self.cache),
            "ENROOT_RUNTIME_PATH": str(self.runtime),
            "ENROOT_TEMP_PATH": str(self.temp),
        }

    def make(self) -> None:
        """Make them, for this user alone.

        Raises:
            RunError: one of them cannot be made, or belongs to somebody else.
        """
        for key in ("data", "cache", "runtime", "temp"):
            path: Path = getattr(self, key)
            try:
                path.mkdir(parents=True, mode=0o700, exist_ok=True)
                strange = key != "temp" and path.stat().st_uid != os.getuid()
                wrong = "it belongs to somebody else" if strange else None
                wrong = wrong or (None if os.access(path, os.W_OK | os.X_OK) else "it cannot be written")
            except OSError as error:
                wrong = str(error)
            if wrong:
                remedy = "Name a directory of the node that is yours, with {uid} or {user} in it."
                raise RunError(f"container.{key}_path", path, wrong, remedy)


def import_argv(image: Image, output: Path, arch: str | None = None) -> list[str]:
    """Return the import of an image to a squashfs file."""
    return ["enroot", "import", *(("--arch", arch) if arch else ()), "--output", str(output), image.enroot()]


def create_argv(file: Path, name: str) -> list[str]:
    """Return the unpacking of a squashfs file to a root."""
    return ["enroot", "create", "--name", name, str(file)]


def remove_argv(name: str) -> list[str]:
    """Return the removal of a root; without --force it asks on stdin and removes nothing."""
    return ["enroot", "remove", "--force", name]


def start_argv(spec: Spec, name: str, rc: Path, command: Sequence[str]) -> list[str]:
    """Return the start of a root. Argv words stay words; the rc file keeps the image's ENTRYPOINT out."""
    words = ["enroot", "start"]
    words += ["--root"] if spec.remap_root else []
    words += ["--rw"] if spec.writable else []
    words += ["--conf", spec.conf] if spec.conf else []
    for mount in (*spec.mounts, *(Mount(device, device) for device in spec.devices)):
        words += ["--mount", fstab(mount)]
    for variable, value in spec.env.items():
        words += ["--env", variable] if survives(variable, value) else []
    return [*words, "--rc", str(rc), name, *command]


def exec_argv(pid: int, command: Sequence[str]) -> list[str]:
    """Return what runs a further command in a running container, whose mounts and variables it gets.

    Args:
        pid: of the container's first process, as the node counts: what `enroot start` has become.
        command: program and arguments inside.
    """
    return ["enroot", "exec", str(pid), *command]


def fstab(mount: Mount) -> str:
    """Return a mount as an fstab line with colons (enroot start --mount).

    Options replace the defaults: `src:dst:ro` alone is no bind mount and fails, so they are always written out.
    """
    if mount.bind:
        return f"{mount.source}:{mount.target}:{','.join(('x-create=auto', 'rbind', *mount.flags))}"
    if mount.source == "tmpfs":
        return f"tmpfs:{mount.target}:tmpfs:{','.join(('x-create=dir', *mount.flags))}"
    return f"none:{mount.target}:none:{','.join(('x-detach', *mount.flags))}"


def survives(variable: str, value: str) -> bool:
    """Return whether `--env` hands a value on unchanged: it ends at a newline, loses outer quotes and blanks, and
    variables of enroot's own are dropped. The entry script sets all of them, these too.
    """
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    plain = "\n" not in value and not quoted and value == value.strip()
    return plain and not variable.startswith("ENROOT_")


def start_env(spec: Spec, paths: Paths) -> dict[str, str]:
    """Return enroot's own settings for a start: what a site's enroot.conf says of them does not hold.

    Without a login shell the image's PATH survives: its /etc/profile would set another one.
    """
    settings = {
        "ENROOT_LOGIN_SHELL": False,
        "ENROOT_MOUNT_HOME": spec.mount_home,
        "ENROOT_REMAP_ROOT": spec.remap_root,
        "ENROOT_ROOTFS_WRITABLE": spec.writable,
    }
    return paths.env() | {name: "y" if wanted else "n" for name, wanted in settings.items()}


def check(spec: Spec) -> None:
    """Raise ConfigError for what enroot cannot be told."""
    check_flags(spec.mounts)
    for mount in spec.mounts:
        if re.search(r"\s", f"{mount.source}{mount.target}"):
            reason = "enroot takes no blank in a mount"
            raise ConfigError("container.mounts", mount, reason, "Use a path without blanks, or a link to it.")
    if spec.name is not None and ("/" in spec.name or not spec.name or spec.name.startswith("-")):
        raise ConfigError("container.name", spec.name, "a name has no / and no - in front", "Choose another name.")
    if spec.name is not None and spec.name.startswith(PREFIX):
        reason = "roots of such names are removed when no rank of theirs lives"
        raise ConfigError("container.name", spec.name, reason, "Choose another name, or leave it out.")


_FAULTS = (
    (r"Could not resolve host|curl: \(6\)", "the registry's name is not known here", "Check container.registry."),
    (r"curl: \((35|60)\)", "the registry's TLS does not work", "See ENROOT_ALLOW_HTTP and the site's certificates."),
    (r"error code: 40[13]|401 Unauthorized|403 Forbidden", "the registry refuses access, or has no such image",
     "Put its credentials into enroot's .credentials (netrc lines, the authentication host's too)."),
    (r"error code: 404|404 Not Found", "the registry has no such image or tag", "Check container.image."),
    (r"No space left on device|Disk quota exceeded", "the disk is full",
     "Free space, or set container.data_path, container.temp_path or container.images_path."),
    (r"File system corruption|Invalid image format|find a SQUASHFS superblock", "the squashfs file is damaged",
     "Import it again: python -m jobs image prune, then import."),
    (r"Could not acquire rootfs lock", "another start holds the root for more than 30 s", "Start one at a time."),
    (r"cannot create directory|Permission denied", "a directory of enroot cannot be written",
     "Set container.data_path, .cache_path, .runtime_path and .temp_path to directories that are yours."),
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


def fetch(image: Image, output: Path, paths: Paths, env: Mapping[str, str], arch: str | None = None) -> None:
    """Import an image into a file. Whatever ends it ends all its processes and takes its unpacked layers away.

    Raises:
        RunError: enroot failed.
    """
    paths.make()
    _sweep_temp(paths.temp)
    temp = paths.temp / f"{PREFIX}import.{os.getpid()}"
    temp.mkdir(mode=0o700)
    try:
        whole = dict(env) | paths.env() | {"ENROOT_TEMP_PATH": str(temp)}
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
    if image.scheme != "docker":
        return None
    found = process.run(["enroot", "digest", image.enroot()], env=env, timeout_s=120)
    match = re.search(r"sha256:[0-9a-f]{64}", found.stdout)
    return match.group() if match and found.returncode == 0 else None


def create(file: Path, name: str, paths: Paths, env: Mapping[str, str], tag: str) -> Path:
    """Make a root of a squashfs file for a rank, or take the one that it has. Returns its directory.

    A root of this name is always whole: it is made under another name, under a lock of this node, then renamed.

    Raises:
        RunError: enroot failed, or the name is somebody else's.
    """
    paths.make()
    root, whole, own = paths.data / name, dict(env) | paths.env(), root_name(tag)

    def waiting(who: str) -> None:
        print(f"{who} creates a root here: waiting to create {name}", file=sys.stderr)

    with exclusive(paths.data / ".serving-sweep.lock", waiting):
        if root.exists():
            if owner(root) == tag:
                return root
            raise clash(name, paths)
        for dead in paths.data.glob(f"{own}{PART}*"):  # whoever made it held this lock, and is gone
            remove(dead.name, paths, env)
        part = f"{own}{PART}{os.getpid()}"
        made = False
        try:
            code, output = process.stream(create_argv(file, part), whole, sys.stderr)
            if code != 0:
                raise failure("create", "container.image", file, code, output)
            if wrong := _half_made(paths.data / part):
                raise RunError("container.image", file, f"enroot create ended without an error, but {wrong}", "Retry.")
            _tag(paths.data / part, tag)
            (paths.data / part).rename(root)
            made = True
        finally:
            if not made:
                remove(part, paths, env)
    return root


def _tag(root: Path, tag: str) -> None:
    try:
        (root / MARKER).write_text(f"{tag}\n{identity(root)}\n")
    except OSError as error:
        raise RunError(str(root), "(mark)", str(error), "enroot itself has to write into a root; look there.") from None


def owner(root: Path) -> str | None:
    """Return the mark of the rank that a root was made for; None: we did not make it."""
    try:
        tag, made = (root / MARKER).read_text().splitlines()
        return tag if made == identity(root) else None
    except (OSError, ValueError):
        return None


def clash(name: str, paths: Paths) -> RunError:
    """Return the error that says whose a root is that stands in the way."""
    tag = owner(paths.data / name)
    whose = f"of the rank {tag} (job/service/rank), which lives" if tag else "that this tool did not make"
    return RunError(
        "container.name",
        name,
        f"there is a root of this name already in {paths.data}, {whose}",
        f"Put {{job}} into the name, or leave it out; `ENROOT_DATA_PATH={paths.data} enroot remove {name}` removes it.",
    )


def _half_made(root: Path) -> str | None:
    if not root.is_dir():
        return f"there is no {root}"
    if not any((root / name).exists() for name in ("bin/sh", "usr/bin/sh", "bin/bash", "usr/bin/bash")):
        return f"{root} has no shell"
    return None


def remove(name: str, paths: Paths, env: Mapping[str, str]) -> str | None:
    """Remove a root, whatever state it is in. Returns what is left of it, or None."""
    root = paths.data / name
    for _ in range(REMOVE_TRIES):
        if not root.exists():
            return None
        process.run(remove_argv(name), env=dict(env) | paths.env(), timeout_s=600)
        if root.exists():  # a child of a killed create may still write into it
            time.sleep(0.2)
            shutil.rmtree(root, ignore_errors=True)
    return f"container {root}" if root.exists() else None


def remove_made(name: str, tag: str, paths: Paths, env: Mapping[str, str]) -> list[str]:
    """Remove the root that was made for a rank, and what unfinished creations left of it. Returns what is left."""
    own = root_name(tag)
    names = {path.name for path in paths.data.glob(f"{own}{PART}*")} | {own}
    if owner(paths.data / name) == tag:
        names.add(name)
    left = [remove(one, paths, env) for one in sorted(names)]
    return [one for one in left if one]


def root_name(tag: str) -> str:
    """Return the name of the root of one rank, from its mark job/service/rank."""
    return PREFIX + tag.replace("/", ".")


def leftovers(paths: Paths, living: Callable[[], set[str]]) -> list[str]:
    """Return the names of our roots that belong to no living rank.

    Args:
        paths: where roots are.
        living: returns the marks of living ranks (process.marks). It is asked after the roots were listed: the root of
            a rank that begins meanwhile is then not among them.
    """
    names = sorted(path.name for path in paths.data.glob(f"{PREFIX}*") if path.is_dir())
    used = {root_name(tag) for tag in living()}
    return [name for name in names if name.partition(PART)[0] not in used]


def identity(root: Path) -> str:
    """Return device and inode of a directory, as the inside sees them of its root."""
    found = root.stat()
    return f"{found.st_dev}:{found.st_ino}"
