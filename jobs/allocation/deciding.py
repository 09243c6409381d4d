"""A sweep that asks for A or B (jobs/results/pairs.py) ends with the answer: what its head asks on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.allocation.agenda import Agenda
from jobs.core.log import log
from jobs.core.rundir import SweepDir
from jobs.core.tasks import ServiceTask
from jobs.measure.point import PointRun
from jobs.results.pairs import Question, of_sweep, of_windows, standing


class Deciding(Agenda):
    """The services of a question, until their pairs have decided it. Pairs are starts, or windows of one service."""

    def __init__(self, sweep: SweepDir, services: Sequence[ServiceTask], attempt: int, question: Question) -> None:
        super().__init__(sweep, services, attempt)
        self._question = question
        self.by_turns = question.pairs[0] if question.windows else ()

    def over(self) -> str | None:
        """Return what the starts so far have decided."""
        if self._question.windows:
            return None
        return standing(self._question, of_sweep(self._sweep, self._question)).over or None

    def round_over(self, runs: Mapping[str, PointRun]) -> bool:
        """Return whether the windows so far have decided."""
        if not self.by_turns:
            return False
        one, two = self.by_turns
        now = standing(self._question, of_windows(self._question.goal, runs[one].lines, runs[two].lines))
        if (said := now.decision).pairs > 1:
            log(f"{said.pairs} pairs: B is better by {said.ratio:.1%} ({said.low:.1%} to {said.high:.1%})")
        return bool(now.over)
