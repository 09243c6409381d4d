"""The life of one service: work is done while it lasts, and what ended it is named.

Any exit of an engine on any rank, code 0 included, and any lost rank ends the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from jobs.core.waiting import first_of

PROGRESS_S = 2.0
"""How often a rank says that its engine's log has grown."""

HASTE_S = 3.0
"""SIGTERM until SIGKILL when the service has failed: most healthy ones need less than 2 s, a hung one never answers."""

T = TypeVar("T")

SETTLE_S = 1.5
"""A failure on one rank soon ends the others: wait this long, then name the one that was first."""


class ServiceFailed(Exception):
    """The service ended before its work was done. `reason` is the first failing rank's own words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, order=True)
class Failure:
    """What ended the service on one rank; `time` in Unix seconds on that rank's clock."""

    time: float
    rank: int
    reason: str
    engine: bool = field(default=False, compare=False)
    """Whether it is the end of an engine process."""
    signalled: bool = field(default=False, compare=False)
    """Whether this rank's task was told to end, as ours may have been too."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({'head' if self.rank == 0 else 'headless'}): {self.reason}"


class Life:
    """Whether a service lives, and what ended it."""

    def __init__(self, stopping: asyncio.Future[str]) -> None:
        """Args: a future that ends us."""
        self._stopping = stopping
        self._failures: list[Failure] = []
        self._failed = asyncio.Event()
        self._told = 0.0
        self.from_outside = False
        """Whether the service was ended from outside: that says nothing about the service."""
        stopping.add_done_callback(self._note_stopping)

    @property
    def told(self) -> bool:
        """Whether we are told to end."""
        return self._stopping.done()

    @property
    def over(self) -> bool:
        """Whether the service has failed or we are told to end."""
        return self._failed.is_set() or self.told

    def fail(
        self, rank: int, reason: str, when: float | None = None, *, engine: bool = False, signalled: bool = False
    ) -> None:
        """End the service: a rank has failed (`when`: Unix seconds; None: now)."""
        self._failures.append(Failure(time.time() if when is None else when, rank, reason, engine, signalled))
        self._failed.set()

    async def during(self, work: Awaitable[T], cancel: Callable[[], None] | None = None) -> T:
        """Do some work while the service lives. ServiceFailed: it failed first.

        `cancel` is called once then, to let the work end itself and keep what it has: its result is returned all the
        same, and the failure is raised by the next call. Without it the work is cancelled.
        """
        if self.over:
            if asyncio.iscoroutine(work):
                work.close()
            raise ServiceFailed(await self.reason())
        task = asyncio.ensure_future(work)
        if await first_of(task, self._failed, self._stopping, cancel=cancel is None):
            return task.result()
        if cancel:
            cancel()
            return await task
        raise ServiceFailed(await self.reason())

    async def failure(self) -> str | None:
        """Return why the service failed, or None while it has not."""
        return await self.reason() if self.over else None

    async def failure_soon(self) -> str | None:
        """Return why the service failed, giving it a moment: a client notices a death before its rank reports it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._failed.wait(), SETTLE_S)
        return await self.failure()

    async def reason(self) -> str:
        """Return what ended the service: the failure that was first, or what told us to end."""
        if self._failures:
            await asyncio.sleep(SETTLE_S)
        # A signal to all ranks of the job is our own reason, whoever heard it first.
        first = min((one for one in self._failures if not (self.told and one.signalled)), default=None)
        # Slurm signals the engines as well: what ended together with our own signal did not fail by itself.
        if first is None or (self.told and first.engine and first.time > self._told - SETTLE_S):
            self.from_outside = True
            return self._stopping.result()
        self.from_outside = first.signalled
        return str(first)

    def _note_stopping(self, _: asyncio.Future[str]) -> None:
        self._told = time.time()
