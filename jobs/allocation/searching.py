"""A search as rank 0 runs it: which service comes next, when a start has been measured enough, what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jobs.allocation.agenda import Agenda
from jobs.core.errors import RunError
from jobs.core.files import write_json
from jobs.core.log import log
from jobs.core.planfile import read_plan
from jobs.core.rundir import SweepDir
from jobs.core.tasks import ServiceTask
from jobs.forecast.found import found
from jobs.forecast.search import read_search
from jobs.forecast.tuner import Step
from jobs.results.row import is_finished, row_of
from jobs.results.search import answer_of

if TYPE_CHECKING:
    from jobs.measure.point import Enough


class Searching(Agenda):
    """The services of a search, each decided by the rows before it."""

    chooses = True

    def __init__(self, sweep: SweepDir, attempt: int = 1) -> None:
        """Raises RunError where the question of the search cannot be read."""
        super().__init__(sweep, (), attempt)
        self._search = read_search(sweep)
        self._begun: set[tuple[str, ...]] = set()

    def rows(self) -> dict[str, Mapping[str, Any]]:
        """Return the rows that are finished, by point."""
        kept: dict[str, Mapping[str, Any]] = {}
        for point in self._search.points:
            row = row_of(self._sweep, point)
            if row and is_finished(row, retry_failed=False):
                kept[point] = row
        return kept

    def next(self) -> ServiceTask | None:
        """Return what to run next, and put it into the plan; None: the search is over, or cannot go on here."""
        step, task = self._search.next(self.rows())
        if task is None:
            log(f"the search is over: {step.why}")
            return None
        try:
            return self._begin(task, step)
        except RunError as error:  # a full disk: a resume goes on
            log(f"the search cannot go on: {error}")
            return None

    def attempt(self, service: str) -> int:
        """Return the number of this try at a service, which a search may start once more for another load."""
        return max(super().attempt(service), self._sweep.next_attempt([service]))

    def more(self, service: str) -> str | None:
        """Return another point to be measured on a service that is up, and put it into the plan; None: there is none.

        Raises:
            RunError: the plan cannot be written.
        """
        step, task = self._search.next(self.rows(), up=service)
        begun = self._begin(task, step) if task and task.service == service else None
        return begun.points[0] if begun else None

    def _begin(self, task: ServiceTask, step: Step) -> ServiceTask | None:
        if task.points in self._begun:
            log(f"the search ends: point {task.points[0]} came to no row")
            return None
        self._begun.add(task.points)
        log(f"search: {self._search.settings[step.candidate].candidate.name}: {step.why}")
        points = {one.point for one in read_plan(self._sweep).points}
        write_json(self._sweep.plan, self._search.begun({*points, *task.points}))
        return task

    def enough(self, point: str) -> Enough:
        """Return what tells whether a point needs no further window."""
        before = self.rows()
        return lambda figures, windows: self._search.hopeless(before, point, figures, windows)

    def left(self, left: Sequence[ServiceTask]) -> Sequence[ServiceTask]:
        """Return what another allocation may choose from; nothing where the search is over."""
        return self._search.left(self.rows())

    def tell(self) -> None:
        """Write what was found so far, where that can be written."""
        with suppress(RunError):  # told anew by whoever asks
            write_json(self._sweep.answer, found(self._search, self.rows()))


def told(sweep: SweepDir) -> dict[str, Any]:
    """Return what a search has found, by its rows now where this user may write that down."""
    if sweep.writable:
        Searching(sweep).tell()
    if not (found := answer_of(sweep)):
        raise RunError("RUN", sweep.path, "it has found nothing yet", f"Follow it: python -m jobs follow {sweep.path}.")
    return found
