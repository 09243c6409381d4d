"""The container of a config: what is asked for, what can be refused beforehand, what a plan shows of it."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from containers import ascend, entry
from containers.base import Local, Order, Runtime, copied, own_name
from containers.entry import Files
from containers.spec import Mount, Spec, host_path, parse_mount, resolve, size_bytes
from containers.store import KEPT, Digests
from jobs.core.config import Config, in_container
from jobs.core.errors import ConfigError, RunError
from jobs.core.fields import from_root
from jobs.core.layout import Placement
from jobs.core.registry import RUNTIMES
from jobs.core.rundir import images_path
from jobs.engines.base import engine_of
from jobs.engines.vllm.environment import SCRUBBED
from jobs.measure.clients import base as clients

PLANNED = Files(Path("/tmp/{scratch}"))

LOCAL = "/tmp/serving-sweep-{uid}"
"""Where enroot unpacks although `container.local_dir` is null, which means that no kernels are kept."""


@dataclass(frozen=True)
class Words:
    """What the words in braces of a name or path stand for; one that a plan does not know stays in braces."""

    uid: str = "{uid}"
    user: str = "{user}"
    job: str = "{job_id}"
    host: str = "{node}"

    @staticmethod
    def of_user() -> Words:
        """Return what a plan knows."""
        return Words(str(os.getuid()), getpass.getuser())

    @staticmethod
    def here(job: str = "") -> Words:
        """Return what this node knows."""
        return replace(Words.of_user(), job=job, host=socket.gethostname())

    def fill(self, text: str, rank: int) -> str:
        """Return a text with the values of its words."""
        for word, value in (vars(self) | {"rank": str(rank)}).items():
            text = text.replace("{" + word + "}", value)
        return text


UNKNOWN = Words()

CHECKED = Words("0", "user", "0", "node")
"""Stands for any rank's: what is wrong with a container is so whoever has it."""


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
        remedy = (
            "Give registry/image:tag, or a path: of a .sqsh file for enroot and pyxis, of a .sif file for apptainer."
        )
        raise ConfigError("container.image", None, reason, remedy)
    runtime = of(config)
    if runtime.of_slurm and config.cluster.on_loopback:
        reason = f"{runtime.name} is a plugin of Slurm and needs a job"
        raise ConfigError("container.runtime", runtime.name, reason, "Use cluster=slurm, or container=enroot.")
    if container.shm_size is not None:
        size_bytes(container.shm_size)
    if container.workdir is not None and not container.workdir.startswith("/"):
        reason = "a directory inside begins with /"
        raise ConfigError("container.workdir", container.workdir, reason, "Give its whole path, or leave it out.")
    spec = wanted(config, 0, words=CHECKED)
    if spec.name is not None and set("{}") & set(spec.name):
        reason = "a word in braces is none of those that are known"
        raise ConfigError("container.name", container.name, reason, "Use {uid}, {user}, {job}, {rank}, {host}.")
    for name in container.args:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
            reason, remedy = "it is no option's name", "Write the name without dashes before it, as in {ulimit: host}."
            raise ConfigError("container.args", name, reason, remedy)
    for name in set(container.args) & set(runtime.owned):
        reason = f"the tool gives {runtime.name} this option itself"
        remedy = "Use the key of `container` that says it."
        raise ConfigError(f"container.args.{name}", container.args[name], reason, remedy)
    runtime.check(spec)


def of(config: Config) -> Runtime:
    """Return the runtime of a config that has one."""
    runtime: Runtime = RUNTIMES.get(config.container.runtime)
    return runtime


def by_digest(config: Config, digest: str) -> Config:
    """Return a config that names its image by a digest: no tag can move."""
    container = config.container
    assert container.image is not None
    named = replace(resolve(container.image, container.registry), tag=None, digest=digest)
    return replace(config, container=replace(container, image=str(named)))


def check_host(config: Config) -> None:
    """Raise RunError where this host, which is to run the engine, has no runtime for its container."""
    of(config).check(wanted(config, 0, words=CHECKED), here=True)


def check_submission(config: Config) -> None:
    """Say before anything is submitted what can be seen from here: the nodes may have more than a login host.

    Raises:
        RunError: this host is the node and lacks the runtime, or Slurm has no pyxis.
    """
    if in_container(config) and (config.cluster.on_loopback or of(config).of_slurm):
        check_host(config)


def wanted(config: Config, rank: int, points: Iterable[Config] = (), words: Words = UNKNOWN) -> Spec:
    """Return the container as asked for, before any node has been looked at.

    In that of rank 0 external clients of the service's `points` may run; without any, `config` is the one.
    """
    container = config.container
    assert container.image is not None
    npus = engine_of(config).traits.npus
    devices = (ascend.DEVICES if npus else ()) if container.devices is None else container.devices
    model = from_root(config.model.path)
    mounts = tuple(parse_mount(text) for text in container.mounts)
    if config.engine.checks_model_path and host_path(mounts, model) is None:
        mounts = (*mounts, Mount(model, model, ("ro",)))
    if kept := caches(config, rank, words):
        mounts = (*mounts, kept)
    for point in (*points,) or (config,):
        # Nothing can be mounted later, when the client joins the container.
        path = from_root(point.bench.dataset) if point.bench.dataset else None
        if rank == 0 and path and clients.runs_inside(point) and host_path(mounts, path) is None:
            mounts = (*mounts, _dataset_mount(path))
    return Spec(
        runtime=container.runtime,
        image=resolve(container.image, container.registry),
        name=words.fill(container.name, rank) if container.name else None,
        mounts=(*driver_mounts(config), *mounts),
        devices=devices,
        workdir=container.workdir,
        writable=container.writable,
        remap_root=container.remap_root,
        mount_home=container.mount_home,
        shm_size=container.shm_size,
        args=container.args,
    )


def caches(config: Config, rank: int, words: Words) -> Mount | None:
    """Return the mount for the caches of NPU compilers, which outlive the container; None: there is none."""
    if config.container.local_dir is None or not engine_of(config).traits.npus:
        return None
    return parse_mount(str(local(config, replace(words, job=""), rank).caches), "container.local_dir")


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


def planned(
    config: Config, place: Placement, argv: Sequence[str], variables: Mapping[str, str], words: Words
) -> list[list[str]]:
    """Return the commands of one rank's container in their order; the last one is the engine's.

    What is known only on the node stands in braces: {scratch}, {job_id}, {node}, {images}, {digest}. Pure.
    """
    spec = replace(wanted(config, place.rank, words=words), env=handed_on(variables))
    folder = PLANNED.path
    if not copied(of(config), spec):
        spec = replace(spec, mounts=(*spec.mounts, Mount(str(folder), str(folder))))
    command = tuple(entry.command(PLANNED, argv))
    order = Order(spec, "", local(config, words), Path("{images}"), "{node}", folder, command)
    return [*of(config).start(order).commands]


def handed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the runtime is told of as well; the entry script sets all of them."""
    return {name: value for name, value in variables.items() if name not in entry.PATHS}


def outside(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of this host for what prepares a container: proxies, but nothing of a launcher."""
    return {name: value for name, value in inherited.items() if not name.startswith(SCRUBBED) or name == "SLURM_CONF"}


def node_name(host: Mapping[str, str]) -> str:
    """Return the name of this node, as Slurm knows it."""
    return host.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


@dataclass(frozen=True)
class RankContainer:
    """Whose container it is on this node: of which service, rank and processes, and what this task inherited.

    `points`: all points of the service, whose external clients may run in the container of rank 0.
    """

    config: Config
    rank: int
    tag: str
    inherited: Mapping[str, str]
    points: tuple[Config, ...] = ()

    @property
    def runtime(self) -> Runtime:
        """The runtime of the config."""
        return of(self.config)

    @property
    def host(self) -> dict[str, str]:
        """Environment of this node for a runtime's own program."""
        return outside(self.inherited)

    def spec(self) -> Spec:
        """Return the container that is asked for."""
        job = self.tag.partition("/")[0]
        spec = wanted(self.config, self.rank, self.points, words=Words.here(job))
        return replace(spec, name=spec.name or (None if self.runtime.unnamed else own_name(self.tag)))

    def order(self, spec: Spec | None = None, **more: Any) -> Order:
        """Return what its runtime has to know; without more: for what needs no engine."""
        job, node = self.tag.partition("/")[0], node_name(self.inherited)
        where = local(self.config, Words.here(job), self.rank)
        return Order(spec or self.spec(), self.tag, where, images(self.config), node, **more)


def images(config: Config) -> Path:
    """Return the directory of imported images."""
    given = config.container.images_path
    return Path(Words.here().fill(given, 0)) if given else images_path(Path(config.results.root).absolute())


def local(config: Config, words: Words, rank: int = 0) -> Local:
    """Return this user's directory on a node."""
    return Local(Path(words.fill(config.container.local_dir or LOCAL, rank)))


def order(config: Config) -> Order:
    """Return the container of a point as a person asks for it, without what a node lends to it: nobody's."""
    given = config.container
    assert given.image is not None
    mounts = tuple(parse_mount(text) for text in given.mounts)
    spec = Spec(given.runtime, resolve(given.image, given.registry), mounts=mounts)
    return Order(spec, "", local(config, Words.here()), images(config), node_name(os.environ))


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
    which = RankContainer(config, 0, "", os.environ)
    spec = wanted(config, 0, words=Words.here())
    with contextlib.suppress(RunError):
        return of(config).look(which.order(spec), os.environ).digest or spec.image.digest
    return spec.image.digest
