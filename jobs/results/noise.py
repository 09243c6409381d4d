"""How much a difference between two points is worth: its interval from the requests of both windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.results.columns import key_of, load_of
from jobs.results.gather import Run
from jobs.results.requests import BLOCK, Requests, of_row
from jobs.results.resampling import Floats, Interval, Statistic, per_time, relative_difference, spanning

LEAST = 8
"""Requests under which resampling tells nothing."""


@dataclass(frozen=True, eq=False)
class Sample:
    """The requests of a row and its load. `in_flight` is None in an open loop."""

    requests: Requests
    in_flight: int | None

    @property
    def block(self) -> int:
        """Neighbours that are drawn together: twice those in flight, so that a block holds a whole round of them."""
        return 2 * self.in_flight if self.in_flight and self.in_flight > 1 else 1


def sample(run: Run, row: Mapping[str, Any]) -> Sample | None:
    """Return the requests of a row's point; None: there are none that can be read."""
    found = of_row(run, row)
    if found is None:
        return None
    load = load_of(run, row) if key_of(run, row) == "bench.concurrency" else None
    return Sample(found, int(load) if load else None)


def difference(
    one: Sample | None, two: Sample | None, column: str, *, observed: float | None = None, seed: int = 0
) -> Interval | None:
    """Return the relative difference from `one` to `two` in a column, with its interval; None: it cannot be told.

    In a closed loop a fixed number of requests is in flight, so the token rate goes by tokens over end-to-end
    latency (Little's law): its noise is that of the requests. In an open loop the slices of the window are drawn.

    Args:
        observed: the difference of the two rows' figures. Where a short window cut whole rounds of requests, it is
            not quite that of the requests: then the interval holds what both say.
    """
    found = _from_requests(one, two, column, seed)
    if found is None or observed is None:
        return found
    around = _scaled(found, (1 + observed) / (1 + found.estimate))
    return spanning(observed, min(found.low, around.low), max(found.high, around.high))


def _from_requests(one: Sample | None, two: Sample | None, column: str, seed: int) -> Interval | None:
    if one is None or two is None:
        return None
    block = max(one.block, two.block)
    if column == "output_tok_s" and one.in_flight and two.in_flight:
        first, second = _work(one), _work(two)
        # What is drawn is a rate per request in flight: the loads may differ.
        found = _resample(first, second, per_time, seed, block)
        return None if found is None else _scaled(found, two.in_flight / one.in_flight)
    if column == "output_tok_s":
        return _resample(list(one.requests.rates), list(two.requests.rates), np.mean, seed, BLOCK)
    name, _, statistic = column.rpartition("_")
    if name not in ("ttft_ms", "tpot_ms", "e2el_ms"):
        return None
    return _resample(one.requests.values(name), two.requests.values(name), _statistic(statistic), seed, block)


def _statistic(name: str) -> Statistic:
    if not name.startswith("p"):
        return np.mean
    share = float(name[1:]) / 100
    return lambda data, axis: np.quantile(data, share, axis=axis)


def _work(one: Sample) -> list[Floats]:
    return one.requests.values("output_tokens", "e2el_ms")


def _resample(one: list[Floats], two: list[Floats], statistic: Statistic, seed: int, block: int) -> Interval | None:
    if any(len(data) < LEAST or not data.any() for data in (*one, *two)):
        return None
    return relative_difference(one, two, statistic, seed=seed, block=block)


def _scaled(found: Interval, ratio: float) -> Interval:
    return spanning(*((1 + value) * ratio - 1 for value in (found.estimate, found.low, found.high)))
