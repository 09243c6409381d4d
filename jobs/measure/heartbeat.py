"""Whether the client itself kept time: a beat in its event loop, and how late each one was.

All stamps of the load are taken in this loop. Where it stands still (a stopped process, a virtual machine that is
moved, a processor that others hold), answers that came in time are stamped late and requests are sent late; the share
of the processor that the client used cannot show that.
"""

from __future__ import annotations

import asyncio
from array import array

import numpy as np

from jobs.measure.records import Times
from jobs.measure.wire import clock

PERIOD_S = 0.05


class Heartbeat:
    """Beats in the loop that runs it.

    Each beat is due at a moment fixed beforehand; where the loop stood still all that were due meanwhile count, so that
    the latenesses are those of moments spread evenly over the time.
    """

    def __init__(self) -> None:
        self._due, self._late = array("d"), array("d")

    async def run(self) -> None:
        """Beat for ever."""
        due = clock() + PERIOD_S
        while True:
            await asyncio.sleep(max(0.0, due - clock()))
            now = clock()
            while due <= now:
                self._due.append(due)
                self._late.append(now - due)
                due += PERIOD_S

    def lags(self, since_s: float, until_s: float) -> Times:
        """Return how late the beats were that were due in [since, until), s, shape (beats,)."""
        due, late = np.array(self._due), np.array(self._late)
        return late[(due >= since_s) & (due < until_s)]
