"""Run cases of the fault matrix side by side, each in a job of its own: most of a case is waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from cases import Case, Result, run
from lab import Lab


class Lanes:
    """One lane of cases with the real vLLM, which needs the processor, and one beside it with the rehearsal engine.

    A third one is for what only waits. What takes whole nodes away (`Case.alone`) runs when all lanes are empty.
    """

    def __init__(self, lab: Lab, cases: Sequence[Case], folder: Callable[[str], Path]) -> None:
        """Args: the lab, the cases that will be asked for, and what makes the directory of a case."""
        self._lab, self._cases, self._folder = lab, cases, folder
        self._lanes = {real: ThreadPoolExecutor(1) for real in (True, False)}
        self._waiting = ThreadPoolExecutor(1)
        self._begun: dict[str, Future[Any]] = {}
        lab.wait_idle(120)
        self._begin(real=False)

    def beside(self, name: str, work: Callable[[Lab, Path], Any]) -> None:
        """Begin something that shares the nodes with the cases; `outcome` returns what it came to."""
        self._begun[name] = self._waiting.submit(work, self._lab, self._folder(name))

    def outcome(self, name: str) -> Any:
        """Return what was begun by `beside` came to; raise what it raised."""
        return self._begun[name].result()

    def result(self, case: Case) -> Result:
        """Return what a case came to; raise what it raised."""
        if case.alone:
            wait(self._begun.values())
            return run(case, self._lab, self._folder(case.id))
        if case.id not in self._begun:
            self._begin(real=case.real)
        found: Result = self._begun[case.id].result()
        return found

    def _begin(self, *, real: bool) -> None:
        for case in self._cases:
            if case.real == real and not case.alone:
                folder = self._folder(case.id)
                self._begun[case.id] = self._lanes[real].submit(run, case, self._lab, folder, shared=True)

    def close(self) -> None:
        """End what has not begun and wait for what has."""
        for lane in (*self._lanes.values(), self._waiting):
            lane.shutdown(cancel_futures=True)
