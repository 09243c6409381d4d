"""Run cases of the fault matrix side by side, each in a job of its own: most of a case is waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from cases import Case, Result, run
from lab import Lab


class Lanes:
    """Two lanes. The first has the cases with the real vLLM, one at a time: they need the processor.

    The second has the others, two at a time. A third one is for what only waits. What takes whole nodes away
    (`Case.alone`) runs when all lanes are empty.
    """

    def __init__(self, lab: Lab, cases: Sequence[Case], folder: Callable[[str], Path]) -> None:
        """Args: the lab, the cases that will be asked for, and what makes the directory of a case."""
        self._lab, self._folder = lab, folder
        self._lanes = [ThreadPoolExecutor(1), ThreadPoolExecutor(2)]
        self._waiting = ThreadPoolExecutor(1)
        self._begun: dict[str, Future[Any]] = {}
        shared = [case for case in cases if not case.alone]
        others = [case for case in shared if not case.real]
        # Behind the real engine's, so that three run at a time to the end.
        behind = others[::4]
        self._first = [*(case for case in shared if case.real), *behind]
        lab.wait_idle(120)
        self._begin(1, [case for case in others if case not in behind])

    def beside(self, name: str, work: Callable[[Lab, Path], Any]) -> None:
        """Begin something that shares the nodes with the cases; `outcome` returns what it came to."""
        self._begun[name] = self._waiting.submit(work, self._lab, self._folder(name))

    def outcome(self, name: str) -> Any:
        """Return what was begun by `beside` came to; raise what it raised."""
        return self._begun[name].result()

    def result(self, case: Case) -> Result:
        """Return what a case came to; raise what it raised.

        The first lane begins when a case of it is asked for: of the real engine, where that is here, or else another.
        """
        if case.alone:
            wait(self._begun.values())
            return run(case, self._lab, self._folder(case.id))
        if case.id not in self._begun:
            self._begin(0, [one for one in self._first if case.real or not one.real])
        found: Result = self._begun[case.id].result()
        return found

    def _begin(self, lane: int, cases: Sequence[Case]) -> None:
        for case in cases:
            folder = self._folder(case.id)
            self._begun[case.id] = self._lanes[lane].submit(run, case, self._lab, folder, shared=True)

    def close(self) -> None:
        """End what has not begun and wait for what has."""
        for lane in (*self._lanes, self._waiting):
            lane.shutdown(cancel_futures=True)
