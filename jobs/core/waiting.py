"""Waiting: for the first of two things, for all of several ranks, and for blocking work beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar, cast

T = TypeVar("T")
P = ParamSpec("P")


async def first_of(
    work: Awaitable[T], *ends: asyncio.Future[Any] | asyncio.Event, cancel: bool = True
) -> asyncio.Future[T] | None:
    """Wait until some work is done or one of `ends` has come.

    Returns:
        The work, done: ask for its `result()`. None: an end came first, and the work is cancelled; with `cancel=False`
        it goes on, so it has to be a task of the caller's.
    """
    task = asyncio.ensure_future(work)
    own = [asyncio.ensure_future(end.wait()) for end in ends if isinstance(end, asyncio.Event)]
    try:
        others = [end for end in ends if not isinstance(end, asyncio.Event)]
        await asyncio.wait({task, *own, *others}, return_when=asyncio.FIRST_COMPLETED)
        return task if task.done() else None
    finally:
        over = [*own, *([task] if cancel and not task.done() else [])]
        for one in over:
            one.cancel()
        await asyncio.gather(*over, return_exceptions=True)


async def aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do blocking work beside the event loop: a rank whose heartbeats stop counts as lost.

    In a daemon thread, unlike asyncio.to_thread: a tool that hangs in its driver cannot be killed, and must not keep
    this rank, and with it the nodes, from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(cast(T, result))

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work(*args, **kwargs)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended before the work did
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await done


class Barrier(dict[int, T]):
    """What each of some ranks answered, and the wait for all of them."""

    def __init__(self, expected: Callable[[], set[int]]) -> None:
        """Args: tells which ranks must answer, again at every change: a lost rank answers no more."""
        super().__init__()
        self._expected, self._complete = expected, asyncio.Event()

    def answer(self, rank: int, value: T) -> None:
        """Take the answer of one rank."""
        self[rank] = value
        self.check()

    def ask_again(self, rank: int) -> T:
        """Wait for another answer of one rank. Returns the one that it gave."""
        self._complete.clear()
        return self.pop(rank)

    def check(self) -> None:
        """Look again whether all have answered."""
        if self._expected() <= self.keys():
            self._complete.set()

    async def wait(self) -> None:
        """Wait until every rank that is expected has answered."""
        self.check()
        await self._complete.wait()
