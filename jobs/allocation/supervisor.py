"""One service on all its ranks, as rank 0 conducts it: start everywhere, ready, use, stop everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.allocation import messages, readiness
from jobs.allocation.control import ControlServer
from jobs.allocation.life import HASTE_S, PROGRESS_S, Failure, Life, ServiceFailed
from jobs.allocation.node import image, staging
from jobs.allocation.node.audit import Difference
from jobs.allocation.node.engine import Engine
from jobs.allocation.watch import Watch
from jobs.core.errors import UserError
from jobs.core.waiting import Barrier, aside
from jobs.measure.records import Target

INSPECT_S = 15.0
"""A rank reads its engine's /proc and log and answers within this time."""

STOP_MARGIN_S = 15.0
"""A rank may take its time for the stop, SIGKILL and a message; after that it counts as lost.

With HASTE_S it is less than KillWait, Slurm's 30 s between SIGTERM and SIGKILL: rank 0 still has its rows to end.
"""


class Supervisor:
    """One service on all its ranks."""

    def __init__(self, engine: Engine, control: ControlServer, start: messages.EngineStart, life: Life) -> None:
        """Args: this rank's engine, the channel, what starts the others' engines, and the life that it is to lead."""
        self._engine, self._control, self._start, self._life = engine, control, start, life
        self._ranks = control.present
        self._prepared = Barrier[staging.Parts](lambda: set(range(engine.place.ranks)))
        self._inspected = Barrier[Sequence[Difference]](lambda: self._ranks & control.present)
        self._stopped = Barrier[Sequence[str]](lambda: self._ranks & control.present)
        self._watchers: list[asyncio.Task[None]] = []
        self._telling: set[asyncio.Task[None]] = set()
        self._heard: dict[int, float] = {}
        self._weights: set[int] = set()  # the ranks that have read theirs
        self._listening: set[int] = set()  # the replicas on other nodes whose API is there
        self._begun = time.monotonic()
        self.prepared_s = 0.0
        """Seconds that bringing the image, and staging and checking the checkpoint, took."""
        self.stage_rates: dict[int, float] = {}
        self.load_rates: dict[int, float | None] = {}
        """How fast each rank has copied the checkpoint, and read the weights, GB/s."""
        self.warnings: list[str] = []
        self.watch: Watch | None = None

    async def start(self, inherited: Mapping[str, str], api: Target) -> None:
        """Start the engine on every rank and wait until the service is ready.

        Raises:
            ServiceFailed: a rank failed or a limit was exceeded first.
        """
        self._watchers.append(asyncio.create_task(self._watch_inbox()))
        await self._life.during(self._prepare(inherited))
        self.prepared_s = time.monotonic() - self._begun
        self._begun = time.monotonic()
        await self._control.send(self._start)
        try:
            await self._engine.start(inherited)
        except UserError as error:
            self._life.fail(0, str(error))
        else:
            self._watchers.append(asyncio.create_task(self._watch_engine()))
        loading = asyncio.create_task(self._watch_load())
        try:
            await self._life.during(readiness.wait_ready(self._engine.config, api, self.enter, self._listens))
        except UserError as error:
            # The API server often notices a dead engine before its rank has reported it: then that is the reason.
            raise ServiceFailed(await self._life.failure_soon() or self._named(error)) from None
        finally:
            loading.cancel()
        await self._life.during(self._inspect())
        self.watch = Watch(self._engine.config, api, self._life.fail)
        self._watchers.append(asyncio.create_task(self.watch.run()))

    def slowest(self) -> dict[str, float | None]:
        """Return how fast the slowest node has copied the checkpoint, and read the weights, for the rows."""
        read = [one for one in self.load_rates.values() if one]
        both = {"stage_gb_s": min(self.stage_rates.values(), default=None), "load_gb_s": min(read, default=None)}
        return {name: rate and round(rate, 3) for name, rate in both.items()}

    def enter(self, state: str, **details: Any) -> None:
        """Record a phase of the service on every rank."""
        self._engine.note_phase(state, **details)
        telling = asyncio.create_task(self._control.send(messages.Phase(state, details)))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _prepare(self, inherited: Mapping[str, str]) -> None:
        """Bring image and checkpoint to every rank, and compare the checkpoints: all must see the same one."""
        if not staging.wanted(self._engine.config):
            return
        await self._control.send(messages.Prepare(self._start))
        try:
            self._prepared.answer(0, await staging.prepare(self._engine, inherited))
        except UserError as error:
            self._life.fail(0, str(error))
            raise ServiceFailed(await self._life.reason()) from None
        await self._prepared.wait()  # each rank keeps the limit itself; a lost one ends the service
        await self._agree_on_one_image()
        self.stage_rates = staging.rates(self._prepared)
        self.warnings += staging.slow("staging", self.stage_rates)
        self.warnings += staging.unknown_images(self._engine.config, self._prepared)
        if found := staging.difference(self._prepared):
            self._life.fail(*found)
            raise ServiceFailed(await self._life.reason())

    async def _agree_on_one_image(self) -> None:
        """Let each rank whose image is not rank 0's bring that one, where a registry has it by its digest.

        A tag has moved between two pulls, most often: then each node is right, and both together are not.
        """
        first, had = self._prepared[0], dict[int, staging.Parts]()
        wanted = {name: value for name, value in first.items() if name.startswith(image.PART)}
        for rank in sorted(self._prepared):
            if image.of_registry(wanted) and (found := image.difference(wanted, self._prepared[rank])):
                self.warnings.append(f"rank {rank}: {found}; it takes that one, by its digest")
                had[rank] = self._prepared.ask_again(rank)
                await self._control.send(messages.Prepare(self._start, wanted), rank)
        await self._prepared.wait()
        for rank, parts in had.items():
            self._prepared[rank] = staging.with_image(parts, self._prepared[rank])

    def _named(self, error: UserError) -> str:
        """Return an error with the rank that it is about: none is ready, so it is the one that fell silent first."""
        if error.key != "limits.load_s":
            return str(error)
        rank, since = self._silent_longest()
        behind = "It has not read its weights, others have. " if self._weights and rank not in self._weights else ""
        words = f"{error} {behind}Its log has been silent longest: {time.monotonic() - since:.0f} s."
        return str(Failure(time.time(), rank, words))

    def _silent_longest(self) -> tuple[int, float]:
        """Return the rank whose log said something longest ago, and when (monotonic clock).

        Who has read its weights waits for those that have not, and says nothing meanwhile.
        """
        ranks = range(self._engine.place.ranks)  # the others of the allocation have no engine
        behind = [rank for rank in ranks if rank not in self._weights] or ranks
        heard = [(self._heard.get(rank, self._begun), rank) for rank in behind]
        since, rank = min(heard)
        return rank, since

    async def _inspect(self) -> None:
        """Compare the running engine of every rank with what was intended; a difference that matters ends it."""
        # A flooded log, or a container that is slow to answer, takes seconds.
        self._inspected.answer(0, await aside(self._engine.inspect))
        self.load_rates[0] = self._engine.load_gb_s
        await self._control.send(messages.Inspect())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._inspected.wait(), INSPECT_S)
        for rank, found in sorted(self._inspected.items()):
            for one in found:
                if one.error:
                    self._life.fail(rank, f"the running engine differs from its command: {one}")
                self.warnings.append(f"rank {rank}: {one}")
        self.warnings += staging.slow("the load", {rank: one for rank, one in self.load_rates.items() if one})
        unread = sorted(self._ranks - self._inspected.keys())
        self.warnings += [f"rank {rank}: its engine could not be read back" for rank in unread]

    async def _watch_load(self) -> None:
        """Fail the rank whose log says nothing for too long before the service is ready."""
        limit, size = self._engine.config.limits.load_silence_s, -1
        while True:
            if size != (size := self._engine.log_size()):
                self._heard[0] = time.monotonic()
                if self._engine.note_progress():
                    self._weights.add(0)
            rank, since = self._silent_longest()
            if time.monotonic() - since > limit:
                self._life.fail(rank, f"no new line in its log for {limit:g} s (limits.load_silence_s)")
                return
            await asyncio.sleep(PROGRESS_S)

    def _listens(self) -> bool:
        """Return whether every API is there. RunError: somebody else listens in our engine's place."""
        others = self._engine.config.parallel.replicas - 1
        return len(self._listening) == others and self._engine.listens()

    async def stop(self) -> list[str]:
        """End the engine on every rank. Returns what was left behind, by rank; an empty list is clean."""
        for watcher in self._watchers[1:]:
            watcher.cancel()
        hurry = self._life.over
        grace_s = HASTE_S if hurry else self._engine.config.limits.stop_s
        await self._control.send(messages.Stop(grace_s))
        leftovers = [f"rank 0: {item}" for item in await self._engine.stop(grace_s)]
        limit = grace_s + STOP_MARGIN_S
        try:
            await asyncio.wait_for(self._stopped.wait(), limit)
        except TimeoutError:
            missing = self._ranks & self._control.present - self._stopped.keys()
            whose = "" if hurry else " (limits.stop_s)"
            leftovers += [f"rank {rank}: did not stop within {limit:g} s{whose}" for rank in sorted(missing)]
        self._watchers[0].cancel()
        for rank, items in self._stopped.items():
            leftovers += [f"rank {rank}: {item}" for item in items]
        leftovers += [f"rank {rank}: lost, nothing is known" for rank in sorted(self._ranks - self._control.present)]
        return leftovers

    async def _watch_engine(self) -> None:
        reason = await self._engine.ended()
        self._life.fail(0, reason, engine=True)
        self._engine.folder.note("failed", reason=reason)

    async def _watch_inbox(self) -> None:
        while True:
            rank, message = await self._control.inbox.get()
            match message:
                case messages.Ended(reason, when):
                    self._life.fail(rank, reason, when, engine=True)
                case messages.Signalled(reason, when):
                    self._control.leaving.add(rank)
                    self._life.fail(rank, reason, when, signalled=True)
                case messages.Lost(reason):
                    self._life.fail(rank, reason)
                    self._stopped.check()
                case messages.Progress(weights):
                    self._heard[rank] = time.monotonic()
                    if weights:
                        self._weights.add(rank)
                case messages.Listens():
                    self._listening.add(rank)
                case messages.Prepared(parts):
                    self._prepared.answer(rank, parts)
                case messages.Inspected(differences, load_gb_s):
                    self.load_rates[rank] = load_gb_s
                    self._inspected.answer(rank, differences)
                case messages.Stopped(leftovers):
                    self._stopped.answer(rank, leftovers)
