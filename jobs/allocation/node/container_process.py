"""The container of one rank on its node: prepared, looked into, ended, removed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from containers import ascend, entry
from containers.base import Fetched, Inside, Order, Runtime, check_file, copied
from containers.entry import Entry, Proof
from containers.spec import Mount, Spec, size_bytes
from jobs.allocation.node import audit, container, image
from jobs.allocation.node.audit import Difference
from jobs.allocation.node.container import RankContainer
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.fields import from_root
from jobs.core.files import is_there, write_text
from jobs.core.process import TAG, Process
from jobs.core.waiting import aside
from jobs.engines.base import engine_of
from jobs.engines.vllm.environment import SCRUBBED
from jobs.measure.clients import base as clients

CLIENT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TERM", "TMPDIR", "SLURM_CONF", "DOCKER_HOST", "DOCKER_CONFIG",
          "XDG_CONFIG_HOME")  # fmt: skip
"""All that any runtime's own program gets of the host's environment: pyxis would hand the rest on to the engine."""


@dataclass(frozen=True)
class ContainerProcess:
    """The container of a rank on its node. `argv`, `env`: of the process that prepares it and becomes the engine."""

    runtime: Runtime
    order: Order
    inside: Inside
    entry: Entry
    argv: list[str]
    env: dict[str, str]
    missing: tuple[str, ...] = ()

    def read_process(self) -> tuple[list[str], dict[str, str]]:
        """Return argv and environment of the running engine, wherever its processes are to be seen."""
        pid = self.inside.pid()
        with contextlib.suppress(OSError):
            if pid is not None:
                folder = Path("/proc") / str(pid)
                return audit.parse(*(self.inside.read(folder / name) for name in ("cmdline", "environ")))
        return [], {}

    async def end(self, starter: Process, grace_s: float) -> None:
        """Let what runs inside end itself where a signal to its starter would not reach it (srun, docker exec)."""
        if self.runtime.is_engine or starter.ended:
            return
        await aside(self._terminate)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(starter.wait(), grace_s)

    def _terminate(self) -> None:
        with contextlib.suppress(RunError):
            self.inside.wake()
            if (pid := self.inside.pid()) is not None:
                self.inside.terminate(pid)

    def remove(self) -> list[str]:
        """Remove the container after its processes have ended, if this rank made it. Returns what is left of it."""
        try:
            return self.inside.remove()
        except RunError as error:
            return [f"container {self.order.name}: {error.reason}"]


def prepare(
    which: RankContainer,
    argv: Sequence[str],
    variables: Mapping[str, str],
    scratch: Path,
    fetched: Fetched | None = None,
    kept: Path | None = None,
) -> ContainerProcess:
    """Write what the container of this rank needs into `scratch`, a directory of this node.

    `fetched`: what was brought for it beforehand; None: nothing was. `kept`: a directory of the run
    that is to be there inside as well, where our files are mounted.

    Raises:
        RunError: this node lacks the runtime, a mount's source, the model, or shared memory.
    """
    container.check_host(which.config)
    runtime, inherited = which.runtime, which.inherited
    spec, missing = _here(which)
    handed_on = {name: inherited[name] for name in ascend.HANDED_ON if name in inherited}
    if not handed_on:
        spec = replace(spec, devices=ascend.own(spec.devices, lambda name: os.access(name, os.R_OK | os.W_OK)))
    _check_shm(runtime, spec)
    env = handed_on | dict(variables) | {TAG: which.tag, "TMPDIR": str(scratch)}
    ours = () if copied(runtime, spec) else (scratch, *((kept,) if kept and not runtime.copies else ()))
    mounts = (*spec.mounts, *(Mount(str(path), str(path)) for path in ours))
    spec = replace(spec, mounts=mounts, env=container.handed_on(env))
    order = which.order(spec, folder=scratch, env=runtime_env(runtime, which.host), fetched=fetched)
    order = replace(order, command=tuple(entry.command(order.files, argv)))
    inside = _entry(which, spec, env, scratch)
    write_text(order.files.script, entry.script(inside, order.files), mode=0o600)
    write_text(order.files.rc, entry.RC)
    task = scratch / "task.json"
    order.write(task, mode=0o600)
    reached, starter = runtime.reach(order, which.host), image.program(task)
    return ContainerProcess(runtime, order, reached, inside, starter, image.with_us(which.host), missing)


def runtime_env(runtime: Runtime, host: Mapping[str, str]) -> dict[str, str]:
    """Return what a runtime's own program gets of this host's environment."""
    return {name: host[name] for name in (*CLIENT, *runtime.settings) if name in host}


def _brings_program(point: Config) -> bool:
    """Whether a point's client needs a program inside that is not the engine's own."""
    return clients.runs_inside(point) and bool(point.bench.program or not clients.of(point).of_engine)


def _here(which: RankContainer) -> tuple[Spec, tuple[str, ...]]:
    """Return the container with what this node has, and the names of what it lacks."""
    spec, config, runtime = which.spec(), which.config, which.runtime
    driver = container.driver_mounts(config)
    asked = spec.mounts[len(driver) :]
    for mount in asked:
        there = not mount.bind or is_there(Path(mount.source))
        if there is None and not runtime.sees_all:
            reason = f"this user cannot see it, and {runtime.name} mounts as this user"
            remedy = "Open the directory above it, or mount another path."
            raise RunError("container.mounts", mount.source, reason, remedy)
        if there is False:
            model = mount.source == from_root(config.model.path)
            key, remedy = ("model.path", "Stage the model there.") if model else ("container.mounts", "Check the path.")
            if mount.source in {container.dataset(point) for point in which.points or (config,)}:
                key, remedy = "bench.dataset", "Copy the file there."
            raise RunError(key, mount.source, "there is no such path on this node", remedy)
    if spec.image.path:
        check_file(spec.image.path)
    lent = ascend.lend(spec.devices, driver, unseen=runtime.sees_all)
    return replace(spec, devices=lent.devices, mounts=(*lent.mounts, *asked)), lent.missing


def _check_shm(runtime: Runtime, spec: Spec) -> None:
    """Where the container shows the node's /dev/shm, nothing but a mount can change its size."""
    if runtime.apart or spec.shm_size is None or any(one.target == "/dev/shm" for one in spec.mounts):
        return
    found = os.statvfs("/dev/shm")
    if found.f_blocks * found.f_frsize < size_bytes(spec.shm_size):
        gib = found.f_blocks * found.f_frsize / 2**30
        reason = f"/dev/shm of this node, which {runtime.name} shows inside, has {gib:.1f} GiB"
        remedy = f"Add tmpfs:/dev/shm:size={spec.shm_size}+mode=1777 to container.mounts, or lower container.shm_size."
        raise RunError("container.shm_size", spec.shm_size, reason, remedy)


def _entry(which: RankContainer, spec: Spec, env: Mapping[str, str], scratch: Path) -> Entry:
    config = which.config
    libraries, preload = ascend.shell_additions(config.engine.release)
    npus = engine_of(config).traits.npus
    binds = {one.target.rstrip("/") or "/": one for one in spec.mounts if one.bind}
    needed = {"model.path": from_root(config.model.path)} if config.engine.checks_model_path else {}
    return Entry(
        env=env,
        scrub=(*SCRUBBED, "ENROOT_"),
        source=ascend.sources([from_root(name) for name in config.engine.source]),
        libraries=libraries if npus else (),
        preload=preload if npus else (),
        workdir=config.container.workdir or str(scratch),
        outside=str(Path("/proc/self/ns/mnt").readlink()),
        mounts={target: found for target, one in binds.items() if (found := _identity(one.source))},
        read_only=tuple(target for target, one in binds.items() if one.read_only),
        devices=spec.devices,
        needed=needed,
        release=config.engine.release if npus and config.engine.checks_release else None,
        mark=which.tag if which.runtime.marks and spec.name else None,
        programs=tuple(("bench.program", name) for name in _programs(which)),
    )


def _programs(which: RankContainer) -> tuple[str, ...]:
    """Return the programs of external clients that run in here, each once: they must be in the image."""
    inside = [point for point in which.points or (which.config,) if which.rank == 0 and _brings_program(point)]
    return tuple(dict.fromkeys(clients.of(point).program(point) for point in inside))


def _identity(path: str) -> str | None:
    """Return device and inode; None: this user cannot see it, so nothing can be proved of it."""
    with contextlib.suppress(OSError):
        found = Path(path).stat()
        return f"{found.st_dev}:{found.st_ino}"
    return None


def differences(config: Config, one: ContainerProcess, proof: Proof) -> tuple[Difference, ...]:
    """Return what the inside is not, of what was asked for. The entry script has stopped for most of it already."""
    found, spec = [], one.order.spec
    if proof.namespace is None:
        found.append(Difference("container", spec.runtime, None, error=True))
    version = next((name.partition("-")[2] for name in proof.packages if name.startswith("vllm_ascend-")), None)
    release = config.engine.release
    if version and not (version + ".").startswith(release + "."):
        found.append(Difference("engine.release", release, f"vllm_ascend {version} in the image", error=False))
    made, wanted = one.inside.image_id(), None
    if one.order.fetched:
        wanted = one.order.fetched.names.get("id")
    elif made:
        with contextlib.suppress(RunError):
            wanted = one.runtime.look(one.order, one.inside.env).image_id
    if wanted and made != wanted:
        intended = f"{spec.image.docker()} ({wanted})"
        found.append(Difference("container.image", intended, made, error=made is not None))
    for name in one.missing:
        found.append(Difference("container", name, None, error=False))
    return tuple(found)


def record(one: ContainerProcess, proof: Proof) -> dict[str, Any]:
    """Return what effective.json says of the container."""
    spec = one.order.spec
    return {
        "runtime": spec.runtime,
        "image": one.inside.image(),
        "image_id": one.inside.image_id(),
        "image_names": dict(one.order.fetched.names) if one.order.fetched else {},
        "name": spec.name,
        "mounts": [str(mount) for mount in spec.mounts],
        "devices": list(spec.devices),
        "missing": list(one.missing),
        "proof": asdict(proof),
    }
