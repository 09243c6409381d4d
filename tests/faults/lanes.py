"""Run cases of the fault matrix side by side, each in a job of its own: most of a case is waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from cases import Case, Result, run
from lab import Lab


class Lanes:
    """Two lanes; cases with the real vLLM, which need the processor, stay in one of them.

    A third one is for what only waits. What takes whole nodes away (`Case.alone`) runs when all lanes are empty.
    """

    def __init__(self, lab: Lab, cases: Sequence[Case], folder: Callable[[str], Path]) -> None:
        """Args: the lab, the cases that will be asked for, and what makes the directory of a case."""
        self._lab, self._folder = lab, folder
        self._lanes, self._waiting = ThreadPoolExecutor(2), ThreadPoolExecutor(1)
        self._shared = [case for case in cases if not case.alone]
        self._begun: dict[str, Future[Any]] = {}
        lab.wait_idle(120)

    def beside(self, name: str, work: Callable[[Lab, Path], Any]) -> None:
        """Begin something that shares the nodes with the cases; `outcome` returns what it came to."""
        self._begun[name] = self._waiting.submit(work, self._lab, self._folder(name))

    def outcome(self, name: str) -> Any:
        """Return what was begun by `beside` came to; raise what it raised."""
        return self._begun[name].result()

    def result(self, case: Case) -> Result:
        """Return what a case came to; raise what it raised.

        All begin when the first is asked for: with the real engine's, one of those; they are not asked for without it.
        """
        if case.alone:
            wait(self._begun.values())
            return run(case, self._lab, self._folder(case.id))
        if case.id not in self._begun:
            self._begin([one for one in self._shared if one.id not in self._begun and (case.real or not one.real)])
        found: Result = self._begun[case.id].result()
        return found

    def _begin(self, cases: Sequence[Case]) -> None:
        self._begun |= {case.id: Future() for case in cases}
        folders = [(case, self._folder(case.id)) for case in cases]
        self._lanes.submit(self._in_turn, [one for one in folders if one[0].real])
        for one in folders:
            if not one[0].real:
                self._lanes.submit(self._in_turn, [one])

    def _in_turn(self, cases: Sequence[tuple[Case, Path]]) -> None:
        for case, folder in cases:
            outcome = self._begun[case.id]
            if outcome.set_running_or_notify_cancel():
                try:
                    outcome.set_result(run(case, self._lab, folder, shared=True))
                except BaseException as error:  # it is raised where the case is asked for
                    outcome.set_exception(error)

    def close(self) -> None:
        """End what has not begun and wait for what has."""
        for outcome in self._begun.values():
            outcome.cancel()
        for lane in (self._lanes, self._waiting):
            lane.shutdown(cancel_futures=True)
