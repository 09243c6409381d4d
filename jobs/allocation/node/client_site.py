"""Where an external client runs: on this node, or as a further command in the container of a running engine.

The latter joins the engine's container in every runtime (`enroot exec`, a step with --container-name, `docker exec`),
so it sees the same files, and proves from inside that it is there. What it reads and writes lies in a directory of the
engine's scratch, which is mounted under its own path, or copied in and out by docker.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from containers import entry
from jobs.allocation.node.container_process import ContainerProcess, runtime_env
from jobs.core import process
from jobs.core.config import Config, in_container
from jobs.core.errors import RunError
from jobs.core.fields import from_root
from jobs.core.files import write_text
from jobs.core.process import TAG, Ended, Process
from jobs.core.waiting import aside
from jobs.engines.base import engine_of
from jobs.engines.vllm.environment import OURS_ALONE, SCRUBBED, of_client, whole
from jobs.measure.clients import base as clients

if TYPE_CHECKING:
    from jobs.allocation.node.engine import Engine


def of(engine: Engine, point: Config, inherited: Mapping[str, str]) -> clients.ClientSite:
    """Return where the external client of a point runs once: on this node, or in the container of this engine.

    Raises:
        RunError: it is to run in a container, and the engine runs in none.
    """
    ours = of_client(engine_of(engine.config).environment(engine.config, engine.place))
    if clients.runs_inside(point):
        if engine.container is None:
            raise RunError("bench.where", "container", "the engine runs in no container", "Use bench.where=node.")
        return ContainerSite(engine.container, ours)
    if not clients.of(point).of_engine or in_container(point):
        return NodeSite(whole({}, inherited))
    # The engine's own program needs what its environment has: the toolkit's libraries, its paths.
    source = tuple(from_root(name) for name in engine.config.engine.source)
    return NodeSite(whole(ours, inherited), source)


@dataclass(frozen=True)
class NodeSite:
    """This node, for a client without a container; of the environment the engine's own variables are taken out."""

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

    def __init__(self, starter: Process, container: ContainerProcess) -> None:
        self._starter, self._container = starter, container

    async def wait(self) -> Ended:
        """Wait until it has ended."""
        return await self._starter.wait()

    @property
    def ended(self) -> Ended | None:
        """How it ended, or None while it lives."""
        return self._starter.ended

    async def stop(self, grace_s: float) -> list[str]:
        """End it and its children: SIGTERM, then SIGKILL after `grace_s` seconds. Returns what could not be ended."""
        await self._container.end(self._starter, grace_s)
        left = await self._starter.stop(grace_s if self._container.runtime.is_engine else 0)
        return left + await aside(self._container.inside.kill, self._starter.tag)


class ContainerSite:
    """The container of an engine, for one run of one client."""

    inherited: Mapping[str, str] = {}
    """Nothing of the node's environment: the image and `engine.env` give what is needed."""

    def __init__(self, container: ContainerProcess, variables: Mapping[str, str]) -> None:
        """Args: the container, and what its engine's variables say to a client too."""
        self._variables, self._engine = variables, container

    @cached_property
    def _work(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="client-", dir=self._engine.order.folder))

    @cached_property
    def _container(self) -> ContainerProcess:
        order = replace(self._engine.order, folder=self._work)
        return replace(self._engine, order=order, inside=self._engine.runtime.reach(order, self._engine.inside.env))

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
        await aside(self._write, env, tag)
        one = self._container
        joining = self._engine.inside.join(entry.command(one.order.files, argv))
        host = runtime_env(one.runtime, one.inside.env)
        return JoinedCommand(await process.start(joining.commands[-1], host | dict(joining.env), log, tag), one)

    def _write(self, env: Mapping[str, str], tag: str) -> None:
        """Write the script that runs first inside."""
        known, files = self._container.entry, self._container.order.files
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
            inside=self._engine.inside.proof().namespace or "(unknown)",
        )
        write_text(files.script, entry.script(what, files), mode=0o600)
        self._container.inside.put(self._work)

    async def close(self, folder: Path) -> None:
        """Move what the client wrote to `folder`, and remove its directory. RunError: it cannot be read or copied."""
        await aside(self._close, folder)

    def _close(self, folder: Path) -> None:
        try:
            self._container.inside.take(self.place(folder), folder)
        except (OSError, shutil.Error) as error:
            raise RunError(str(folder), "(copy)", str(error), "Free space, or choose another results.root.") from None
        finally:
            shutil.rmtree(self._work, ignore_errors=True)
            with contextlib.suppress(RunError):  # the key of the service is in it
                self._container.inside.forget(self._work)
