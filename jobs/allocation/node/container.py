"""The container of a config: what is asked for, what can be refused beforehand, what a plan shows of it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from containers import ascend, docker, enroot, entry, pyxis
from containers.digest import KEPT, Digests
from containers.entry import Files
from containers.recipes import resolve
from containers.spec import Image, Mount, Spec, host_path, parse_mount, size_bytes
from containers.store import Store
from jobs.core import process
from jobs.core.config import Config, in_container
from jobs.core.errors import ConfigError, RunError
from jobs.core.fields import from_root
from jobs.core.rundir import images_path
from jobs.engines.base import engine_of
from jobs.engines.placement import Placement
from jobs.measure.clients import base as clients

PLANNED = Files(Path("/tmp/{scratch}"))


def dataset(config: Config) -> str | None:
    """Return the data set of a point as a path of the node: what the config names may be a path inside."""
    if config.bench.dataset is None:
        return None
    path = from_root(config.bench.dataset)
    mounts = tuple(parse_mount(text) for text in config.container.mounts)
    return (host_path(mounts, path) or path) if clients.runs_inside(config) else path


def check(config: Config) -> None:
    """Raise ConfigError for what the runtime of this config would refuse, or would silently take for something else."""
    if not in_container(config):
        return
    container = config.container
    if container.image is None:
        reason = f"container={container.runtime} needs an image"
        raise ConfigError("container.image", None, reason, "Give registry#image:tag, or the path of a .sqsh file.")
    if container.runtime == "pyxis" and config.cluster.on_loopback:
        reason = "pyxis is a plugin of Slurm and needs a job"
        raise ConfigError("container.runtime", "pyxis", reason, "Use cluster=slurm, or container=enroot.")
    if container.shm_size is not None:
        size_bytes(container.shm_size)
    spec = wanted(config, 0, job="0", host="node")
    if spec.name is not None and set("{}") & set(spec.name):
        reason = "a word in braces is none of those that are known"
        raise ConfigError("container.name", container.name, reason, "Use {uid}, {user}, {job}, {rank}, {host}.")
    {"enroot": enroot.check, "pyxis": pyxis.check, "docker": docker.check}[container.runtime](spec)


def check_host(config: Config) -> None:
    """Raise RunError where this host, which is to run the engine, has no runtime for its container."""
    runtime = config.container.runtime
    check_programs(runtime)
    if runtime == "pyxis":
        pyxis.check_plugin()


def check_programs(runtime: str) -> None:
    """Raise RunError where a program of a runtime is not on PATH."""
    for program in {"enroot": ("enroot", "unsquashfs"), "pyxis": ("srun",), "docker": ("docker",)}[runtime]:
        if not shutil.which(program):
            reason = f"there is no {program} on PATH on {socket.gethostname()}"
            raise RunError("container.runtime", runtime, reason, f"Install {program} there, or use another runtime.")


def check_submission(config: Config) -> None:
    """Say before anything is submitted what can be seen from here: the nodes may have more than a login host.

    Raises:
        RunError: this host is the node and lacks the runtime, or Slurm has no pyxis.
    """
    if in_container(config) and (config.cluster.on_loopback or config.container.runtime == "pyxis"):
        check_host(config)


def wanted(
    config: Config, rank: int, points: Iterable[Config] = (), *, job: str = "{job_id}", host: str = "{node}"
) -> Spec:
    """Return the container as asked for, before any node has been looked at.

    Args:
        config: of the service.
        rank: whose container it is; in that of rank 0 external clients may run.
        points: all points of the service; without any, `config` is the one.
        job, host: what stands for these words in its name; a plan does not know them.
    """
    container = config.container
    assert container.image is not None
    npus = engine_of(config).traits.npus
    devices = (ascend.DEVICES if npus else ()) if container.devices is None else container.devices
    model = from_root(config.model.path)
    mounts = tuple(parse_mount(text) for text in container.mounts)
    if config.engine.checks_model_path and host_path(mounts, model) is None:
        mounts = (*mounts, Mount(model, model, ("ro",)))
    if kept := caches(config, rank):
        mounts = (*mounts, kept)
    for point in (*points,) or (config,):
        # Nothing can be mounted later, when the client joins the container.
        path = from_root(point.bench.dataset) if point.bench.dataset else None
        if rank == 0 and path and clients.runs_inside(point) and host_path(mounts, path) is None:
            mounts = (*mounts, _dataset_mount(path))
    return Spec(
        runtime=container.runtime,
        image=resolve(container.image, container.registry),
        name=_filled(container.name, job, rank, host) if container.name else None,
        mounts=(*driver_mounts(config), *mounts),
        devices=devices,
        workdir=container.workdir,
        writable=container.writable,
        remap_root=container.remap_root,
        mount_home=container.mount_home,
        shm_size=container.shm_size,
        publish=container.publish,
        conf=container.enroot_conf,
    )


def caches(config: Config, rank: int) -> Mount | None:
    """Return the mount for the caches of NPU compilers, which outlive the container; None: there is none."""
    path = config.container.caches_path
    if path is None or not engine_of(config).traits.npus:
        return None
    return parse_mount(_filled(path, "", rank), "container.caches_path")


def own_folder(key: str, path: Path) -> None:
    """Make a directory of the node for this user alone.

    Raises:
        RunError: it cannot be made, or is somebody else's: in /tmp anybody may have taken its name.
    """
    try:
        path.mkdir(parents=True, mode=0o700, exist_ok=True)
        wrong = None if path.stat().st_uid == os.getuid() else "it belongs to somebody else"
    except OSError as error:
        wrong = str(error)
    if wrong:
        raise RunError(key, path, wrong, "Name a directory of the node that is yours, with {uid} or {user} in it.")


def _dataset_mount(path: str) -> Mount:
    text = f"{path}:{path}:ro"
    with contextlib.suppress(ConfigError):
        return parse_mount(text)
    raise ConfigError("bench.dataset", path, "such a path cannot be mounted", "Use a path without , : and blanks.")


def checkpoint(config: Config) -> Path:
    """Return where the checkpoint is on the node: behind a mount, or at the path that the engine is given."""
    model = from_root(config.model.path)
    if not in_container(config):
        return Path(model)
    return Path(host_path(tuple(parse_mount(text) for text in config.container.mounts), model) or model)


def driver_mounts(config: Config) -> tuple[Mount, ...]:
    """Return the mounts of driver and tools, of which a node may have some."""
    given = config.container.driver_mounts
    if given is None:
        given = ascend.FILES if engine_of(config).traits.npus else ()
    return tuple(parse_mount(text, "container.driver_mounts") for text in given)


def planned(config: Config, place: Placement, argv: Sequence[str], variables: Mapping[str, str]) -> list[list[str]]:
    """Return the commands of one rank's container in their order; the last one is the engine's.

    What is known only on the node stands in braces: {scratch}, {job_id}, {node}, {images}, {digest}.
    """
    spec = wanted(config, place.rank)
    spec = replace(spec, env=handed_on(variables))
    command = entry.command(PLANNED, argv)
    if spec.runtime != "docker" or not spec.writable:
        spec = replace(spec, mounts=(*spec.mounts, Mount(str(PLANNED.folder), str(PLANNED.folder))))
    if spec.runtime == "docker":
        return [docker.run_argv(spec), docker.exec_argv(spec.name or "{name}", command)]
    if spec.runtime == "pyxis":
        return [pyxis.step_argv(spec, "{job_id}", "{node}", command)]
    name, file = spec.name or "{name}", Path(spec.image.path or "{images}/{digest}.sqsh")
    imports = [] if spec.image.path else [enroot.import_argv(spec.image, file)]
    return [*imports, enroot.create_argv(file, name), enroot.start_argv(spec, name, PLANNED.rc, command)]


def handed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the runtime is told of as well; the entry script sets all of them."""
    return {
        name: value
        for name, value in variables.items()
        if name not in entry.PATHS and enroot.survives(name, value) and "," not in name
    }


def images(config: Config) -> Path:
    """Return the directory of imported images."""
    given = config.container.images_path
    return Path(_filled(given, "", 0)) if given else images_path(Path(config.results.root).absolute())


def enroot_paths(config: Config, job: str = "", rank: int = 0) -> enroot.Paths:
    """Return enroot's directories for this user on this node."""
    names = ("data", "cache", "runtime", "temp")
    return enroot.Paths(**{name: Path(_filled(getattr(config.container, f"{name}_path"), job, rank)) for name in names})


def image_file(config: Config) -> Path | None:
    """Return the squashfs file that the config names as its image; None: it names none, or no container."""
    given = config.container.image
    path = resolve(given, config.container.registry).path if in_container(config) and given else None
    return Path(path) if path else None


def known_digest(config: Config, stop: Callable[[], bool] = lambda: False) -> str | None:
    """Return the digest of the image, where it has been imported or is a file; None: it cannot be seen from here.

    Docker's is the one that its daemon here has for the reference: that of the registry, or the image's id. A file is
    read where it has not been read before; `stop` is asked meanwhile whether to give that up.
    """
    if not in_container(config) or config.container.image is None:
        return None
    if file := image_file(config):
        return Digests(images_path(Path(config.results.root).absolute()) / KEPT).read(file, stop)
    image = resolve(config.container.image, config.container.registry)
    if config.container.runtime == "docker":
        return docker_image(image, os.environ)[1] or image.digest
    with contextlib.suppress(RunError):
        found = Store(images(config)).find(image)
        return found.digest if found else image.digest
    return image.digest


def docker_image(image: Image, env: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return id and digest of what docker has here under a reference; None: it has none, or does not answer."""
    with contextlib.suppress(RunError):
        found = process.run(docker.image_argv(image.docker()), env=env, timeout_s=20)
        return docker.read_image(found.stdout if found.returncode == 0 else "", image.docker_repository())
    return None, None


def _filled(text: str, job: str, rank: int, host: str | None = None) -> str:
    words = {"uid": str(os.getuid()), "job": job, "rank": str(rank), "host": host or socket.gethostname()}
    words["user"] = getpass.getuser()
    for word, value in words.items():
        text = text.replace("{" + word + "}", value)
    return text
