"""What an allocation runs, one service after the other. A search and a question of A or B choose on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jobs.core.rundir import SweepDir
from jobs.core.tasks import ServiceTask

if TYPE_CHECKING:  # commands tell of a search too, and start without what measures
    from jobs.measure.point import Enough, PointRun


class Agenda:
    """The services as the plan has them, each measured whole.

    Attributes:
        chooses: what comes next depends on the rows so far, so that a service that was left ends it.
        by_turns: points that are measured by turns, whatever they differ in.
    """

    chooses = False
    by_turns: tuple[str, ...] = ()

    def __init__(self, sweep: SweepDir, services: Sequence[ServiceTask], attempt: int) -> None:
        self._sweep, self._todo, self._attempt = sweep, iter(services), attempt

    def next(self) -> ServiceTask | None:
        """Return what to run next; None: nothing is left."""
        return next(self._todo, None)

    def attempt(self, service: str) -> int:
        """Return the number of this try at a service."""
        return self._attempt

    def over(self) -> str | None:
        """Return why no further service needs to be started; None: it does."""
        return None

    def enough(self, point: str) -> Enough:
        """Return what tells whether a point needs no further window."""
        return lambda figures, windows: False

    def round_over(self, runs: Mapping[str, PointRun]) -> bool:
        """Return whether points that are measured by turns need no further round."""
        return False

    def more(self, service: str) -> str | None:
        """Return another point to be measured on a service that is up; None: there is none."""
        return None

    def tell(self) -> None:
        """Write what the rows so far have shown."""

    def left(self, left: Sequence[ServiceTask]) -> Sequence[ServiceTask]:
        """Return what another allocation is to do, of what was not begun here."""
        return left
