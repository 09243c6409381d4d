"""Start and stop one rank's engine, and keep its record: command, states, log."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from containers.base import Fetched
from containers.faults import GONE
from jobs.allocation.node import artifacts, audit, cleanup, container_process, image, oom
from jobs.allocation.node.container import RankContainer, by_digest, checkpoint
from jobs.allocation.node.container_process import ContainerProcess
from jobs.cluster import ports
from jobs.core import masking, process
from jobs.core.config import Config, in_container
from jobs.core.errors import RunError, UserError
from jobs.core.fields import from_root
from jobs.core.files import is_there, private_place, write_json
from jobs.core.layout import Placement
from jobs.core.log import last_words, read_all, read_tail
from jobs.core.rundir import RankDir
from jobs.core.waiting import aside
from jobs.engines.base import engine_of
from jobs.engines.checkpoint.checkpoint import files
from jobs.engines.vllm import environment


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
        self.container: ContainerProcess | None = None
        self._shards: str | None = None
        self._met = self._weights = self._loaded = False
        self._discard: Callable[[], list[str]] | None = None
        self._fetched: Fetched | None = None
        self._begun = 0.0
        self._killed: int | None = None
        self.load_gb_s: float | None = None
        """How fast it has read its weights: the checkpoint's bytes by the seconds of its slowest worker."""

    async def unpack(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Bring the container's image to this node, and unpack it, before any engine of the service starts.

        Returns by which names it is told from others, for the comparison of the ranks; empty: no container, or unknown.
        What a registry has under its name no more, rank 0 may have, and know its digest: then that is told instead.

        Raises:
            RunError: see `image.prepare`.
        """
        try:
            return await self._bring(inherited)
        except RunError as error:
            if self.place.rank == 0 or GONE not in error.reason:
                raise
            self._fetched = Fetched({image.NONE: error.reason})
            return image.parts(self._fetched)

    async def _bring(self, inherited: Mapping[str, str]) -> dict[str, str]:
        which = self._which(inherited)
        self._discard = lambda: image.discard(which)
        self._fetched = await image.prepare(which, self.folder)
        return image.parts(self._fetched)

    async def unpack_that_of_rank_0(self, wanted: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
        """Bring the image that rank 0 has, by its names, instead of the one that was brought. Returns its names here.

        Raises:
            RunError: as above; it names both.
        """
        differs = image.difference(wanted, image.parts(self._fetched))
        try:
            self.config = by_digest(self.config, str(image.of_registry(wanted)))
            return await self._bring(inherited)
        except UserError as error:
            reason = f"{differs}, and that one does not come: {error.reason}"
            raise RunError(error.key, error.value, reason, error.remedy) from None

    @property
    def image_digest(self) -> str | None:
        """The digest of the image that was brought; None: none was, or it has none."""
        return self._fetched.names.get("digest") if self._fetched else None

    def _which(self, inherited: Mapping[str, str]) -> RankContainer:
        return RankContainer(self.config, self.place.rank, self.tag, inherited, tuple(self._points))

    async def start(self, inherited: Mapping[str, str]) -> None:
        """Write the intended command and start it, without this task's launcher variables (`inherited`).

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
        intended = {"argv": masking.mask(argv), "env": masking.mask(variables), "source": source}
        write_json(self.folder.command, intended)
        self.folder.enter("staged")
        env = environment.whole(variables, inherited)
        if not in_container(self.config):
            self._check_node(argv[0], env)
        # npu-smi may take seconds.
        self._before = await aside(cleanup.baseline)
        # vLLM leaves its sockets in TMPDIR; their paths have a limit of 107 characters, so this one is short.
        place = private_place(env.get("TMPDIR") or "/tmp") if len(env.get("TMPDIR", "")) < 40 else "/tmp"
        try:
            self._scratch = tempfile.mkdtemp(prefix="sv-", dir=place)
        except OSError as error:
            reason = f"no directory can be made in it: {error.strerror}"
            raise RunError("TMPDIR", place, reason, "Free space there, or set TMPDIR to another directory.") from None
        env["TMPDIR"] = self._scratch
        try:
            if in_container(self.config):
                scratch = Path(self._scratch)
                one = container_process.prepare(self._which(inherited), argv, variables, scratch, self._fetched, plogs)
                self.container = one
                # The commands as they are run on this node; values of variables are not among them.
                commands = masking.mask([*one.runtime.start(one.order).commands])
                write_json(self.folder.command, intended | {"container": commands})
                argv, env, source = one.argv, one.env, []
            self._begun = time.time()
            self._killed = None if self.container and self.container.runtime.apart else oom.kills(self._reads)
            self._process = await process.start(argv, env, self.folder.log, self.tag, source, scratch=self._scratch)
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
            reason = "there is no such program on this node"
            raise RunError("engine.command", program, reason, "Install it, or give its path.")

    async def ended(self) -> str:
        """Wait until the engine's main process has ended; return how, with its own last words."""
        assert self._process is not None
        how = await self._process.wait()
        why = await aside(self._why) if how.code else None
        return f"engine {how}{f' ({why})' if why else ''}: {last_words(read_tail(self.folder.log))}"

    def _why(self) -> str | None:
        """Return what others say of an engine's end: its container's runtime, or the kernel."""
        with contextlib.suppress(RunError):
            fate = self.container.inside.fate() if self.container else None
            return fate or oom.told(self._killed, oom.kills(self._reads))
        return None

    def _reads(self, path: Path) -> str:
        """Read what the kernel counts for the engine: of a group of its own, where its container is apart."""
        apart = self.container and self.container.runtime.apart
        return self.container.inside.read(path) if self.container and apart else path.read_text(encoding="utf-8")

    def inspect(self) -> tuple[audit.Difference, ...]:
        """Compare the running engine with its intended command, and write effective.json."""
        assert self._process is not None
        argv, env = self.container.read_process() if self.container else audit.read_process(self._process.pid)
        log = read_all(self.folder.log)
        reported, self.load_gb_s = audit.reported_args(log), self._load_rate(log)
        intended = engine_of(self.config).environment(self.config, self.place)
        found = audit.compare(engine_of(self.config).argv(self.config, self.place), intended, argv, env, reported)
        real = None if self.container else audit.allocator_of(self._process.pid)
        found += audit.allocator_difference(intended, real)
        inside: dict[str, Any] = {"allocator": real} if real else {}
        if self.container:
            proof = self.container.inside.proof()
            found += container_process.differences(self.config, self.container, proof)
            inside |= {"container": container_process.record(self.container, proof)}
        write_json(self.folder.effective, audit.record(argv, env, found, reported) | inside)
        return found

    def _load_rate(self, log: str) -> float | None:
        weights_s = engine_of(self.config).read_log(log).weights_s
        with contextlib.suppress(OSError):
            sizes = files(checkpoint(self.config)) if weights_s else {}
            size = sum(count for name, count in sizes.items() if name.endswith(".safetensors"))
            return size / weights_s / 1e9 if weights_s and size else None
        return None

    def container_s(self) -> float:
        """Return the seconds from the start until it was inside of its container: some unpack their image meanwhile."""
        entered = self.container.inside.entered() if self.container else None
        return max(0.0, entered - self._begun) if entered else 0.0

    def note_progress(self) -> bool:
        """Record how far the load is, where the engine's log has said more than before: its ranks met, shards.

        Returns whether its weights are read.
        """
        if self._loaded:
            return True
        said = engine_of(self.config).read_log(read_tail(self.folder.log))
        self._weights = self._weights or said.weights_gib is not None
        if not self._met and said.ranks_met:
            self._met = True
            self.folder.note("rendezvous")
        if said.load_progress and said.load_progress != self._shards:
            self._shards = said.load_progress
            self.folder.note("loading", shards=said.load_progress)
        return self._weights

    def note_phase(self, state: str, **details: Any) -> None:
        """Record a phase of the service, which rank 0 leads; the load is over by then."""
        self._loaded = True
        self.folder.note(state, **details)

    def listens(self) -> bool:
        """Return whether its API is there. RunError: somebody else listens in its place."""
        owns = self._process.owns if self._process else lambda _: False
        return ports.listens(self.place.local, int(self.place.api_port), owns)

    def log_size(self) -> int:
        """Return the bytes of the engine's log: whether it says anything new."""
        return self.folder.log.stat().st_size if self.folder.log.exists() else 0

    async def stop(self, grace_s: float | None = None) -> list[str]:
        """End the engine and clean up after it. Returns what was left behind.

        `grace_s`: seconds from SIGTERM to SIGKILL; None: `limits.stop_s`.
        """
        if self._process is None:
            return await aside(self._discard) if self._discard else []
        self.folder.note("draining")
        grace_s = self.config.limits.stop_s if grace_s is None else grace_s
        if self.container:
            await self.container.end(self._process, grace_s)
        leftovers = await self._process.stop(grace_s)
        if self.container:
            if self.container.runtime.copies and engine_of(self.config).traits.npus:
                await aside(artifacts.copy_plogs, self.container.inside, self.folder)
            leftovers += await aside(self.container.remove)
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
        opened = [int(port) for port in (self.place.api_port, self.place.rpc_port) if self.place.role == "head"]
        leftovers += await aside(cleanup.leftovers, self._before, opened, self.place.local) if self._before else []
        self.folder.note("done", leftovers=leftovers)
        return leftovers
