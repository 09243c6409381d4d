"""Acts out the faults of one rank (faults.py says what they are)."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable

from jobs.engines.simulator.engine import Pace
from jobs.engines.simulator.faults import Fault
from jobs.engines.simulator.log import Log

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
"""vllm/v1/engine/exceptions.py, 0.9.1."""

_FLOOD_TICK_S = 0.05


class Player:
    """Waits for the moments of a rank's life and does what its faults say.

    Args:
        faults: of the whole rehearsal; those of other ranks are passed over.
        rank: of this process.

    Attributes:
        pace: of this process's engines.
        loads: unset once loading must never end.
        on_dead: called when the engines die and say so.
    """

    def __init__(self, faults: Iterable[Fault], rank: int, log: Log) -> None:
        self.pace = Pace()
        self.loads = asyncio.Event()
        self.loads.set()
        self.on_dead: Callable[[], None] = lambda: None
        self._faults = [fault for fault in faults if fault.rank == rank]
        self._log = log
        self._requests = 0
        self._reached: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def reach(self, moment: str) -> None:
        """Say that a moment has come: start, load, ready or window. Only the first time counts."""
        if moment not in self._reached:
            self._reached.add(moment)
            self._schedule(fault for fault in self._faults if fault.when == moment)

    def request(self, tokens: int) -> None:
        """Say that a request for `tokens` tokens has reached an engine of this rank."""
        self._requests += 1
        self._schedule(
            fault for fault in self._faults if fault.when == "request" and (fault.after_requests or 1) == self._requests
        )
        if tokens > 1:
            self.reach("window")

    def _schedule(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            if fault.after_s:
                asyncio.get_running_loop().call_later(fault.after_s, self._act, fault)
            else:
                self._act(fault)

    def _act(self, fault: Fault) -> None:
        if fault.kind == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "exit":
            leave(fault.code or 0)
        elif fault.kind == "hang":
            self.pace.moving.clear()
            self.loads.clear()
        elif fault.kind == "never_ready":
            self.loads.clear()
        elif fault.kind == "slow":
            self.pace.factor = fault.factor or 1.0
        elif fault.kind == "error_text":
            self._log.error("core.py:497", fault.text or "")
            if fault.code is not None:
                leave(fault.code)
        elif fault.kind == "log_flood":
            task = asyncio.get_running_loop().create_task(self._flood(fault.mb_s or 1.0))
            self._tasks.add(task)
        elif fault.kind == "stream_error":
            self.pace.failing = ENGINE_DEAD
        elif fault.kind == "short_output":
            self.pace.longest = fault.tokens
        elif fault.kind == "engine_dead":
            self._log.error("core.py:499", "EngineCore encountered a fatal error.")
            self.pace.moving.clear()
            self.on_dead()

    async def _flood(self, mb_s: float) -> None:
        line = "x" * 1000
        loop = asyncio.get_running_loop()
        begin, written = loop.time(), 0
        while True:
            due = int((loop.time() - begin) * mb_s * 1000)
            for _ in range(written, due):
                self._log.error("flood.py:1", line)
            written = due
            await asyncio.sleep(_FLOOD_TICK_S)


def leave(code: int) -> None:
    """End this process at once with an exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
