"""Look at the container runtime of one node: is it there, does it answer, has its image space. Nothing here judges."""

from __future__ import annotations

import contextlib
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from containers import dead, docker
from containers.spec import Image
from containers.store import Store
from jobs.allocation.node import container, image
from jobs.allocation.preflight.facts import GIB, Need, Runtime
from jobs.core import process
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import nearest_there
from jobs.core.log import log

ANSWER_S = 20.0

IMPORT_FOLD = 3
"""An import unpacks all layers beside each other: two to three times the image."""

PACKED_FOLD = 3
"""How much larger the root of a compressed squashfs file may be; enroot's own files hold their data as it is."""

_FLAGS = slice(24, 26)
_PLAIN_DATA = 0x2
"""Flags of a squashfs 4.0 superblock: data blocks are not compressed (Linux, fs/squashfs/squashfs_fs.h)."""


def sweep(config: Config, job: str, rank: int, inherited: Mapping[str, str], *, npus: bool) -> tuple[str, ...]:
    """Remove what dead ranks of ours left in containers of this node. Returns the names of what was removed.

    It comes before the NPUs are looked at: a container of docker outlives its job, and holds them. So with NPUs docker
    is asked whatever the runtime of this config is.
    """
    env, removed = image.outside(inherited), list[str]()
    runtime = config.container.runtime
    if runtime == "enroot":
        with contextlib.suppress(RunError, OSError):
            removed += dead.remove_roots(container.enroot_paths(config, job, rank), env, log)
    if runtime == "docker" or (npus and shutil.which("docker", path=env.get("PATH"))):
        with contextlib.suppress(RunError):
            removed += dead.remove_containers(env, log)
    return tuple(removed)


def look(config: Config, job: str, rank: int, inherited: Mapping[str, str]) -> Runtime:
    """Return what the runtime of this config says of itself on this node."""
    runtime = config.container.runtime
    if runtime == "none":
        return Runtime("none")
    env = image.outside(inherited)
    try:
        container.check_host(config)
        version = _version(config, job, rank, env)
        wanted = needs(config, job, rank, env)
        return Runtime(runtime, version, needs=space(wanted, guessed=_is_guess(wanted)))
    except RunError as error:
        key = f"{error.key} = {error.value}: " if error.key != "container.runtime" else ""
        return Runtime(runtime, problem=f"{key}{error.reason}", remedy=error.remedy)


def _version(config: Config, job: str, rank: int, env: Mapping[str, str]) -> str:
    runtime = config.container.runtime
    words = {"enroot": ["enroot", "version"], "pyxis": ["srun", "--version"], "docker": docker.version_argv()}[runtime]
    if runtime == "enroot":
        paths = container.enroot_paths(config, job, rank)
        paths.make()
        env = {**env, **paths.env()}
    done = process.run(words, env=env, timeout_s=ANSWER_S)
    if done.returncode == 0:
        return " ".join(done.stdout.split())
    said = " ".join((done.stderr or done.stdout).split())[-200:] or "it said nothing"
    remedy = "Start the daemon, or let this user use it." if runtime == "docker" else "Try it by hand on this node."
    raise RunError("container.runtime", runtime, f"`{' '.join(words[:2])}` does not answer: {said}", remedy)


def needs(config: Config, job: str, rank: int, env: Mapping[str, str]) -> dict[str, tuple[Path, float, float]]:
    """Return what the image needs, by config key: the directory, GiB while it is imported, and GiB afterwards."""
    spec = container.wanted(config, rank)
    if spec.runtime == "docker":
        return _docker_needs(config, spec.image, env)
    size = _unpacked_gib(config, spec.image)
    there, size = size is not None, config.preflight.image_gib if size is None else size
    paths = container.enroot_paths(config, job, rank)
    found: dict[str, tuple[Path, float, float]] = {}
    if not there and (spec.runtime == "enroot" or image.may_import(spec)):
        found["container.temp_path"] = (paths.temp, IMPORT_FOLD * size, 0.0)
        found["container.cache_path"] = (paths.cache, size, size)
        found["container.images_path"] = (container.images(config), size, size)
    if spec.runtime == "enroot":
        found["container.data_path"] = (paths.data, 0.0, size)
    return found


def _docker_needs(config: Config, wanted: Image, env: Mapping[str, str]) -> dict[str, tuple[Path, float, float]]:
    if process.run(docker.image_argv(wanted.docker()), env=env, timeout_s=ANSWER_S).returncode == 0:
        return {}
    root = process.run(docker.root_argv(), env=env, timeout_s=ANSWER_S).stdout.strip()
    size = config.preflight.image_gib
    return {"docker": (Path(root), size, size)} if root.startswith("/") else {}


def _unpacked_gib(config: Config, wanted: Image) -> float | None:
    """Return the size of the root of an image whose squashfs file is here; None: it is not known."""
    with contextlib.suppress(RunError, OSError):
        entry = None if wanted.path else Store(container.images(config)).find(wanted)
        path = wanted.path or (entry.path if entry else None)
        if path is None:
            return None
        with Path(path).open("rb") as file:
            flags = int.from_bytes(file.read(_FLAGS.stop)[_FLAGS], "little")
        return Path(path).stat().st_size / GIB * (1 if flags & _PLAIN_DATA else PACKED_FOLD)
    return None


def _is_guess(wanted: Mapping[str, tuple[Path, float, float]]) -> bool:
    """Whether the image is yet to come, so that its size is only assumed."""
    return bool(wanted.keys() - {"container.data_path"})


def space(wanted: Mapping[str, tuple[Path, float, float]], *, guessed: bool) -> tuple[Need, ...]:
    """Return the free space of each file system against the sum of what its directories need at one time."""
    groups: dict[int, list[str]] = defaultdict(list)
    for key, (path, _, _) in wanted.items():
        with contextlib.suppress(OSError):
            groups[nearest_there(path).stat().st_dev].append(key)
    found = []
    for keys in groups.values():
        free = _free_gib(nearest_there(wanted[keys[0]][0]))
        during, after = sum(wanted[key][1] for key in keys), sum(wanted[key][2] for key in keys)
        found.append(Need(", ".join(f"{key} {wanted[key][0]}" for key in keys), free, max(during, after), guessed))
    return tuple(found)


def _free_gib(path: Path) -> float:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(path).free / GIB
    return 0.0
