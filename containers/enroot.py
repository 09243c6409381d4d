"""enroot by subprocess: import, create, start, remove. What it lacks is added here: locks, whole results, clear errors.

Images are imported to squashfs files, for enroot and pyxis: once into the store, which all nodes see.

Grammar of enroot 3.4 to 4.1 (enroot.in, runtime.sh, docker.sh). enroot itself checks and then unpacks, without a lock:
a half-made root shows in `enroot list` and starts. So a root is made under another name and renamed when it is whole.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from containers import faults, imports
from containers.base import (
    Env,
    Fetched,
    Inside,
    Local,
    Log,
    Order,
    Runtime,
    Start,
    Stock,
    check_programs,
    clash,
    log,
    lost,
    own_name,
)
from containers.imports import PREFIX
from containers.spec import Image, Mount, Spec, option_words
from containers.store import Entry, Store, problem, stock, tables
from jobs.core import process
from jobs.core.errors import ConfigError, RunError
from jobs.core.files import remove_tree
from jobs.core.foreign import from_yaml
from jobs.core.lock import exclusive
from jobs.core.registry import RUNTIMES

PART = ".part."
"""Stands in the name of a root that is being made."""

MARKER = ".serving-sweep"
"""File in a root of ours: the tag of the rank that it was made for, and the identity that no copy of it has."""

REMOVE_TRIES = 5

_KNOWN = from_yaml(Path(__file__).with_name("enroot.yaml").read_text(encoding="utf-8"))


def import_argv(image: Image, output: Path, arch: str | None = None) -> list[str]:
    """Return the import of an image to a squashfs file."""
    return ["enroot", "import", *(("--arch", arch) if arch else ()), "--output", str(output), image.enroot()]


def fetch(image: Image, output: Path, local: Local, env: Mapping[str, str], arch: str | None = None) -> None:
    """Import an image into a file. Whatever ends it ends all its processes and takes its unpacked layers away.

    Raises:
        RunError: enroot failed.
    """
    local.make()
    with imports.scratch(local.temp) as temp:
        whole = dict(env) | local.env() | {"ENROOT_TEMP_PATH": str(temp)}
        code, output_text = process.stream(import_argv(image, output, arch), whole, sys.stderr)
    if code != 0:
        raise failed(["enroot", "import"], "container.image", image, code, output_text)


def digest(image: Image, env: Mapping[str, str]) -> str | None:
    """Ask the registry for an image's digest; None where this enroot cannot ask (before 4.0).

    Raises:
        RunError: the registry did not answer; an import would not fare better.
    """
    if not image.remote:
        return None
    argv = ["enroot", "digest", image.enroot()]
    found = process.run(argv, env=env, timeout_s=120)
    match = re.search(r"sha256:[0-9a-f]{64}", found.stdout)
    said = found.stdout + found.stderr
    if found.returncode != 0 and not re.search(_KNOWN["unknown_command"], said, re.MULTILINE):
        raise failed(argv, "container.image", image, found.returncode, said)
    return match.group() if match and found.returncode == 0 else None


def failed(argv: Sequence[str], key: str, value: object, code: int, output: str) -> RunError:
    """Return enroot's failure as an error that says what to do; its own code is 1 for nearly everything."""
    return faults.failure(argv, code, output, key, value, _KNOWN["faults"])


def imported(
    store: Store, image: Image, local: Local, env: Mapping[str, str], arch: str | None = None, refresh: bool = False
) -> Entry:
    """Return an image of the store, imported where it has it not yet; see `Store.ensure`."""
    return store.ensure(
        image,
        lambda output: fetch(image, output, local, env, arch),
        lambda: digest(image, dict(env) | local.env()),
        arch,
        log,
        refresh,
    )


def brought(order: Order, env: Env) -> Fetched:
    """Return the file of an order's image: that of its path, or that of the store, imported where it has none yet.

    Raises:
        RunError: the file is not whole, or the import failed.
    """
    path = order.spec.image.path
    if path is None:
        entry = imported(Store(order.store), order.spec.image, order.local, env)
        return Fetched({"digest": entry.digest, "content": entry.sha256}, entry.path)
    if wrong := problem(Path(path)):
        raise RunError("container.image", path, wrong, "Copy it again, or import it: python -m jobs image import.")
    return Fetched({"content": tables(Path(path))}, path)


def check_flags(mounts: tuple[Mount, ...]) -> None:
    """Raise ConfigError for a flag that enroot would drop: with `r0` for `ro` the mount could be written."""
    for mount in mounts:
        unknown = [flag for flag in mount.flags if flag not in _KNOWN["mount_flags"]] if mount.bind else []
        if unknown:
            reason = f"a mount of a path has no flag {', '.join(unknown)}"
            raise ConfigError("container.mounts", mount, reason, "Use flags of mount(8), such as ro, joined by +.")


def remove_argv(name: str) -> list[str]:
    """Return the removal of a root; without --force it asks on stdin and removes nothing."""
    return ["enroot", "remove", "--force", name]


def start_argv(spec: Spec, name: str, rc: Path, command: Sequence[str]) -> list[str]:
    """Return the start of a root. Argv words stay words; the rc file keeps the image's ENTRYPOINT out."""
    words = ["enroot", "start"]
    words += ["--root"] if spec.remap_root else []
    words += ["--rw"] if spec.writable else []
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
    root, whole, own = local.data / name, dict(env) | local.env(), own_name(tag)

    def waiting(who: str) -> None:
        print(f"{who} creates a root here: waiting to create {name}", file=sys.stderr)

    with exclusive(local.data / ".serving-sweep.lock", waiting):
        if root.exists():
            if owner(root) == tag:
                return root
            raise _clash(name, local)
        for dead in local.data.glob(f"{own}{PART}*"):  # whoever made it held this lock, and is gone
            remove(dead.name, local, env)
        part = local.data / f"{own}{PART}{os.getpid()}"
        try:
            code, output = process.stream(["enroot", "create", "--name", part.name, str(file)], whole, sys.stderr)
            if code != 0:
                raise failed(["enroot", "create"], "container.image", file, code, output)
            if wrong := _half_made(part):
                reason = f"enroot create ended without an error, but {wrong}"
                remedy = "Import it again; an image that has no shell cannot be used."
                raise RunError("container.image", file, reason, remedy)
            try:
                (part / MARKER).write_text(f"{tag}\n{identity(part)}\n", encoding="utf-8")
            except OSError as error:
                remedy = "enroot itself has to write into a root; look there."
                raise RunError(str(part), "(tag)", str(error), remedy) from None
            part.rename(root)
        except BaseException:
            remove(part.name, local, env)
            raise
    return root


def owner(root: Path) -> str | None:
    """Return the tag of the rank that a root was made for; None: we did not make it."""
    try:
        tag, made = (root / MARKER).read_text(encoding="utf-8").splitlines()
        return tag if made == identity(root) else None
    except (OSError, ValueError):
        return None


def _clash(name: str, local: Local) -> RunError:
    """Return the error that says whose a root is that stands in the way."""
    tag = owner(local.data / name)
    whose = f"of the rank {tag} (job/service/rank), which lives" if tag else "that this tool did not make"
    found = f"there is a root of this name already in {local.data}, {whose}"
    return clash(name, found, f"`ENROOT_DATA_PATH={local.data} enroot remove {name}` removes it.")


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
            remove_tree(root)
    return f"container {root}" if root.exists() else None


def leftovers(local: Local, living: Callable[[], set[str]]) -> list[str]:
    """Return the names of our roots that belong to no living rank.

    Args:
        local: where roots are.
        living: returns the tags of living ranks (process.tags). It is asked after the roots were listed: the root of
            a rank that begins meanwhile is then not among them.
    """
    names = sorted(path.name for path in local.data.glob(f"{PREFIX}*") if path.is_dir())
    used = {own_name(tag) for tag in living()}
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
    owned = ("r", "rc", "root", "rw", "w")

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
        root, fetched = order.local.data / order.name, order.fetched
        if not (fetched and root.is_dir() and identity(root) == fetched.unpacked):
            root, fetched = self._unpack(order, env)
        if order.folder is not None:
            order.files.root.write_text(identity(root), encoding="utf-8")
        return replace(fetched, unpacked=identity(root))

    def _unpack(self, order: Order, env: Env) -> tuple[Path, Fetched]:
        """Make the root of a rank, and remove what dead ones left. Returns its directory, and what it was made of."""
        local, name, tag = order.local, order.name, order.tag
        local.make()
        self.sweep(local, env, log)
        if (local.data / name).exists():
            whose = tag if name == own_name(tag) else owner(local.data / name)
            if whose != tag and (whose is None or whose in process.tags()):
                raise _clash(name, local)
            # Of an earlier attempt of this rank, or of a dead one.
            log(f"removing {name}, which was left behind and may have been changed")
            remove(name, local, env)
        fetched = order.fetched or brought(order, env)
        assert fetched.file is not None
        return create(Path(fetched.file), name, local, env, tag), fetched

    def start(self, order: Order) -> Start:
        start = start_argv(order.spec, order.name, order.files.rc, order.command)
        if order.tag:
            return Start((start,), {**order.spec.env, **start_env(order.spec, order.local)})
        path = order.spec.image.path
        file = Path(path) if path else order.store / "{digest}.sqsh"
        brings = [] if path else [import_argv(order.spec.image, file)]
        return Start((*brings, ["enroot", "create", "--name", order.name, str(file)], start))

    def reach(self, order: Order, env: Env) -> Inside:
        return InEnroot(order, env)

    def sweep(self, local: Local, env: Env, log: Log) -> list[str]:
        dead = leftovers(local, process.tags)
        for name in dead:
            log(f"removing {name}, which was left behind")
        return [*(name for name in dead if remove(name, local, env) is None), *super().sweep(local, env, log)]


class InEnroot(Inside):
    """A running root: its processes are the node's."""

    def join(self, command: Sequence[str]) -> Start:
        if (pid := self.pid()) is None:
            raise lost("its process id is not known")
        return Start((["enroot", "exec", str(pid), *command],), start_env(self.order.spec, self.order.local))

    def remove(self) -> list[str]:
        """It removes what unfinished creations left of it, too."""
        order, own = self.order, own_name(self.order.tag)
        names = {path.name for path in order.local.data.glob(f"{own}{PART}*")} | {own}
        if owner(order.local.data / order.name) == order.tag:
            names.add(order.name)
        return [left for name in sorted(names) if (left := remove(name, order.local, self.env))]
