"""How much a difference between two settings is worth: what scatters, and what that says of their figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.core.load import REPEATS
from jobs.results.columns import FOUND, LOADS, counts, is_offered, key_of, lines_in_row, load_of, setting_text
from jobs.results.gather import Run
from jobs.results.intervals import LEVEL, Floats, Interval, Scatter, added, around, batches, of_values, pooled, wider
from jobs.results.requests import Requests, of_row

if TYPE_CHECKING:
    import pandas as pd

LEAST = 8
"""Requests under which their scatter tells nothing."""

STARTS = 3
"""Starts of the engine from which their own scatter can be judged, so that a difference is to be believed."""

GRAIN = 1e-3
"""A difference by less is none, whatever the scatter: clocks, and figures that are alike by chance."""

STRICTER = 5
"""A spread between starts that is known from other days has a level of 99 %, not 95: this day may be another."""

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Side:
    """A setting at one load: one row for each start of the engine, and what is known of other starts of its layout.

    Args:
        spread: scatter between single starts of this layout in earlier sweeps; None: it is not known.
    """

    run: Run
    rows: tuple[Row, ...]
    column: str
    spread: Scatter | None = None

    @cached_property
    def starts(self) -> tuple[tuple[float, ...], ...]:
        """The figure of each window, by start. Where no window has left one, the row's own stands for one window."""
        return tuple(self._windows(number) for number in range(len(self.rows)))

    @property
    def windows(self) -> tuple[float, ...]:
        """The figures of all windows."""
        return tuple(value for start in self.starts for value in start)

    @property
    def moments(self) -> tuple[float, ...]:
        """When the windows of all rows were opened, s of one clock of their service; empty: it is not told."""
        lines = [line for row in self.rows for _, line in lines_in_row(self.run, row)]
        shown = [line for line in lines if line.get(self.column) is not None]
        told = tuple(float(line["opened_s"]) for line in shown if isinstance(line.get("opened_s"), float))
        return told if len(told) == len(shown) else ()

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of each start."""
        return tuple(float(np.mean(start)) for start in self.starts)

    @cached_property
    def inside(self) -> Scatter | None:
        """The scatter of the mean of all windows by the noise inside of them alone; None: the requests do not tell."""
        parts = []
        for number, found in enumerate(self._requests):
            statistic = _statistic(self.column, self._in_flight(number))
            for frame in found.windows if found and statistic else ():
                figures = [value for part in _parts(frame) if (value := statistic(part)) is not None]  # type: ignore[misc]
                parts.append(of_values(figures) if len(frame) >= LEAST and figures else None)
        known = [part for part in parts if part]
        if not parts or len(known) < len(parts):
            return None
        return added([Scatter(one.squared / len(parts) ** 2, one.free) for one in known])

    @property
    def grain(self) -> float:
        """How finely the figure is told, as a share: a search finds one load for all settings between two steps."""
        row, value = self.rows[0], float(self.rows[0].get(self.column) or 0.0)
        if self.column not in FOUND.values() or not value:
            return GRAIN
        step = float(self.run.value(row, "bench.search_precision") or GRAIN)
        return max(step, 1 / value) if self.column == FOUND["concurrency"] else step

    @cached_property
    def _requests(self) -> tuple[Requests | None, ...]:
        return tuple(of_row(self.run, row) for row in self.rows)

    def _in_flight(self, number: int) -> float | None:
        """Return the requests that a closed loop keeps in flight; None: an open loop, or it is not known."""
        row = self.rows[number]
        closed = key_of(self.run, row) == "bench.concurrency" and not is_offered(self.run, row)
        load = load_of(self.run, row) if closed else None
        return float(load) if load else None

    def _windows(self, number: int) -> tuple[float, ...]:
        row = self.rows[number]
        lines = [line.get(self.column) for _, line in lines_in_row(self.run, row)]
        if found := [float(value) for value in lines if value is not None and counts(self.column, value)]:
            return tuple(found)
        statistic, requests = _statistic(self.column, self._in_flight(number)), self._requests[number]
        each = [statistic(frame) for frame in requests.windows] if requests and statistic else []
        known = [value for value in each if value is not None]
        return tuple(known) if len(known) > 1 else (float(row[self.column]),)


@dataclass(frozen=True)
class Difference:
    """A relative difference and what its interval stands on.

    Attributes:
        basis: `starts`: the scatter between starts of the engine in this sweep. `known`: that of earlier sweeps.
            `windows`: that between windows of one start. `window`: the noise inside of too few windows: it decides
            nothing.
        starts, windows: of the side that has fewer.
    """

    change: Interval
    basis: str
    starts: int
    windows: int

    @property
    def of_starts(self) -> bool:
        """Whether the interval holds what another start of the engine would do."""
        return self.basis in ("starts", "known")

    @property
    def sure(self) -> bool:
        """Whether that is known well enough to be believed."""
        return self.basis == "known" or (self.basis == "starts" and self.starts >= STARTS)


def difference(one: Side, two: Side, *, level: float = LEVEL, inside: bool = True) -> Difference | None:
    """Return the relative difference from `one` to `two`, with its interval; None: it cannot be told.

    It is never narrower than the noise inside of the windows: windows may be alike because their requests run in step.

    Args:
        level: of the interval.
        inside: read the single requests too, where windows or starts decide.
    """
    starts, windows = min(len(one.starts), len(two.starts)), min(len(one.windows), len(two.windows))
    known = _known(one, two)
    if starts >= STARTS or (starts > 1 and known is None):
        basis, parts = "starts", [of_values(side.means) for side in (one, two)]
    elif windows >= REPEATS:
        basis = "known" if known else "windows"
        parts = [of_values(side.windows) for side in (one, two)]
        if known:
            parts, level = [*parts, known], 1 - (1 - level) / STRICTER
        elif starts == max(len(one.starts), len(two.starts)) and (drift := _drift(one, two)):
            parts.append(drift)
    else:
        basis, parts = "window", [one.inside, two.inside]
    before, after = (float(np.mean(side.windows if basis != "starts" else side.means)) for side in (one, two))
    told = [part for part in parts if part]
    if len(told) < len(parts) or min(before, after) <= 0:
        return None
    # All starts of a setting meet the same step, so that more of them tell it no better.
    grain = Scatter((max(one.grain, two.grain) / NormalDist().inv_cdf((1 + LEVEL) / 2)) ** 2, math.inf)
    change = around(after / before, added([*told, grain]), level)
    if basis in ("starts", "windows") and len(one.starts) != len(two.starts) and (both := _by_starts(one, two)):
        # Welch's degrees of freedom are too many where one side has two starts and the other has more; and of one start
        # against several these tell how far starts lie apart.
        change = wider(change, around(after / before, both, level))
    if basis == "windows" and len(one.windows) != len(two.windows) and (both := _pooled(one.windows, two.windows)):
        change = wider(change, around(after / before, both, level))
    if basis != "window" and inside and one.inside and two.inside:
        change = wider(change, around(after / before, added([one.inside, two.inside]), level))
    return Difference(change, basis, starts, windows)


def _known(one: Side, two: Side) -> Scatter | None:
    """Return the scatter of a difference by the spread of earlier starts: of one layout it is one estimate, not two."""
    if one.spread is None or two.spread is None:
        return None
    squared = one.spread.squared / len(one.starts) + two.spread.squared / len(two.starts)
    return Scatter(squared, min(one.spread.free, two.spread.free))


def _by_starts(one: Side, two: Side) -> Scatter | None:
    """Return the scatter of a difference by the starts of both sides together; None: no side has two."""
    return _pooled(one.means, two.means)


def _pooled(one: Sequence[float], two: Sequence[float]) -> Scatter | None:
    each = pooled([one, two])
    return each and Scatter(each.squared * (1 / len(one) + 1 / len(two)), each.free)


def _drift(one: Side, two: Side) -> Scatter | None:
    """Return what a drift over the allocation may make of a difference between two services, one after the other.

    Where the windows of both rise or fall alike, what came later is better or worse for that alone: by at least as many
    windows as a service has. A few windows never rule a slope out, so it always counts. None: the windows are of one
    service, and were measured by turns.
    """
    if {row.get("service") for row in one.rows} & {row.get("service") for row in two.rows}:
        return None
    along = square = windows = free = 0.0
    for side in (one, two):
        rows = [replace(side, rows=(row,)) for row in _of_service(side)]
        for each, places in zip(rows, _places(rows), strict=True):
            values = np.array(each.windows)
            if values.mean() <= 0:
                continue
            places -= places.mean()
            along += float(places @ (values / values.mean() - 1))
            square += float(places @ places)
            windows, free = windows + len(values) / 2, free + len(values) - 1
    return Scatter((along / square * windows) ** 2, free - 1) if free > 1 and square else None


def _places(rows: Sequence[Side]) -> list[Floats]:
    """Return at which place among all windows of their service those of each row were measured.

    By the moments at which they were opened. Where these are not told: loads were measured by turns, so that many
    windows lie between two of one row, and other work row by row.
    """
    moments = [row.moments for row in rows]
    if all(len(each) == len(row.windows) for each, row in zip(moments, rows, strict=True)):
        order = np.sort(np.concatenate(moments))
        return [np.searchsorted(order, each).astype(np.float64) for each in moments]
    keys = [setting_text(tuple(key for key in row.run.swept if key not in LOADS), row.rows[0]) for row in rows]
    turns = Counter(keys)
    return [turns[key] * np.arange(len(row.windows), dtype=np.float64) for key, row in zip(keys, rows, strict=True)]


def _of_service(side: Side) -> list[Row]:
    """Return the rows of a side's service that have its figure: each tells of the drift."""
    service, column = side.rows[0].get("service"), side.column
    rows = [row for row in side.run.by_service.get(service, ()) if row["valid"]]
    return [row for row in rows if counts(column, row.get(column))] or list(side.rows)


def _statistic(column: str, in_flight: float | None) -> Callable[[pd.DataFrame], float | None] | None:
    """Return how a column comes from requests; None: it does not.

    In a closed loop a fixed number of requests is in flight, so the token rate is tokens over end-to-end latency
    (Little's law). In an open loop the rate is what was offered.
    """
    name, _, statistic = column.rpartition("_")
    if column == "output_tok_per_s" and in_flight:
        return lambda frame: _rate(frame, in_flight)
    if name not in ("ttft_ms", "tpot_ms", "e2el_ms"):
        return None
    if statistic.startswith("p"):
        return lambda frame: _of(frame[name], lambda data: float(np.percentile(data, float(statistic[1:]))))
    return lambda frame: _of(frame[name], lambda data: float(data.mean()))


def _of(values: pd.Series[Any], statistic: Callable[[Floats], float]) -> float | None:
    data = values.dropna().to_numpy(dtype=np.float64)
    return statistic(data) if len(data) else None


def _rate(frame: pd.DataFrame, in_flight: float) -> float | None:
    tokens, took = (float(frame[name].sum()) for name in ("output_tokens", "e2el_ms"))
    return in_flight * tokens / took * 1e3 if took else None


def _parts(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the parts of one window in the order of time: runs of requests, as they started."""
    return [frame.iloc[places.start : places.stop] for places in batches(len(frame))]
