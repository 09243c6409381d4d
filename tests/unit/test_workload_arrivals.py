"""Arrivals of an open loop: Poisson given their count, seeded, anew for every window."""

from __future__ import annotations

from itertools import islice, takewhile

import numpy as np
import pytest
import scipy.stats

from jobs.core.config import Bench
from jobs.measure.arrivals import count, poisson


def times(n: int, window: int = 1, **bench: object) -> list[float]:
    return list(islice(poisson(Bench(**{"request_rate": 5.0} | bench), window), n))  # type: ignore[arg-type]


def test_arrivals_are_a_pure_function_of_seed_window_and_rate() -> None:
    one = times(3000, seed=3)
    assert one == times(3000, seed=3)
    assert one != times(3000, seed=4) and one != times(3000, 2, seed=3)
    assert one != list(islice(poisson(Bench(request_rate=5.0, seed=3), 1, warming=True), 3000))
    assert (np.diff(one) > 0).all() and one[0] > 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [0.001, 0.02, 0.5, 1.0, 2.0, 4.0, 33.3])
def test_each_window_has_the_count_that_was_asked_for(rate: float, seed: int) -> None:
    bench = Bench(request_rate=rate, seed=seed)
    for window in range(1, 5):
        inside = sum(1 for _ in takewhile(lambda at: at < bench.window_s, poisson(bench, window)))
        assert inside == count(bench) == max(1, round(rate * bench.window_s))


def test_a_fixed_number_comes_within_the_time_that_its_rate_needs() -> None:
    found = times(31, request_rate=2.0, num_requests=30)
    assert found[29] < 15 < found[30]


def test_the_load_goes_on_at_its_rate_after_the_window() -> None:
    found = times(20_000, request_rate=0.7)
    assert found[-1] == pytest.approx(20_000 / 0.7, rel=0.01)


@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_gaps_are_those_of_a_poisson_process(rate: float) -> None:
    """By the test of Kolmogorov and Smirnov over many windows, and by how counts of parts of a window scatter."""
    bench = Bench(request_rate=rate)
    windows = [list(islice(poisson(bench, number), count(bench))) for number in range(1, 101)]
    gaps = np.concatenate([np.diff(one) for one in windows])
    assert scipy.stats.kstest(gaps[:4000], scipy.stats.expon(scale=1 / rate).cdf).pvalue > 0.01
    tenths = np.array([np.histogram(one, 10, (0, bench.window_s))[0] for one in windows])
    assert tenths.var() / tenths.mean() == pytest.approx(0.9, abs=0.15), "binomial with p = 0.1"
