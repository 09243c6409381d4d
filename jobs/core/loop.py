"""An event loop that knows when it last heard from its sockets."""

from __future__ import annotations

import asyncio
import selectors
import time

STOOD_S = 0.005
"""Between two sockets of one poll, s: beyond it the process was kept from its processor, or had other work, and what it
reads then has come meanwhile too. Reading a socket takes tens of microseconds, a slice of the scheduler 3 ms."""


class _Polls(selectors.DefaultSelector):
    """Notes when it last found sockets that can be read."""

    _found_s = _seen_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(timeout)
        self._found_s = self._seen_s = time.perf_counter()
        return found

    def stamp(self) -> float:
        """Return when what is read now had come: at the last poll, or after it where the process stood still since.

        Never early: an answer that came whole while the process stood still would seem to have taken no time.
        """
        now = time.perf_counter()
        if now - self._seen_s > STOOD_S:
            self._found_s = now
        self._seen_s = now
        return self._found_s


class Loop(asyncio.SelectorEventLoop):
    """An event loop in which all answers that had come in one moment have one stamp: that of the poll that found them.

    A batching engine writes to all streams in one step. Stamped as they are read, one after the other, the last of 256
    would seem to have come milliseconds later than the first, and another one would be the last in the next step.
    """

    def __init__(self) -> None:
        self.polls = _Polls()
        super().__init__(self.polls)
