"""Run cases of the fault matrix side by side, each in a job of its own: most of a case is waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

from cases import Case, Result, run
from lab import Lab


class Lanes:
    """Three lanes, in which one case at a time has the real vLLM, which needs the processor; a fourth is for the rest.

    What takes whole nodes away (`Case.alone`) runs when all lanes are empty.
    """

    def __init__(self, lab: Lab, cases: Sequence[Case], folder: Callable[[str], Path]) -> None:
        """Args: the lab, the cases that will be asked for, and what makes the directory of a case."""
        self._lab, self._folder = lab, folder
        self._lanes, self._waiting = ThreadPoolExecutor(3), ThreadPoolExecutor(1)
        self._processor = Lock()
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
            left = [one for one in self._shared if one.id not in self._begun and (case.real or not one.real)]
            for one in apart(left):
                self._begun[one.id] = self._lanes.submit(self._run, one, self._folder(one.id))
        found: Result = self._begun[case.id].result()
        return found

    def _run(self, case: Case, folder: Path) -> Result:
        with self._processor if case.real else nullcontext():
            return run(case, self._lab, folder, shared=True)

    def close(self) -> None:
        """End what has not begun and wait for what has."""
        for lane in (self._lanes, self._waiting):
            lane.shutdown(cancel_futures=True)


def apart(cases: Sequence[Case]) -> list[Case]:
    """Return cases so that those with the real engine, which take longest, begin at once and as far apart as may be."""
    real, found = [case for case in cases if case.real], [case for case in cases if not case.real]
    share = -(-len(found) // max(1, len(real)))
    for turn, case in enumerate(real):
        found.insert(turn * (share + 1), case)
    return found
