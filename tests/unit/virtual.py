"""Virtual time: an event loop that drains its sockets first and only then moves the clock to the next timer."""

from __future__ import annotations

import asyncio
import selectors
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

TICK_S = 1e-7
"""Each look at the clock moves it so far: no two moments are equal."""

STARVED = 200
"""Looks of 20 ms without a timer, a socket or a thread's news, after which the loop waits for nothing at all."""


class _Selector(selectors.DefaultSelector):
    """Drains the sockets; where nothing is left to read, the clock jumps by the time that it was asked to wait."""

    loop: VirtualLoop
    idle = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if found or (timeout is not None and timeout <= 0):
            self.idle = 0
            return found
        if timeout is None:  # a thread may still have news
            self.idle += 1
            assert self.idle < STARVED, "the loop waits for what never comes"
            return super().select(0.02)
        self.loop.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time. Its connections are pairs of sockets, which deliver in the same moment.

    Attributes:
        now: the virtual time, s; it may be moved.
        accept: makes the protocol of a connection's other end, by the port that is asked for.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.accept: Callable[[int], asyncio.Protocol] | None = None
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def clock(self) -> float:
        self.now += TICK_S
        return self.now

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        assert self.accept is not None and options.get("sock") is None
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        await self.connect_accepted_socket(partial(self.accept, port), theirs)
        return await super().create_connection(factory, sock=ours)


def in_virtual_time(loop: VirtualLoop) -> ExitStack:
    """Let all that measures look at the loop's clock, and find that it took no processor time."""
    stack = ExitStack()
    stack.enter_context(mock.patch.object(time, "process_time", lambda: 0.0))
    for name, module in list(sys.modules.items()):
        if name.startswith("jobs.measure.") and getattr(module, "clock", None) is time.perf_counter:
            stack.enter_context(mock.patch.object(module, "clock", loop.clock))
    return stack
