"""Life and death of one service, as rank 0 conducts it: start everywhere, ready, use, stop everywhere.

Any exit of an engine on any rank, code 0 included, and any lost rank ends the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jobs.allocation import readiness
from jobs.allocation.control import ControlServer, Message
from jobs.allocation.headless import HASTE_S, PROGRESS_S
from jobs.allocation.node import staging
from jobs.allocation.node.engine import Engine
from jobs.allocation.watch import Watch
from jobs.core.errors import UserError
from jobs.measure.records import Target

T = TypeVar("T")

INSPECT_S = 15.0
"""A rank reads its engine's /proc and log and answers within this time."""

SETTLE_S = 1.5
"""A failure on one rank soon ends the others: wait this long, then name the one that was first."""

STOP_MARGIN_S = 15.0
"""A rank may take its time for the stop, SIGKILL and a message; after that it counts as lost.

With HASTE_S it is less than KillWait, Slurm's 30 s between SIGTERM and SIGKILL: rank 0 still has its rows to end.
"""


class ServiceFailed(Exception):
    """The service ended before its work was done. `reason` is the first failing rank's own words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, order=True)
class _Failure:
    time: float
    rank: int
    reason: str
    engine: bool = field(default=False, compare=False)
    """Whether it is the end of an engine process."""
    signalled: bool = field(default=False, compare=False)
    """Whether this rank's task was told to end, as ours may have been too."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({'head' if self.rank == 0 else 'headless'}): {self.reason}"


class Supervisor:
    """One service on all its ranks."""

    def __init__(self, engine: Engine, control: ControlServer, start: Message, stopping: asyncio.Future[str]) -> None:
        """Args: this rank's engine, the hub, the "start" message for the others, and a future that ends us."""
        self._engine, self._control, self._message, self._stopping = engine, control, start, stopping
        self._failures: list[_Failure] = []
        self._told = 0.0
        stopping.add_done_callback(self._note_stopping)
        self._failed = asyncio.Event()
        self._stopped: dict[int, list[str]] = {}
        self._all_stopped = asyncio.Event()
        self._ranks = control.present
        self._watchers: list[asyncio.Task[None]] = []
        self._telling: set[asyncio.Task[None]] = set()
        self._heard: dict[int, float] = {}
        self._begun = time.monotonic()
        self._inspected: dict[int, list[Message]] = {}
        self._all_inspected = asyncio.Event()
        self._prepared: dict[int, staging.Parts] = {}
        self._all_prepared = asyncio.Event()
        self.prepared_s = 0.0
        """Seconds that bringing the image, and staging and checking the checkpoint, took."""
        self.warnings: list[str] = []
        self.from_outside = False
        """Whether the service was ended from outside: that says nothing about the service."""
        self.watch: Watch | None = None

    async def start(self, inherited: Mapping[str, str], api: Target) -> None:
        """Start the engine on every rank and wait until the service is ready.

        Raises:
            ServiceFailed: a rank failed or a limit was exceeded first.
        """
        self._watchers.append(asyncio.create_task(self._watch_inbox()))
        await self.during(self._prepare(inherited))
        self.prepared_s = time.monotonic() - self._begun
        self._begun = time.monotonic()
        await self._control.send(self._message)
        try:
            await self._engine.start(inherited)
        except UserError as error:
            self._fail(0, str(error), time.time())
        else:
            self._watchers.append(asyncio.create_task(self._watch_engine()))
        loading = asyncio.create_task(self._watch_load())
        try:
            await self.during(readiness.wait_ready(self._engine.config, api, self.enter))
        except UserError as error:
            # The API server often notices a dead engine before its rank has reported it: then that is the reason.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._failed.wait(), SETTLE_S)
            raise ServiceFailed(await self.failure() or self._named(error)) from None
        finally:
            loading.cancel()
        await self.during(self._inspect())
        self.watch = Watch(self._engine.config, api, lambda rank, reason: self._fail(rank, reason, time.time()))
        self._watchers.append(asyncio.create_task(self.watch.run()))

    def enter(self, state: str, **details: Any) -> None:
        """Record a phase of the service on every rank."""
        self._engine.note_phase(state, **details)
        telling = asyncio.create_task(self._control.send({"type": "phase", "state": state, **details}))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _prepare(self, inherited: Mapping[str, str]) -> None:
        """Bring image and checkpoint to every rank, and compare the checkpoints: all must see the same one."""
        if not staging.wanted(self._engine.config):
            return
        await self._control.send(self._message | {"type": "prepare"})
        try:
            self._prepared[0] = await staging.prepare(self._engine, inherited)
        except UserError as error:
            self._fail(0, str(error), time.time())
            raise ServiceFailed(await self._reason()) from None
        self._check_all_prepared()
        await self._all_prepared.wait()  # each rank keeps the limit itself; a lost one ends the service
        if found := staging.difference(self._prepared):
            self._fail(*found, time.time())
            raise ServiceFailed(await self._reason())

    def _check_all_prepared(self) -> None:
        if set(range(self._engine.place.ranks)) <= self._prepared.keys():
            self._all_prepared.set()

    def _named(self, error: UserError) -> str:
        """Return an error with the rank that it is about: none is ready, so it is the one that fell silent first."""
        if error.key != "limits.load_s":
            return str(error)
        rank, since = self._silent_longest()
        words = f"{error} Its log has been silent longest: {time.monotonic() - since:.0f} s."
        return str(_Failure(time.time(), rank, words))

    def _silent_longest(self) -> tuple[int, float]:
        """Return the rank whose log said something longest ago, and when (monotonic clock)."""
        # The others of the allocation have no engine.
        heard = [(self._heard.get(rank, self._begun), rank) for rank in range(self._engine.place.ranks)]
        since, rank = min(heard)
        return rank, since

    async def _inspect(self) -> None:
        """Compare the running engine of every rank with what was intended; a difference that matters ends it."""
        # Beside the heartbeats: a flooded log, or a container that is slow to answer, takes seconds.
        mine = await asyncio.to_thread(self._engine.inspect)
        own = [{"text": str(one), "error": one.error} for one in mine]
        self._inspected = {0: own}
        await self._control.send({"type": "inspect"})
        self._check_all_inspected()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_inspected.wait(), INSPECT_S)
        for rank, found in sorted(self._inspected.items()):
            for one in found:
                if one["error"]:
                    self._fail(rank, f"the running engine differs from its command: {one['text']}", time.time())
                self.warnings.append(f"rank {rank}: {one['text']}")
        self.warnings += [
            f"rank {rank}: its engine could not be read back" for rank in sorted(self._ranks - self._inspected.keys())
        ]

    async def _watch_load(self) -> None:
        """Fail the rank whose log says nothing for too long before the service is ready."""
        limit, size = self._engine.config.limits.load_silence_s, -1
        while True:
            if size != (size := self._engine.log_size()):
                self._heard[0] = time.monotonic() - self._engine.log_age()
                self._engine.note_progress()
            rank, since = self._silent_longest()
            if time.monotonic() - since > limit:
                self._fail(rank, f"no new line in its log for {limit:g} s (limits.load_silence_s)", time.time())
                return
            await asyncio.sleep(PROGRESS_S)

    async def during(self, work: Awaitable[T], cancel: Callable[[], None] | None = None) -> T:
        """Do some work while the service lives.

        Args:
            work: what is done.
            cancel: called once when the service fails, to let the work end itself and keep what it has;
                without it the work is cancelled.

        Raises:
            ServiceFailed: the service failed first. Where `cancel` is given, the work's result is returned
                all the same and the failure is raised by the next call.
        """
        if self._failed.is_set() or self._stopping.done():
            if asyncio.iscoroutine(work):
                work.close()
            raise ServiceFailed(await self._reason())
        task = asyncio.ensure_future(work)
        failed = asyncio.create_task(self._failed.wait())
        await asyncio.wait({task, failed, self._stopping}, return_when=asyncio.FIRST_COMPLETED)
        failed.cancel()
        if task.done():
            return task.result()
        if cancel:
            cancel()
            return await task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise ServiceFailed(await self._reason())

    async def failure(self) -> str | None:
        """Return why the service failed, or None while it has not."""
        return await self._reason() if self._failed.is_set() or self._stopping.done() else None

    async def failure_soon(self) -> str | None:
        """Return why the service failed, giving it a moment: a client notices a death before its rank reports it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._failed.wait(), SETTLE_S)
        return await self.failure()

    async def stop(self) -> list[str]:
        """End the engine on every rank. Returns what was left behind, by rank; an empty list is clean."""
        for watcher in self._watchers[1:]:
            watcher.cancel()
        hurry = self._failed.is_set() or self._stopping.done()
        grace_s = HASTE_S if hurry else self._engine.config.limits.stop_s
        await self._control.send({"type": "stop", "grace_s": grace_s})
        leftovers = [f"rank 0: {item}" for item in await self._engine.stop(grace_s)]
        limit = grace_s + STOP_MARGIN_S
        try:
            self._check_all_stopped()
            await asyncio.wait_for(self._all_stopped.wait(), limit)
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
        self._fail(0, reason, time.time(), engine=True)
        self._engine.folder.note("failed", reason=reason)

    async def _watch_inbox(self) -> None:
        while True:
            rank, message = await self._control.inbox.get()
            match message["type"]:
                case "ended":
                    self._fail(rank, str(message["reason"]), float(message["time"]), engine=True)
                case "signalled":
                    self._control.leaving.add(rank)
                    self._fail(rank, str(message["reason"]), float(message["time"]), signalled=True)
                case "lost":
                    self._fail(rank, str(message["reason"]), time.time())
                    self._check_all_stopped()
                case "progress":
                    self._heard[rank] = time.monotonic() - float(message["age"])
                case "prepared":
                    self._prepared[rank] = dict(message["parts"])
                    self._check_all_prepared()
                case "inspected":
                    self._inspected[rank] = list(message["differences"])
                    self._check_all_inspected()
                case "stopped":
                    self._stopped[rank] = list(message["leftovers"])
                    self._check_all_stopped()

    def _fail(self, rank: int, reason: str, when: float, *, engine: bool = False, signalled: bool = False) -> None:
        self._failures.append(_Failure(when, rank, reason, engine, signalled))
        self._failed.set()

    def _check_all_stopped(self) -> None:
        if not (self._ranks & self._control.present) - self._stopped.keys():
            self._all_stopped.set()

    def _check_all_inspected(self) -> None:
        if not (self._ranks & self._control.present) - self._inspected.keys():
            self._all_inspected.set()

    async def _reason(self) -> str:
        if self._failures:
            await asyncio.sleep(SETTLE_S)
        told = self._stopping.done()
        # A signal to all ranks of the job is our own reason, whoever heard it first.
        failures = [one for one in self._failures if not (told and one.signalled)]
        first = min(failures, default=None)
        # Slurm signals the engines as well: what ended together with our own signal did not fail by itself.
        if first is None or (told and first.engine and first.time > self._told - SETTLE_S):
            self.from_outside = True
            return self._stopping.result()
        self.from_outside = first.signalled
        return str(first)

    def _note_stopping(self, _: asyncio.Future[str]) -> None:
        self._told = time.time()
