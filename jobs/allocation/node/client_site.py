"""Where an external client runs: on this node, or as a further command in the container of a running engine.

The latter joins the engine's container in every runtime (`enroot exec`, a step with --container-name, `docker exec`),
so it sees the same files, and proves from inside that it is there. What it reads and writes lies in a directory of the
engine's scratch, which is mounted under its own path, or copied in and out by docker.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from containers import docker, enroot, entry, pyxis
from containers.entry import Files
from jobs.allocation.node.box import Box, node_name, runtime_env
from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.files import write_text
from jobs.core.process import TAG, Ended, Process
from jobs.engines.vllm.environment import OURS_ALONE, SCRUBBED

COPY_S = 600.0
"""Copying a client's results out of a container may take so long."""


@dataclass(frozen=True)
class NodeSite:
    """This node, for a client without a container.

    Args:
        inherited: the environment of the client, without the variables that belong to the engine.
        source: shell files that are sourced first.
    """

    inherited: Mapping[str, str]
    source: tuple[str, ...] = ()

    def place(self, folder: Path) -> Path:
        """Return the directory that the client works in."""
        return folder

    async def start(self, argv: Sequence[str], env: Mapping[str, str], log: Path, tag: str) -> process.Process:
        """Start a client beside its log."""
        return await process.start(argv, env, log, tag, self.source, cwd=log.parent)

    async def close(self, folder: Path) -> None:
        """Do nothing: all of it is there."""


class JoinedCommand:
    """A command that joined a container. It is ended where it runs, not only where it was started."""

    def __init__(self, starter: Process, box: Box) -> None:
        self._starter, self._box = starter, box

    async def wait(self) -> Ended:
        """Wait until it has ended."""
        return await self._starter.wait()

    @property
    def ended(self) -> Ended | None:
        """How it ended, or None while it lives."""
        return self._starter.ended

    async def stop(self, grace_s: float) -> list[str]:
        """End it and its children: SIGTERM, then SIGKILL after `grace_s` seconds. Returns what could not be ended."""
        await self._box.end(self._starter, grace_s)
        left = await self._starter.stop(grace_s if self._box.spec.runtime == "enroot" else 0)
        return left + await asyncio.to_thread(self._kill)

    def _kill(self) -> list[str]:
        """Kill what is left of it in docker's container, whose processes are not ours to see or signal."""
        name = str(self._box.spec.name)
        if self._box.spec.runtime != "docker" or (pid := self._box.pid()) is None:
            return []
        try:
            said = process.run(docker.kill_argv(name, pid), env=self._box.host).stdout
        except RunError as error:
            return [f"client in container {name}: {error.reason}"]
        return [f"client in container {name}"] if "alive" in said else []


class ContainerSite:
    """The container of an engine, for one run of one client."""

    inherited: Mapping[str, str] = {}
    """Nothing of the node's environment: the image and `engine.env` give what is needed."""

    def __init__(self, box: Box, variables: Mapping[str, str]) -> None:
        """Args: the container, and what its engine's variables say to a client too."""
        self._variables, self._engine = variables, box

    @cached_property
    def _work(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="client-", dir=self._engine.files.folder))

    @cached_property
    def _box(self) -> Box:
        return replace(self._engine, files=Files(self._work))

    @property
    def _docker(self) -> bool:
        return self._box.spec.runtime == "docker"

    def place(self, folder: Path) -> Path:
        """Return the directory, the same on the node and inside, that the client works in instead of `folder`."""
        place = self._work / "results"
        place.mkdir(mode=0o700, exist_ok=True)
        return place

    async def start(self, argv: Sequence[str], env: Mapping[str, str], log: Path, tag: str) -> JoinedCommand:
        """Start a client in the container, with its output in `log` on the node.

        Raises:
            RunError: the container cannot be joined.
        """
        await asyncio.to_thread(self._write, env, tag)
        joining = self.argv(entry.command(self._box.files, argv))
        starter_env = runtime_env(self._box.host)
        if self._box.paths is not None:
            starter_env |= enroot.start_env(self._box.spec, self._box.paths)
        return JoinedCommand(await process.start(joining, starter_env, log, tag), self._box)

    def argv(self, command: Sequence[str]) -> list[str]:
        """Return what runs a command in the container.

        Raises:
            RunError: the engine has not said where it is: it has ended, or never got there.
        """
        spec = self._box.spec
        if spec.runtime == "docker":
            return docker.exec_argv(str(spec.name), command)
        if spec.runtime == "enroot":
            pid = self._engine.pid()
            if pid is None:
                raise _lost("its process id is not known")
            return enroot.exec_argv(pid, command)
        step = self._engine.proof().step
        if step is None:
            raise _lost("its step is not known")
        return pyxis.join_argv(spec, step.partition(".")[0], node_name(self._box.host), spec.name or step, command)

    def _write(self, env: Mapping[str, str], tag: str) -> None:
        """Write the script that runs first inside."""
        known = self._box.entry
        own = {"TMPDIR": known.env["TMPDIR"], TAG: tag}
        what = replace(
            known,
            env={**self._variables, **env, **own},
            scrub=(*SCRUBBED, *OURS_ALONE, "TERM"),
            workdir=str(self.place(self._work)),
            mounts=None,
            read_only=(),
            devices=(),
            needed=None,
            programs=(),
            inside=self._engine.proof().namespace or "(unknown)",
        )
        write_text(self._box.files.script, entry.script(what, self._box.files), mode=0o600)
        if self._docker and self._box.spec.writable:  # else it is mounted
            for argv in docker.copy_argvs(str(self._box.spec.name), str(self._work)):
                _run(argv, self._box.host)

    async def close(self, folder: Path) -> None:
        """Move what the client wrote to `folder`, and remove its directory.

        Raises:
            RunError: it cannot be read or copied.
        """
        await asyncio.to_thread(self._close, folder)

    def _close(self, folder: Path) -> None:
        place, name = self.place(folder), str(self._box.spec.name)
        try:
            if self._docker:
                _run(docker.fetch_argv(name, str(place), str(folder)), self._box.host)
            else:
                shutil.copytree(place, folder, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise RunError(str(folder), "(copy)", str(error), "Free space, or choose another results.root.") from None
        finally:
            shutil.rmtree(self._work, ignore_errors=True)
            if self._docker:  # the key of the service is in it
                with contextlib.suppress(RunError):
                    process.run(docker.exec_argv(name, ["rm", "-rf", str(self._work)]), env=self._box.host)


def _lost(reason: str) -> RunError:
    return RunError("bench.where", "container", f"the engine's container cannot be joined: {reason}", "See server.log.")


def _run(argv: Sequence[str], env: Mapping[str, str]) -> None:
    done = process.run(argv, env=env, timeout_s=COPY_S)
    if done.returncode != 0:
        raise docker.failure(argv, done.returncode, done.stderr)
