"""Start and stop one rank's engine, and keep its record: command, states, log."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.allocation.node import artifacts, audit, cleanup, container_process, image
from jobs.allocation.node.client_site import ContainerSite, NodeSite
from jobs.allocation.node.container import RankContainer
from jobs.allocation.node.container_process import ContainerProcess
from jobs.core import process
from jobs.core.config import Config, in_container
from jobs.core.errors import RunError
from jobs.core.fields import from_root
from jobs.core.files import is_there, write_json
from jobs.core.log import last_words, read_all, read_tail
from jobs.core.rundir import RankDir
from jobs.core.waiting import aside
from jobs.engines.base import engine_of
from jobs.engines.placement import Placement
from jobs.engines.vllm import environment
from jobs.measure.clients import base as clients
from jobs.measure.clients.base import ClientSite


class Engine:
    """The engine of one rank of one service."""

    def __init__(
        self, config: Config, place: Placement, folder: RankDir, tag: str, points: Sequence[Config] = ()
    ) -> None:
        """Args: config of the service, this rank, its directory, its process tag, all points (rank 0)."""
        self.config, self.place, self.folder, self.tag, self._points = config, place, folder, tag, points
        self._process: process.Process | None = None
        self._before: cleanup.Baseline | None = None
        self._scratch: str | None = None
        self._container: ContainerProcess | None = None
        self._shards: str | None = None
        self._met = self._loaded = False
        self._discard: Callable[[], list[str]] | None = None
        self._unpacked: str | None = None

    async def unpack(self, inherited: Mapping[str, str]) -> None:
        """Bring the container's image to this node, and unpack it, before any engine of the service starts.

        Raises:
            RunError: see `image.prepare`.
        """
        which = self._which(inherited)
        self._discard = lambda: image.discard(which)
        self._unpacked = await image.prepare(which, self.folder)

    def _which(self, inherited: Mapping[str, str]) -> RankContainer:
        return RankContainer(self.config, self.place.rank, self.tag, inherited, tuple(self._points))

    async def start(self, inherited: Mapping[str, str]) -> None:
        """Write the intended command and start it.

        Args:
            inherited: environment of this task; launcher variables are taken out.

        Raises:
            RunError: the checkpoint, the program or the container's runtime is not on this node.
        """
        argv = engine_of(self.config).argv(self.config, self.place)
        kept = artifacts.plog_variables(self.config, self.folder, inherited)
        plogs = artifacts.make_plogs(self.folder, kept)
        if in_container(self.config):
            service = self.tag.split("/")[-2]
            kept |= await aside(artifacts.cache_variables, self.config, self.place.rank, service)
        variables = engine_of(self.config).environment(self.config, self.place) | kept
        source = [from_root(name) for name in self.config.engine.source]
        intended = {"argv": argv, "env": audit.masked(variables), "source": source}
        write_json(self.folder.command, intended)
        self.folder.enter("staged")
        env = environment.whole(variables, inherited)
        if not in_container(self.config):
            self._check_node(argv[0], env)
        # npu-smi may take seconds.
        self._before = await aside(cleanup.baseline)
        # vLLM leaves its sockets in TMPDIR; their paths have a limit of 107 characters, so this one is short.
        self._scratch = tempfile.mkdtemp(
            prefix="sv-", dir=env.get("TMPDIR") if len(env.get("TMPDIR", "")) < 40 else "/tmp"
        )
        env["TMPDIR"] = self._scratch
        try:
            if in_container(self.config):
                scratch = Path(self._scratch)
                one = container_process.prepare(self._which(inherited), argv, variables, scratch, self._unpacked, plogs)
                self._container = one
                write_json(self.folder.command, intended | {"container": container_process.commands(one)})
                argv, env, source = one.argv, one.env, []
            self._process = await process.start(argv, env, self.folder.log, self.tag, source)
        except RunError:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        self.folder.enter("loading", pid=self._process.pid)

    def _check_node(self, program: str, env: Mapping[str, str]) -> None:
        path = Path(from_root(self.config.model.path))
        if self.config.engine.checks_model_path and not (there := is_there(path)):
            reason = "there is no such directory on this node" if there is False else "this user cannot see it"
            raise RunError("model.path", path, reason, "Stage the model there.")
        # A sourced file may extend PATH: then only the start itself can tell.
        if not self.config.engine.source and not shutil.which(program, path=env.get("PATH")):
            raise RunError(
                "engine.command",
                program,
                "there is no such program on this node",
                "Install it, or give its path.",
            )

    async def ended(self) -> str:
        """Wait until the engine's main process has ended; return how, with its own last words."""
        assert self._process is not None
        how = await self._process.wait()
        return f"engine {how}: {last_words(read_tail(self.folder.log))}"

    def inspect(self) -> tuple[audit.Difference, ...]:
        """Compare the running engine with its intended command, and write effective.json."""
        assert self._process is not None
        argv, env = self._container.read_process() if self._container else audit.read_process(self._process.pid)
        reported = audit.reported_args(read_all(self.folder.log))
        intended = engine_of(self.config).environment(self.config, self.place)
        found = audit.compare(engine_of(self.config).argv(self.config, self.place), intended, argv, env, reported)
        inside: dict[str, Any] = {}
        if self._container:
            proof = self._container.inside.proof()
            found += container_process.differences(self.config, self._container, proof)
            inside = {"container": container_process.record(self._container, proof)}
        write_json(self.folder.effective, audit.record(argv, env, found, reported) | inside)
        return found

    def client_site(self, point: Config, inherited: Mapping[str, str]) -> ClientSite:
        """Return where the external client of a point runs once: on this node, or in the container of this engine.

        Raises:
            RunError: it is to run in a container, and the engine runs in none.
        """
        ours = environment.of_client(engine_of(self.config).environment(self.config, self.place))
        if clients.runs_inside(point):
            if self._container is None:
                raise RunError("bench.where", "container", "the engine runs in no container", "Use bench.where=node.")
            return ContainerSite(self._container, ours)
        if not clients.of(point).of_engine or in_container(point):
            return NodeSite(environment.whole({}, inherited))
        # The engine's own program needs what its environment has: the toolkit's libraries, its paths.
        source = tuple(from_root(name) for name in self.config.engine.source)
        return NodeSite(environment.whole(ours, inherited), source)

    def note_progress(self) -> None:
        """Record how far the load is, where the engine's log has said more than before: its ranks met, shards."""
        if self._loaded:
            return
        said = engine_of(self.config).read_log(read_tail(self.folder.log))
        if not self._met and said.ranks_met:
            self._met = True
            self.folder.note("rendezvous")
        if said.load_progress and said.load_progress != self._shards:
            self._shards = said.load_progress
            self.folder.note("loading", shards=said.load_progress)

    def note_phase(self, state: str, **details: Any) -> None:
        """Record a phase of the service, which rank 0 leads; the load is over by then."""
        self._loaded = True
        self.folder.note(state, **details)

    def log_size(self) -> int:
        """Return the bytes of the engine's log: whether it says anything new."""
        return self.folder.log.stat().st_size if self.folder.log.exists() else 0

    def log_age(self) -> float:
        """Return the seconds since the engine's log said something; 0 where there is no log."""
        return max(0.0, time.time() - self.folder.log.stat().st_mtime) if self.folder.log.exists() else 0.0

    async def stop(self, grace_s: float | None = None) -> list[str]:
        """End the engine and clean up after it. Returns what was left behind.

        Args:
            grace_s: seconds from SIGTERM to SIGKILL; None: `limits.stop_s`.
        """
        if self._process is None:
            return await aside(self._discard) if self._discard else []
        self.folder.note("draining")
        grace_s = self.config.limits.stop_s if grace_s is None else grace_s
        if self._container:
            await self._container.end(self._process, grace_s)
        leftovers = await self._process.stop(grace_s)
        if self._container:
            if self._container.runtime.copies and engine_of(self.config).traits.npus:
                await aside(artifacts.copy_plogs, self._container.inside, self.folder)
            leftovers += await aside(self._container.remove)
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
        ports = [int(port) for port in (self.place.api_port, self.place.rpc_port) if self.place.rank == 0]
        leftovers += await aside(cleanup.leftovers, self._before, ports) if self._before else []
        self.folder.note("done", leftovers=leftovers)
        return leftovers
