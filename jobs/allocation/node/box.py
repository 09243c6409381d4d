"""The container of one rank on its node: prepared, looked into, ended, removed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from containers import ascend, docker, enroot, entry, pyxis
from containers.entry import Entry, Files, Proof
from containers.spec import Mount, Spec, size_bytes
from containers.store import Store
from jobs.allocation.node import audit, container, image
from jobs.allocation.node.audit import Difference
from jobs.core import process
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.fields import from_root
from jobs.core.files import is_there, write_json, write_text
from jobs.core.process import TAG, Process
from jobs.engines.base import engine_of
from jobs.engines.placement import Placement
from jobs.engines.vllm.environment import SCRUBBED
from jobs.measure.clients import base as clients

CLIENT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TERM", "TMPDIR", "SLURM_CONF", "DOCKER_HOST", "DOCKER_CONFIG",
          "XDG_CONFIG_HOME")  # fmt: skip
"""All that a runtime's own program gets of the host's environment: pyxis would hand the rest on to the engine."""


@dataclass(frozen=True)
class Box:
    """The container of a rank on its node. `argv`, `env`: of the process that prepares it and becomes the engine."""

    tag: str
    spec: Spec
    files: Files
    entry: Entry
    argv: list[str]
    env: dict[str, str]
    host: dict[str, str]
    missing: tuple[str, ...]
    paths: enroot.Paths | None

    def pid(self) -> int | None:
        """Return the engine's process id as the inside counts: on the node too, but for docker."""
        with contextlib.suppress(ValueError, OSError):
            return int(self._read(self.files.pid))
        return None

    def _read(self, path: Path) -> str:
        if self.spec.runtime == "docker":
            return self._docker("cat", str(path))
        return path.read_text(errors="replace")

    def _docker(self, *command: str) -> str:
        return process.run(docker.exec_argv(str(self.spec.name), command), env=self.host).stdout

    def read_process(self) -> tuple[list[str], dict[str, str]]:
        """Return argv and environment of the running engine, wherever its processes are to be seen."""
        pid = self.pid()
        if pid is None:
            return [], {}
        if self.spec.runtime == "docker":
            return audit.parse(*(self._docker("cat", f"/proc/{pid}/{name}") for name in ("cmdline", "environ")))
        return audit.read_process(pid)

    def proof(self) -> Proof:
        """Return what the inside saw before it became the engine."""
        with contextlib.suppress(OSError):
            return entry.read_proof(self._read(self.files.proof))
        return entry.read_proof("")

    def image_id(self) -> str | None:
        """Return the id of the image that docker made the container of; other runtimes do not tell."""
        if self.spec.runtime != "docker":
            return None
        with contextlib.suppress(RunError):
            return process.run(docker.made_of_argv(str(self.spec.name)), env=self.host).stdout.strip() or None
        return None

    def terminate(self) -> None:
        """Send SIGTERM to the engine itself: `docker exec` and `srun` would not hand it on."""
        pid = self.pid()
        if pid is None:
            return
        with contextlib.suppress(RunError, OSError):
            if self.spec.runtime == "docker":
                process.run(docker.terminate_argv(str(self.spec.name), pid), env=self.host)
            elif self.spec.runtime == "pyxis":
                os.kill(pid, signal.SIGTERM)

    async def end(self, starter: Process, grace_s: float) -> None:
        """Let what runs inside end itself where a signal to its starter would not reach it (srun, docker exec)."""
        if self.spec.runtime == "enroot" or starter.ended:
            return  # enroot's process is the engine
        await asyncio.to_thread(self.terminate)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(starter.wait(), grace_s)

    def remove(self) -> list[str]:
        """Remove the container after its processes have ended, if this rank made it. Returns what is left of it."""
        name = self.spec.name
        if name is None:
            return []  # pyxis removes unnamed ones with their step
        try:
            if self.spec.runtime == "enroot":
                assert self.paths is not None
                return enroot.remove_made(name, self.tag, self.paths, self.host)
            if self.spec.runtime == "docker":
                return self._remove_docker(name)
            return self._remove_named(name)
        except RunError as error:
            return [f"container {name}: {error.reason}"]

    def _remove_named(self, name: str) -> list[str]:
        """Remove what pyxis keeps. Where the entry script did not run, somebody else may have made it: it is told."""
        if not self.files.entered.exists() and not self.files.free.exists():
            return []
        env, job = pyxis.enroot_env(self.host), self.tag.partition("/")[0]
        found = pyxis.roots(name, job, process.run(pyxis.list_argv(), env=env).stdout)
        if self.files.entered.exists():
            for root in found:
                process.run(pyxis.remove_argv(root), env=env, timeout_s=600)
            found = pyxis.roots(name, job, process.run(pyxis.list_argv(), env=env).stdout)
            return [f"container {root}" for root in found]
        return [f"container {root}: remove it if nobody else made it: `enroot remove {root}`" for root in found]

    def _remove_docker(self, name: str) -> list[str]:
        mine = f"{name} {docker.owner(os.getuid(), self.tag)}"
        if mine not in process.run(docker.list_argv(), env=self.host).stdout.splitlines():
            return []
        if not self.spec.writable:
            process.run(docker.clear_argv(name, str(self.files.folder)), env=self.host, timeout_s=120)
        process.run(docker.remove_argv(name), env=self.host, timeout_s=120)
        shown = process.run(docker.list_argv(), env=self.host).stdout.splitlines()
        return [f"container {name}"] if mine in shown else []


def prepare(
    config: Config,
    place: Placement,
    argv: Sequence[str],
    variables: Mapping[str, str],
    inherited: Mapping[str, str],
    scratch: Path,
    tag: str,
    unpacked: str | None = None,
    kept: Path | None = None,
    points: Iterable[Config] = (),
) -> Box:
    """Write what the container of this rank needs into `scratch`, a directory of this node.

    `unpacked`: identity of the root that was made for it beforehand; None: none was. `kept`: a directory of the run
    that is to be there inside as well (not for docker). `points`: all points of the service, whose external clients may
    run in the container of rank 0.

    Raises:
        RunError: this node lacks the runtime, a mount's source, the model, or shared memory.
    """
    container.check_host(config)
    points = (*points,) or (config,)
    job, files = tag.partition("/")[0], Files(scratch)
    spec, missing = _here(config, place.rank, tag, points)
    handed_on = {name: inherited[name] for name in ascend.HANDED_ON if name in inherited}
    if not handed_on:
        spec = replace(spec, devices=ascend.own(spec.devices, lambda name: os.access(name, os.R_OK | os.W_OK)))
    _check_shm(spec)
    env = handed_on | dict(variables) | {TAG: tag, "TMPDIR": str(scratch)}
    if spec.runtime != "docker" or not spec.writable:
        spec = replace(spec, mounts=(*spec.mounts, Mount(str(scratch), str(scratch))))
    if spec.runtime != "docker":
        mounts = (Mount(str(kept), str(kept)),) if kept else ()
        spec = replace(spec, mounts=(*spec.mounts, *mounts), env=container.handed_on(env))
    inside = _entry(config, spec, env, scratch)
    if place.rank == 0:
        programs = {clients.of(point).program(point): None for point in points if _brings_program(point)}
        inside = replace(inside, programs=tuple(("bench.program", name) for name in programs))
    write_text(files.script, entry.script(inside, files), mode=0o600)
    write_text(files.rc, entry.RC)
    host = image.outside(inherited)
    client = runtime_env(host)
    command = entry.command(files, argv)
    paths = container.enroot_paths(config, job, place.rank) if spec.runtime == "enroot" else None
    task = image.order(config, spec, place.rank, tag) | {"env": client | dict(spec.env), "folder": str(scratch)}
    if spec.runtime == "enroot":
        assert paths is not None
        task["argv"] = enroot.start_argv(spec, str(spec.name), files.rc, command)
        task["env"] |= enroot.start_env(spec, paths)
        task["unpacked"] = unpacked
    elif spec.runtime == "pyxis":
        store = Store(container.images(config))
        found = None if spec.image.path or not shutil.which("unsquashfs") else store.find(spec.image)
        if found:
            spec = replace(spec, image=replace(spec.image, path=found.path))
        task["argv"] = pyxis.step_argv(spec, job, node_name(inherited), command)
    else:
        name = str(spec.name)
        run = docker.detached(docker.run_argv(spec), docker.owner(os.getuid(), tag))
        copies = docker.copy_argvs(name, str(scratch)) if spec.writable else []
        task |= {"argv": docker.exec_argv(name, command), "prepare": [run, *copies]}
    write_json(scratch / "task.json", task, mode=0o600)
    return Box(
        tag, spec, files, inside, image.program(scratch / "task.json"), image.with_us(host), host, missing, paths
    )


def runtime_env(host: Mapping[str, str]) -> dict[str, str]:
    """Return what a runtime's own program gets of this host's environment."""
    return {name: host[name] for name in CLIENT if name in host}


def node_name(host: Mapping[str, str]) -> str:
    """Return the name of this node, as Slurm knows it."""
    return host.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def _brings_program(point: Config) -> bool:
    """Whether a point's client needs a program inside that is not the engine's own."""
    return clients.runs_inside(point) and bool(point.bench.program or not clients.of(point).of_engine)


def _here(config: Config, rank: int, tag: str, points: Iterable[Config]) -> tuple[Spec, tuple[str, ...]]:
    """Return the container with what this node has, and the names of what it lacks."""
    spec = image.wanted(config, rank, tag, points)
    driver = container.driver_mounts(config)
    asked = spec.mounts[len(driver) :]
    for mount in asked:
        there = not mount.bind or is_there(Path(mount.source))
        if there is None and spec.runtime != "docker":  # its daemon is root, and sees everything
            reason = f"this user cannot see it, and {spec.runtime} mounts as this user"
            remedy = "Open the directory above it, or mount another path."
            raise RunError("container.mounts", mount.source, reason, remedy)
        if there is False:
            model = mount.source == from_root(config.model.path)
            key, remedy = ("model.path", "Stage the model there.") if model else ("container.mounts", "Check the path.")
            if mount.source in {container.dataset(point) for point in points}:
                key, remedy = "bench.dataset", "Copy the file there."
            raise RunError(key, mount.source, "there is no such path on this node", remedy)
    if spec.image.path:
        image.check_file(spec.image.path)
    lent = ascend.lend(spec.devices, driver, unseen=spec.runtime == "docker")
    return replace(spec, devices=lent.devices, mounts=(*lent.mounts, *asked)), lent.missing


def _check_shm(spec: Spec) -> None:
    """Where the container shows the node's /dev/shm, nothing but a mount can change its size."""
    if spec.runtime == "docker" or spec.shm_size is None or any(one.target == "/dev/shm" for one in spec.mounts):
        return
    found = os.statvfs("/dev/shm")
    if found.f_blocks * found.f_frsize < size_bytes(spec.shm_size):
        gib = found.f_blocks * found.f_frsize / 2**30
        raise RunError(
            "container.shm_size",
            spec.shm_size,
            f"/dev/shm of this node, which {spec.runtime} shows inside, has {gib:.1f} GiB",
            f"Add tmpfs:/dev/shm:size={spec.shm_size}+mode=1777 to container.mounts, or lower container.shm_size.",
        )


def _entry(config: Config, spec: Spec, env: Mapping[str, str], scratch: Path) -> Entry:
    libraries, preload = ascend.shell_additions(config.engine.release)
    npus = engine_of(config).traits.npus
    binds = {one.target.rstrip("/") or "/": one for one in spec.mounts if one.bind}
    needed = {"model.path": from_root(config.model.path)} if config.engine.checks_model_path else {}
    return Entry(
        env=env,
        scrub=SCRUBBED,
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
    )


def _identity(path: str) -> str | None:
    """Return device and inode; None: this user cannot see it, so nothing can be proved of it."""
    with contextlib.suppress(OSError):
        found = Path(path).stat()
        return f"{found.st_dev}:{found.st_ino}"
    return None


def differences(config: Config, box: Box, proof: Proof) -> tuple[Difference, ...]:
    """Return what the inside is not, of what was asked for. The entry script has stopped for most of it already."""
    found = []
    if proof.namespace is None:
        found.append(Difference("container", box.spec.runtime, None, error=True))
    version = next((name.partition("-")[2] for name in proof.packages if name.startswith("vllm_ascend-")), None)
    release = config.engine.release
    if version and not (version + ".").startswith(release + "."):
        found.append(Difference("engine.release", release, f"vllm_ascend {version} in the image", error=False))
    if made := box.image_id():
        wanted, _ = container.docker_image(box.spec.image, box.host)
        if wanted and made != wanted:
            found.append(Difference("container.image", f"{box.spec.image.docker()} ({wanted})", made, error=True))
    for name in box.missing:
        found.append(Difference("container", name, None, error=False))
    return tuple(found)


def record(box: Box, proof: Proof) -> dict[str, Any]:
    """Return what effective.json says of the container."""
    spec = box.spec
    return {
        "runtime": spec.runtime,
        "image": str(spec.image),
        "image_id": box.image_id(),
        "name": spec.name,
        "mounts": [str(mount) for mount in spec.mounts],
        "devices": list(spec.devices),
        "missing": list(box.missing),
        "proof": asdict(proof),
    }


def commands(box: Box) -> list[list[str]]:
    """Return the commands as they are run on this node, for command.json; values of variables are not among them."""
    task = json.loads(Path(box.argv[-1]).read_text())
    return [*task.get("prepare", []), task["argv"]]
