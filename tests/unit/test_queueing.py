"""Whether a queue grows: the power of the test by simulation, and what it says where it can't tell."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import replace
from itertools import islice, takewhile

import numpy as np
import pytest

from jobs.core.config import Bench
from jobs.measure.arrivals import poisson
from jobs.measure.queueing import Trend, trend
from jobs.measure.records import RequestRecord, Window

WARM_S = 15.0
SLOTS = 8


def simulated(bench: Bench, number: int, each_s: float, *, slots: int = SLOTS, spread: float = 0.0) -> Window:
    """Return a window on a queue of so many slots, first come, first served, as the client opens it."""
    random = np.random.default_rng((7, number))
    warm = max(WARM_S, 2 * each_s)
    before = [at - warm for at in takewhile(lambda at: at < warm, poisson(bench, number, warming=True))]
    if bench.num_requests:
        came = list(islice(poisson(bench, number), bench.num_requests))  # the warm-up has run dry
    else:
        came = [*before, *takewhile(lambda at: at < 1.2 * bench.window_s, poisson(bench, number))]
    free, records = [-1e9] * slots, []
    for at in came:
        start = max(at, heapq.heappop(free))
        scale = random.lognormal(-np.log1p(spread**2) / 2, np.sqrt(np.log1p(spread**2)))
        heapq.heappush(free, end := start + each_s * scale)
        inside = 0 <= at < bench.window_s or (bool(bench.num_requests) and at >= 0)
        records.append(RequestRecord(0, start, start, end, np.array([end]), wait_s=start - at, in_window=inside))
    closed = max(one.end_s for one in records) if bench.num_requests else bench.window_s
    return Window(0.0, closed, warm, 0.0, tuple(records), {}, 0.0, truncated=False)


def shares(rate: float, of_capacity: float, n: int = 100, **how: float) -> Counter[bool | None]:
    """Return of how many windows the queue is said to grow, not to grow, and nothing."""
    bench = Bench(request_rate=rate)
    each = of_capacity * SLOTS / rate
    return Counter(trend(simulated(bench, number, each, **how), bench).saturated for number in range(n))  # type: ignore[arg-type]


def test_at_120_percent_of_the_capacity_it_is_found_and_at_90_it_is_not() -> None:
    """8 slots, 4 s a request, windows of 120 s at about 2 requests a second."""
    assert shares(2.4, 1.2)[True] >= 95
    assert shares(2.0, 1.2)[True] >= 95
    assert shares(1.8, 0.9)[True] <= 1
    assert shares(2.0, 0.9) == {False: 100}
    assert shares(2.0, 0.5) == {False: 100}


def test_lengths_that_scatter_change_little() -> None:
    assert shares(2.0, 1.2, spread=0.5)[True] >= 90
    assert shares(2.0, 0.9, spread=0.5)[True] <= 2


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_where_it_cannot_tell_it_says_so(rate: float) -> None:
    high, low = shares(rate, 1.2), shares(rate, 0.5)
    assert high[None] > 40 and high[False] < 15, "an overload is not called none"
    assert low[True] == 0 and low[False] > 95, "and half a load is known to be none"


def test_it_says_how_long_a_window_would_tell() -> None:
    bench = Bench(request_rate=0.25)
    found = trend(simulated(bench, 0, 1.2 * SLOTS / 0.25), bench)
    assert found.saturated is None and found.words
    assert "bench.window_s=480" in found.words
    longer = replace(bench, window_s=480.0)
    told = Counter(trend(simulated(longer, n, 1.2 * SLOTS / 0.25), longer).saturated for n in range(50))
    assert told[True] > 40


def test_a_service_that_is_idle_half_of_the_time_is_not_saturated() -> None:
    bench = Bench(request_rate=0.05)
    assert trend(simulated(bench, 1, 4.0), bench) == Trend(False)


@pytest.mark.parametrize(("of_capacity", "grows"), [(0.7, False), (1.2, True)])
def test_a_fixed_number_of_requests_is_judged_while_they_come(of_capacity: float, grows: bool) -> None:
    """All are answered in the end, so the whole window would never show it."""
    bench = Bench(request_rate=2.0, num_requests=400)
    assert trend(simulated(bench, 1, of_capacity * SLOTS / 2.0), bench).saturated is grows


def test_long_answers_of_a_steady_load_are_no_queue() -> None:
    """1,000 requests at 10 a second, 20 s each: the article's test."""
    bench = Bench(request_rate=10.0, num_requests=1000)
    assert trend(simulated(bench, 1, 20.0, slots=1000), bench).saturated is False


def test_a_closed_loop_has_no_queue() -> None:
    window = simulated(Bench(request_rate=2.0), 1, 8.0)
    assert trend(window, Bench(concurrency=8)) == Trend(False)


@pytest.mark.parametrize(("slots", "grows"), [(2, True), (1000, None)])
def test_a_fixed_number_that_comes_before_one_is_answered(slots: int, grows: bool | None) -> None:
    """60 requests in 0.3 s, 0.16 s each: two slots are far too few, and of enough slots nobody can tell so soon."""
    bench = Bench(request_rate=200.0, num_requests=60)
    assert trend(simulated(bench, 1, 0.16, slots=slots), bench).saturated is grows
