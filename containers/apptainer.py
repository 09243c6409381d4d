"""apptainer: one .sif file for all nodes, mounted by `exec` on each. Nothing is created, and so no root is left.

Options as in apptainer 1.1 and newer (its manual of `exec` and `pull`). Tried on a stand-in, not on the real program.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from containers import faults, imports
from containers.base import Argv, Env, Fetched, Inside, Order, Runtime, Start, Stock, check_programs, log, lost
from containers.spec import Image, Mount, Spec, option_words
from containers.store import Form, Store, tables
from jobs.core import process
from jobs.core.errors import ConfigError, RunError
from jobs.core.foreign import from_yaml, regular
from jobs.core.registry import RUNTIMES

_FAULTS = from_yaml(Path(__file__).with_name("apptainer.yaml").read_text(encoding="utf-8"))["faults"]

_MAGIC, _MAGIC_AT = b"SIF_MAGIC", 32
_DATA = slice(112, 128)
"""Where the data begin and how long they are, two little-endian numbers of 8 bytes (sylabs/sif, type Header)."""

PULL_FOLD = 2.0
"""A pull unpacks the layers before it makes its file of them."""


def problem(path: Path) -> str | None:
    """Return why a file is no whole image in SIF, or None: its header says how long it is."""
    try:
        with regular(path) as file:
            head = file.read(_DATA.stop)
        size = path.stat().st_size
    except OSError as error:
        return str(error)
    if len(head) < _DATA.stop or head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        return "it has no header of a SIF file"
    numbers = head[_DATA]
    needed = int.from_bytes(numbers[:8], "little") + int.from_bytes(numbers[8:], "little")
    return f"it has {size:,} bytes of {needed:,}" if size < needed else None


SIF = Form(".sif", problem)


def store(folder: Path) -> Store:
    """Return where images in SIF are, beside those of enroot."""
    return Store(folder / "sif", SIF)


def uri(image: Image) -> str:
    """Return apptainer's name of an image in a registry."""
    return f"docker://{image.docker()}"


def pull_argv(image: Image, output: Path) -> Argv:
    """Return the pull of an image to a .sif file."""
    return ["apptainer", "pull", str(output), uri(image)]


@RUNTIMES.register("apptainer")
class Apptainer(Runtime):
    """A container without a name, whose processes are children of the one that starts it."""

    name = "apptainer"
    programs = ("apptainer",)
    version = ("apptainer", "version")
    unnamed = True
    closes = True
    brings = "apptainer pull image.sif docker://IMAGE"
    owned = ("B", "C", "S", "bind", "c", "cleanenv", "contain", "containall", "cwd", "e", "f", "fakeroot", "no-home",
             "pwd", "scratch", "writable", "writable-tmpfs")  # fmt: skip

    def check(self, spec: Spec, *, here: bool = False) -> None:
        if here:
            check_programs(self)
        image = spec.image
        if image.path and image.path.endswith(".sqsh"):
            reason = "apptainer's check of whole files is for .sif"
            raise ConfigError("container.image", image.path, reason, "Name a .sif file or a registry's image.")
        if not image.path and not image.remote:
            reason = f"an image of {image.scheme} is not looked for"
            raise ConfigError("container.image", image, reason, "Name a .sif file, or an image of a registry.")
        if spec.name is not None:
            raise ConfigError("container.name", spec.name, "`apptainer exec` gives no names", "Leave it out.")
        if spec.mount_home:
            reason = "it is started without homes, whose files would be seen before the image's"
            raise ConfigError("container.mount_home", True, reason, "Mount what is wanted by container.mounts.")
        for mount in spec.mounts:
            _mount_words(mount)

    def look(self, order: Order, env: Env) -> Stock:
        """A file that is here is mounted as it is, and takes nothing more."""
        if order.spec.image.path:
            return Stock(unpacked_gib=0.0)
        if found := store(order.store).find(order.spec.image):
            return Stock(digest=found.digest, unpacked_gib=0.0)
        where = order.local
        needs = (("container.local_dir", where.temp, PULL_FOLD, 0.0), ("container.images_path", order.store, 1.0, 1.0))
        return Stock(needs=needs)

    def fetch(self, order: Order, env: Env) -> Fetched:
        if order.fetched:
            return order.fetched
        if path := order.spec.image.path:
            if wrong := problem(Path(path)):
                raise RunError("container.image", path, wrong, "Copy it again, or pull it: apptainer pull.")
            return Fetched({"content": tables(Path(path))}, path)
        image, where = order.spec.image, order.local

        def pull(output: Path) -> None:
            where.make(where.temp, where.cache)
            argv = pull_argv(image, output)
            with imports.scratch(where.temp) as temp:
                dirs = {"APPTAINER_TMPDIR": str(temp), "APPTAINER_CACHEDIR": str(where.cache)}
                code, said = process.stream(argv, {**env, **dirs}, sys.stderr)
            if code != 0:
                raise faults.failure(argv, code, said, "container.image", image, _FAULTS)

        entry = store(order.store).ensure(image, pull, log=log)
        return Fetched({"digest": entry.digest, "content": entry.sha256}, entry.path)

    def start(self, order: Order) -> Start:
        spec, image = order.spec, order.spec.image
        found = store(order.store).find(image) if order.tag and image.remote and not order.fetched else None
        file = order.fetched.file if order.fetched else image.path or (found.path if found else None)
        pulls = [] if file or order.tag else [pull_argv(image, order.store / "sif/{digest}.sif")]
        words = ["apptainer", "exec", "--cleanenv", "--contain", "--no-home"]
        words += ["--pid", "--net", "--network", "none"] if spec.closed else []
        words += ["--fakeroot"] if spec.remap_root else []
        words += ["--writable-tmpfs"] if spec.writable else []
        shown = any(mount.target == "/dev/shm" for mount in spec.mounts)
        mounts = (*spec.mounts, *(() if shown or spec.closed else (Mount("/dev/shm", "/dev/shm"),)))
        for mount in (*mounts, *(Mount(device, device) for device in spec.devices)):
            words += _mount_words(mount)
        words += ["--pwd", spec.workdir] if spec.workdir else []
        last = [*words, *option_words(spec.args), file or str(order.store / "sif/{digest}.sif"), *order.command]
        return Start((*pulls, last))

    def reach(self, order: Order, env: Env) -> Inside:
        return InApptainer(order, env)


class InApptainer(Inside):
    """Its processes are the node's, in a mount namespace of their own, and most often in a user namespace too."""

    def join(self, command: Sequence[str]) -> Start:
        """A second `exec` would have another mount namespace, in which nothing could be proved."""
        if (pid := self.pid()) is None:
            raise lost("its process id is not known")
        try:
            apart = not Path(f"/proc/{pid}/ns/user").samefile("/proc/self/ns/user")
        except OSError as error:
            raise lost(str(error)) from None
        user = ["--user", "--preserve-credentials"] if apart else []
        return Start((["nsenter", "--target", str(pid), *user, "--mount", "--root", "--wd", *command],))


def _mount_words(mount: Mount) -> list[str]:
    """Return the options of one mount. ConfigError: there are no words for it."""
    known = ("ro", "rw") if mount.bind else ()
    unknown = [flag for flag in mount.flags if flag not in known]
    if mount.source == "umount" or unknown:
        what = f"does not know {', '.join(unknown)}" if unknown else "cannot take a mount away"
        remedy = f"Use {' or '.join(known) or 'a tmpfs without flags'}, or another runtime."
        raise ConfigError("container.mounts", mount, f"apptainer {what}", remedy)
    if not mount.bind:
        return ["--scratch", mount.target]
    return ["--bind", ":".join((mount.source, mount.target, *mount.flags))]
