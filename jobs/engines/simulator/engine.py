"""One data-parallel rank: runs its scheduler step by step on the roofline's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from jobs.engines.simulator.roofline import Clock
from jobs.engines.simulator.scheduler import Request, Scheduler

LATE_S = 0.1
"""A step that ends later than this after its time (a stopped or starved process) does not make the next ones short."""


@dataclass
class Pace:
    """How faults change an engine.

    Attributes:
        factor: how many times as long everything takes.
        moving: unset while the engine hangs.
        failing: words with which every request fails; None: they do not.
        longest: tokens after which a request ends, whatever it asked for; None: what it asked for.
    """

    factor: float = 1.0
    moving: asyncio.Event = field(default_factory=asyncio.Event)
    failing: str | None = None
    longest: int | None = None

    def __post_init__(self) -> None:
        self.moving.set()


@dataclass(frozen=True)
class Output:
    """What one step gave, as it goes to the front end.

    Attributes:
        rank: data-parallel rank.
        tokens: keys of the requests that got one token.
        finished: key and finish reason of those that are complete.
        failed: keys of those that failed, and why.
        running, waiting: requests after the step.
        usage: share of the KV cache held, 0 to 1.
        preemptions, prefix_queries, prefix_hits: counted since the engine's start.
    """

    rank: int
    tokens: tuple[int, ...] = ()
    finished: tuple[tuple[int, str], ...] = ()
    failed: tuple[int, ...] = ()
    error: str = ""
    running: int = 0
    waiting: int = 0
    usage: float = 0.0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class Engine:
    """Takes requests, emits one `Output` a step.

    Args:
        rank: data-parallel rank.
        emit: gets each output; called in the event loop.
    """

    def __init__(
        self, rank: int, scheduler: Scheduler, clock: Clock, pace: Pace, emit: Callable[[Output], None]
    ) -> None:
        self.rank = rank
        self._scheduler, self._clock, self._pace, self._emit = scheduler, clock, pace, emit
        self._work = asyncio.Event()

    def add(self, request: Request) -> None:
        """Queue a request."""
        if self._pace.longest is not None and request.limit > self._pace.longest:
            request = replace(request, limit=self._pace.longest, reason="stop")
        self._scheduler.add(request)
        self._work.set()

    def abort(self, keys: Iterable[int]) -> None:
        """Forget requests."""
        self._scheduler.abort(keys)

    async def run(self) -> None:
        """Step for ever. Times do not add up: each step begins when the one before was due."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if not self._scheduler.busy:
                self._work.clear()
                await self._work.wait()
                due = loop.time()
            await self._pace.moving.wait()
            if self._pace.failing is not None:
                self._fail_all(self._pace.failing)
                continue
            if loop.time() - due > LATE_S:
                due = loop.time()
            batch = self._scheduler.plan()
            due += self._clock.seconds(batch.work) * self._pace.factor
            await asyncio.sleep(due - loop.time())
            await self._pace.moving.wait()
            got, done = self._scheduler.commit(batch)
            self._emit(self._output(tuple(got), tuple((r.key, r.reason) for r in done)))

    def _fail_all(self, words: str) -> None:
        keys = tuple(r.key for r in (*self._scheduler.running, *self._scheduler.waiting))
        self._scheduler.abort(keys)
        self._emit(Output(self.rank, failed=keys, error=words))

    def _output(self, tokens: tuple[int, ...], finished: tuple[tuple[int, str], ...]) -> Output:
        scheduler = self._scheduler
        counted = scheduler.counters
        return Output(
            self.rank,
            tokens,
            finished,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            usage=scheduler.usage,
            preemptions=counted.preemptions,
            prefix_queries=counted.prefix_queries,
            prefix_hits=counted.prefix_hits,
        )
