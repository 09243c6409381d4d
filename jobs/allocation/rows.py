"""Which row each point of a service gets: a ledger of decisions that touches no file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.allocation.walltime import TIME_IS_UP
from jobs.core.config import Config
from jobs.results.row import NOT_RUN, make_row, tokens_text

if TYPE_CHECKING:
    from jobs.measure.point import Measured

Row = dict[str, Any]


@dataclass(frozen=True)
class End:
    """How a service ended.

    Attributes:
        failure: why it failed, in one line for its rows; None: it did not fail.
        cause: the same before the logs of all ranks were read; a row that holds it gets `failure` instead. Empty: they
            were not read.
        passing: the failure may pass (a port, a stale process): one more try is worth it.
        out_of_time: it was stopped before its last point: the time does not suffice, or others wait.
        teardown_s: seconds that its stop took.
    """

    failure: str | None = None
    cause: str = ""
    passing: bool = False
    out_of_time: bool = False
    teardown_s: float = 0.0


class RowLedger:
    """The rows of one service: kept, cut short, not run, to be retried.

    Every method that changes rows returns them, to be written in this order.
    """

    def __init__(self, service: str, configs: Mapping[str, Config]) -> None:
        """Args: the name of the service, and the config of each point in the order of measuring."""
        self._service, self._configs = service, configs
        self._rows: dict[str, Row] = {}
        self._passing = self.was_served = False
        self.from_outside = False
        """Whether it was ended from outside: that tells nothing of the points that were not begun."""
        self.known: dict[str, Any] = {}
        """Columns that all rows of the service share, as far as they are known by now."""

    @property
    def valid(self) -> bool:
        """Whether every row so far is valid; a service that was kept up for hand tests has done what it was to do."""
        return self.was_served or all(row["valid"] for row in self._rows.values())

    @property
    def kept(self) -> tuple[Row, ...]:
        """The rows so far."""
        return tuple(self._rows.values())

    @property
    def left(self) -> tuple[str, ...]:
        """The points for another allocation: those without a row, and those that the time limit cut short."""
        return tuple(p for p in self._configs if p not in self._rows or self._rows[p]["invalid_reason"] == TIME_IS_UP)

    @property
    def to_retry(self) -> tuple[str, ...]:
        """The points for a second try at once: those without a valid and whole row, where the failure may pass."""
        if not self._passing:
            return ()
        return tuple(
            p for p in self._configs if p not in self._rows or not self._rows[p]["valid"] or self._rows[p]["truncated"]
        )

    def of_turns(
        self, measured: Mapping[str, Measured], cut: str | None, failure: str | None
    ) -> list[tuple[str, Measured, str | None]]:
        """Return which of some points that were measured by turns get a row, and the failure that it is to name.

        The failure is that of the point that it cut short, else of those whose windows it made invalid, else of the
        last one. A point that it left between two windows keeps those that it has, to be run again by a resume; where
        the end came from outside, that is its reason. A point without a window was not begun.

        Args:
            measured: what came of each.
            cut: the one that was being measured when the service failed; None: all had come to their end.
            failure: why it failed; None: it did not.
        """
        if failure is None:
            return [(point, found, None) for point, found in measured.items()]
        doubtful = [point for point, found in measured.items() if found.windows and found.reason]
        blamed = [cut] if cut else doubtful or [list(measured)[-1]]
        told: list[tuple[str, Measured, str | None]] = []
        for point, found in measured.items():
            asked = self._configs[point].bench.repeats
            short = len(found.windows) < asked and point not in blamed
            if short and found.windows and not self.from_outside:
                told.append((point, self.so_far(point, found, ": the service failed between them"), None))
            elif found.windows or point in blamed:
                told.append((point, found, failure if short or point in blamed else None))
        return told

    def so_far(self, point: str, found: Measured, why: str = "") -> Measured:
        """Mark what a part of a point's windows came to: a resume measures it whole."""
        note = f"{len(found.windows)} of {self._configs[point].bench.repeats} windows{why}"
        return replace(found, truncated=True, notes=(*found.notes, note))

    def measured(self, point: str, found: Measured, failure: str | None) -> Row:
        """Keep what a point came to; `failure`: why the service failed meanwhile."""
        reason = failure or found.reason
        return self._set(
            point,
            **found.figures,
            valid=reason is None,
            invalid_reason=reason,
            # What was ended from outside is to be run again, also between its window and its last canary.
            truncated=found.truncated or self.from_outside,
            notes="; ".join(found.notes) or None,
            engine_tokens=tokens_text(found.engine_tokens),
            warmup_s=round(sum(window.warmup_s for window in found.windows), 1),
            measure_s=round(found.measured_s, 1),
        )

    def give_up(self, reason: str) -> list[Row]:
        """Give every point of a service that was not started its row."""
        return [self._set(point, invalid_reason=NOT_RUN + reason) for point in self._configs]

    def served(self, seconds: float) -> list[Row]:
        """Give every point of a service that was kept up for hand tests its row."""
        self.was_served = True
        reason = f"served for hand tests for {seconds:.0f} s, not measured"
        return [self._set(point, invalid_reason=reason) for point in self._configs]

    def finish(self, end: End) -> list[Row]:
        """Add what is known after the end only, and rows for the points that were not reached.

        Points for which the time did not suffice get none here: another allocation will run them.
        """
        self._passing = end.failure is not None and end.passing
        self.known["teardown_s"] = end.teardown_s
        for_another = end.failure == TIME_IS_UP or (end.out_of_time and end.failure is None)
        never_begun = self._never_begun(end.failure)
        rows = []
        for point in self._configs:
            if row := self._rows.get(point):
                reason = end.failure if end.failure and row["invalid_reason"] == end.cause else row["invalid_reason"]
                rows.append(self._add(row, invalid_reason=reason, teardown_s=end.teardown_s))
            elif not for_another:
                rows.append(self._set(point, invalid_reason=never_begun))
        return rows

    def foretold(self, columns: Mapping[str, Mapping[str, Any]]) -> list[Row]:
        """Put what was predicted of points beside what they showed."""
        return [self._add(self._rows[point], **found) for point, found in columns.items() if found]

    def salvage(self, reason: str, written: Collection[str]) -> list[Row]:
        """Return the rows that are not written yet, after rank 0 could not go on: none of them is valid."""
        never_begun = self._never_begun(reason)
        rows = []
        for point in self._configs:
            if point not in written:
                row = self._rows.get(point) or self._set(point, invalid_reason=never_begun)
                rows.append(self._add(row, valid=False, invalid_reason=row["invalid_reason"] or reason))
        return rows

    def _never_begun(self, failure: str | None) -> str:
        """Return the reason of the points that were not begun.

        A service that failed by itself before its first point would fail again: that is the result of all its points.
        After a failure in one point the others may well succeed, and an end from outside tells nothing of any: these
        are not run, so that a resume runs them.
        """
        if failure is None:
            return NOT_RUN + "its service ended before it"
        return (NOT_RUN if self._rows or self.from_outside else "") + failure

    def _set(self, point: str, **figures: Any) -> Row:
        row = make_row(point, self._service, self._configs[point], **{**self.known, **figures})
        self._rows[point] = row
        return row

    def _add(self, row: Row, **figures: Any) -> Row:
        self._rows[row["point"]] = row = row | figures
        return row
