"""The signals that end a rank: what each means, and that none of them is lost, or kills, before the rank has ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from types import FrameType

from jobs.allocation.walltime import TIME_IS_UP, Walltime

SIGNALS = {
    signal.SIGTERM: "cancelled or preempted (SIGTERM)",
    signal.SIGUSR2: TIME_IS_UP,
    signal.SIGINT: "interrupted (SIGINT)",
}
"""Signals that end our work in good order; submitit's own handlers would swallow the first two."""


class Signals:
    """Listens to the signals, from now to the end of the process.

    Not by `loop.add_signal_handler`: when its loop is closed, asyncio first closes the pipe that signals are written
    to and then gives each signal its default back. One that comes in between is a complaint on standard error, a later
    one kills, while the rest of the allocation is being submitted.

    Attributes:
        stopping: the reason for which this rank is to end, once there is one.
        walltime: of the allocation, once it is known: a SIGTERM at its end is the time limit.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listen; to be called in the main thread."""
        self._loop = loop
        self.stopping: asyncio.Future[str] = loop.create_future()
        self.walltime = Walltime(None)
        for number in SIGNALS:
            signal.signal(number, self._came)

    def reason(self, number: int) -> str:
        """Return what a signal means at this moment.

        Slurm may end a job at its limit without the early SIGUSR2: the limit was shortened by the site, or a batch
        script of the user's own does not ask for it.
        """
        if number == signal.SIGTERM and self.walltime.is_over:
            return TIME_IS_UP
        return SIGNALS[signal.Signals(number)]

    def _came(self, number: int, _: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the work is done, and its end is under way
            self._loop.call_soon_threadsafe(self._end, self.reason(number))

    def _end(self, reason: str) -> None:
        if not self.stopping.done():
            self.stopping.set_result(reason)
