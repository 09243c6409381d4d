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
from dataclasses import replace
from pathlib import Path

from containers.base import Env, Fetched, Inside, Log, Order, Runtime, Start, Stock, check_programs, log, lost
from containers.imports import PREFIX, failure, import_argv, stock, stored
from containers.local import Local
from containers.spec import Mount, Spec, check_flags, option_words
from containers.store import problem
from jobs.core import process
from jobs.core.errors import ConfigError, RunError
from jobs.core.lock import exclusive
from jobs.core.registry import RUNTIMES

PART = ".part."
"""Stands in the name of a root that is being made."""

MARKER = ".serving-sweep"
"""File in a root of ours: the tag of the rank that it was made for, and the identity that no copy of it has."""

REMOVE_TRIES = 5


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
    return [*words, *option_words(spec.args), "--rc", str(rc), name, *command]


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


def start_env(spec: Spec, local: Local) -> dict[str, str]:
    """Return enroot's own settings for a start: what a site's enroot.conf says of them does not hold.

    Without a login shell the image's PATH survives: its /etc/profile would set another one.
    """
    settings = {
        "ENROOT_LOGIN_SHELL": False,
        "ENROOT_MOUNT_HOME": spec.mount_home,
        "ENROOT_REMAP_ROOT": spec.remap_root,
        "ENROOT_ROOTFS_WRITABLE": spec.writable,
    }
    return local.env() | {name: "y" if wanted else "n" for name, wanted in settings.items()}


def create(file: Path, name: str, local: Local, env: Mapping[str, str], tag: str) -> Path:
    """Make a root of a squashfs file for a rank, or take the one that it has. Returns its directory.

    A root of this name is always whole: it is made under another name, under a lock of this node, then renamed.

    Raises:
        RunError: enroot failed, or the name is somebody else's.
    """
    local.make()
    root, whole, own = local.data / name, dict(env) | local.env(), root_name(tag)

    def waiting(who: str) -> None:
        print(f"{who} creates a root here: waiting to create {name}", file=sys.stderr)

    with exclusive(local.data / ".serving-sweep.lock", waiting):
        if root.exists():
            if owner(root) == tag:
                return root
            raise clash(name, local)
        for dead in local.data.glob(f"{own}{PART}*"):  # whoever made it held this lock, and is gone
            remove(dead.name, local, env)
        part = f"{own}{PART}{os.getpid()}"
        made = False
        try:
            code, output = process.stream(["enroot", "create", "--name", part, str(file)], whole, sys.stderr)
            if code != 0:
                raise failure("create", "container.image", file, code, output)
            if wrong := _half_made(local.data / part):
                raise RunError("container.image", file, f"enroot create ended without an error, but {wrong}", "Retry.")
            _tag(local.data / part, tag)
            (local.data / part).rename(root)
            made = True
        finally:
            if not made:
                remove(part, local, env)
    return root


def _tag(root: Path, tag: str) -> None:
    try:
        (root / MARKER).write_text(f"{tag}\n{identity(root)}\n", encoding="utf-8")
    except OSError as error:
        raise RunError(str(root), "(tag)", str(error), "enroot itself has to write into a root; look there.") from None


def owner(root: Path) -> str | None:
    """Return the tag of the rank that a root was made for; None: we did not make it."""
    try:
        tag, made = (root / MARKER).read_text(encoding="utf-8").splitlines()
        return tag if made == identity(root) else None
    except (OSError, ValueError):
        return None


def clash(name: str, local: Local) -> RunError:
    """Return the error that says whose a root is that stands in the way."""
    tag = owner(local.data / name)
    whose = f"of the rank {tag} (job/service/rank), which lives" if tag else "that this tool did not make"
    return RunError(
        "container.name",
        name,
        f"there is a root of this name already in {local.data}, {whose}",
        f"Put {{job}} into the name, or leave it out; `ENROOT_DATA_PATH={local.data} enroot remove {name}` removes it.",
    )


def _half_made(root: Path) -> str | None:
    if not root.is_dir():
        return f"there is no {root}"
    if not any((root / name).exists() for name in ("bin/sh", "usr/bin/sh", "bin/bash", "usr/bin/bash")):
        return f"{root} has no shell"
    return None


def remove(name: str, local: Local, env: Mapping[str, str]) -> str | None:
    """Remove a root, whatever state it is in. Returns what is left of it, or None."""
    root = local.data / name
    for _ in range(REMOVE_TRIES):
        if not root.exists():
            return None
        process.run(remove_argv(name), env=dict(env) | local.env(), timeout_s=600)
        if root.exists():  # a child of a killed create may still write into it
            time.sleep(0.2)
            shutil.rmtree(root, ignore_errors=True)
    return f"container {root}" if root.exists() else None


def remove_made(name: str, tag: str, local: Local, env: Mapping[str, str]) -> list[str]:
    """Remove the root that was made for a rank, and what unfinished creations left of it. Returns what is left."""
    own = root_name(tag)
    names = {path.name for path in local.data.glob(f"{own}{PART}*")} | {own}
    if owner(local.data / name) == tag:
        names.add(name)
    left = [remove(one, local, env) for one in sorted(names)]
    return [one for one in left if one]


def root_name(tag: str) -> str:
    """Return the name of the root of one rank, from its tag job/service/rank."""
    return PREFIX + tag.replace("/", ".")


def leftovers(local: Local, living: Callable[[], set[str]]) -> list[str]:
    """Return the names of our roots that belong to no living rank.

    Args:
        local: where roots are.
        living: returns the tags of living ranks (process.tags). It is asked after the roots were listed: the root of
            a rank that begins meanwhile is then not among them.
    """
    names = sorted(path.name for path in local.data.glob(f"{PREFIX}*") if path.is_dir())
    used = {root_name(tag) for tag in living()}
    return [name for name in names if name.partition(PART)[0] not in used]


def identity(root: Path) -> str:
    """Return device and inode of a directory, as the inside sees them of its root."""
    found = root.stat()
    return f"{found.st_dev}:{found.st_ino}"


@RUNTIMES.register("enroot")
class Enroot(Runtime):
    """enroot on each node: an image is imported once for all nodes, and unpacked once on each."""

    name = "enroot"
    programs = ("enroot", "unsquashfs")
    version = ("enroot", "version")
    is_engine = True
    owned = ("c", "conf", "r", "rc", "root", "rw", "w")

    def check(self, spec: Spec, *, here: bool = False) -> None:
        if here:
            check_programs(self)
        check_flags(spec.mounts)
        for mount in spec.mounts:
            if re.search(r"\s", f"{mount.source}{mount.target}"):
                reason = "enroot takes no blank in a mount"
                raise ConfigError("container.mounts", mount, reason, "Use a path without blanks, or a link to it.")
        name = spec.name
        if name is not None and ("/" in name or not name or name.startswith("-")):
            raise ConfigError("container.name", name, "a name has no / and no - in front", "Choose another name.")
        if name is not None and name.startswith(PREFIX):
            reason = "roots of such names are removed when no rank of theirs lives"
            raise ConfigError("container.name", name, reason, "Choose another name, or leave it out.")

    def look(self, order: Order, env: Env) -> Stock:
        found = stock(order)
        return replace(found, needs=(*found.needs, ("container.local_dir", order.local.data, 0.0, 1.0)))

    def fetch(self, order: Order, env: Env) -> Fetched:
        """A root that was made before is taken as it is."""
        root = order.local.data / order.name
        if not (root.is_dir() and identity(root) == order.unpacked):
            root = self._unpack(order, env)
        if order.folder is not None:
            order.files.root.write_text(identity(root), encoding="utf-8")
        return Fetched(identity(root))

    def _unpack(self, order: Order, env: Env) -> Path:
        """Make the root of a rank, and remove what dead ones left. Returns its directory."""
        local, name, tag, path = order.local, order.name, order.tag, order.spec.image.path
        local.make()
        self.sweep(local, env, log)
        if (local.data / name).exists():
            whose = tag if name == root_name(tag) else owner(local.data / name)
            if whose != tag and (whose is None or whose in process.tags()):
                raise clash(name, local)
            # Of an earlier attempt of this rank, or of a dead one.
            log(f"removing {name}, which was left behind and may have been changed")
            remove(name, local, env)
        if path is None:
            path = stored(order, env)
        elif wrong := problem(Path(path)):
            raise RunError("container.image", path, wrong, "Copy it again, or import it: python -m jobs image import.")
        return create(Path(path), name, local, env, tag)

    def start(self, order: Order) -> Start:
        start = start_argv(order.spec, order.name, order.files.rc, order.command)
        if order.tag:
            return Start((start,), {**order.spec.env, **start_env(order.spec, order.local)})
        path = order.spec.image.path
        file = Path(path) if path else order.store / "{digest}.sqsh"
        imports = [] if path else [import_argv(order.spec.image, file)]
        return Start((*imports, ["enroot", "create", "--name", order.name, str(file)], start))

    def reach(self, order: Order, env: Env) -> Inside:
        return InEnroot(order, env)

    def sweep(self, local: Local, env: Env, log: Log) -> list[str]:
        dead = leftovers(local, process.tags)
        for name in dead:
            log(f"removing {name}, which was left behind")
        return [name for name in dead if remove(name, local, env) is None]


class InEnroot(Inside):
    """A running root: its processes are the node's."""

    def join(self, command: Sequence[str]) -> Start:
        if (pid := self.pid()) is None:
            raise lost("its process id is not known")
        return Start((["enroot", "exec", str(pid), *command],), start_env(self.order.spec, self.order.local))

    def remove(self) -> list[str]:
        return remove_made(self.order.name, self.order.tag, self.order.local, self.env)
