"""Run cases of the fault matrix side by side, each in a job of its own: most of a case is waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from cases import Case, Result, run
from lab import Lab


class Lanes:
    """One lane of cases with the real vLLM, which needs the processor, and one beside it with the rehearsal engine.

    What takes whole nodes away (`Case.alone`) runs when both lanes are empty.
    """

    def __init__(self, lab: Lab, cases: Sequence[Case], folder: Callable[[str], Path]) -> None:
        """Args: the lab, the cases that will be asked for, and what makes the directory of a case."""
        self._lab, self._cases, self._folder = lab, cases, folder
        self._lanes = {real: ThreadPoolExecutor(1) for real in (True, False)}
        self._begun: dict[str, Future[Result]] = {}
        lab.wait_idle(120)
        self._begin(real=False)

    def result(self, case: Case) -> Result:
        """Return what a case came to; raise what it raised."""
        if case.alone:
            wait(self._begun.values())
            return run(case, self._lab, self._folder(case.id))
        if case.id not in self._begun:
            self._begin(real=case.real)
        return self._begun[case.id].result()

    def _begin(self, *, real: bool) -> None:
        for case in self._cases:
            if case.real == real and not case.alone:
                folder = self._folder(case.id)
                self._begun[case.id] = self._lanes[real].submit(run, case, self._lab, folder, shared=True)

    def close(self) -> None:
        """End what has not begun and wait for what has."""
        for lane in self._lanes.values():
            lane.shutdown(cancel_futures=True)
