"""An event loop that knows when it last heard from its sockets."""

from __future__ import annotations

import asyncio
import selectors
import time


class _Polls(selectors.DefaultSelector):
    """Notes when it last found sockets that can be read."""

    found_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(timeout)
        self.found_s = time.perf_counter()
        return found


class Loop(asyncio.SelectorEventLoop):
    """An event loop in which all answers that had come in one moment have one stamp: that of the poll that found them.

    A batching engine writes to all streams in one step. Stamped as they are read, one after the other, the last of 256
    would seem to have come milliseconds later than the first, and another one would be the last in the next step.
    """

    def __init__(self) -> None:
        self.polls = _Polls()
        super().__init__(self.polls)
