"""Poisson arrivals: seeded, absolute, exponential."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import scipy.stats

from jobs.measure.workload import poisson


def test_arrivals_are_a_pure_function_of_the_seed() -> None:
    one, again, other = (list(islice(poisson(seed, 5.0), 3000)) for seed in (3, 3, 4))
    assert one == again
    assert one != other
    assert (np.diff(one) > 0).all() and one[0] > 0


@pytest.mark.parametrize("rate", [0.5, 40.0])
def test_gaps_are_exponential_with_the_asked_rate(rate: float) -> None:
    gaps = np.diff(list(islice(poisson(0, rate), 20_001))) * rate
    assert gaps.mean() == pytest.approx(1.0, abs=0.03)
    assert gaps.std() == pytest.approx(1.0, abs=0.05)
    # Kolmogorov-Smirnov against 1 - exp(-x); 1.63/sqrt(n) is the 1 % bound, and the seed is fixed.
    expected = 1 - np.exp(-np.sort(gaps))
    assert np.abs(expected - np.arange(1, len(gaps) + 1) / len(gaps)).max() < 1.63 / len(gaps) ** 0.5


def test_rates_scale_the_same_draws() -> None:
    slow, fast = (np.array(list(islice(poisson(1, rate), 2000))) for rate in (1.0, 10.0))
    assert slow == pytest.approx(fast * 10)


def test_gaps_are_exponential_by_the_test_of_kolmogorov_and_smirnov() -> None:
    times = np.fromiter(islice(poisson(5, 20.0), 4000), float)
    gaps = np.diff(times, prepend=0.0)
    assert scipy.stats.kstest(gaps, scipy.stats.expon(scale=1 / 20.0).cdf).pvalue > 0.01
