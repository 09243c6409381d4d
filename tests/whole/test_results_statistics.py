"""The statistics of results against numpy and scipy, and against samples whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jobs.results import resampling
from jobs.results.curves import LENGTHS_FOR_LINE, fit, t_quantile


@given(st.integers(1, 400), st.floats(0.501, 0.9995))
@settings(max_examples=60, deadline=None)
def test_student_t_is_that_of_scipy(free: int, p: float) -> None:
    assert t_quantile(p, free) == pytest.approx(stats.t.ppf(p, free), rel=1e-6, abs=1e-9)


@given(
    st.lists(st.integers(1, 200_000), min_size=6, max_size=20, unique=True),
    st.tuples(st.floats(-50, 500), st.floats(-1e-2, 1e-1), st.floats(0, 1e-6)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_parabola_is_that_of_numpy_and_its_band_holds_the_points(
    lengths: list[int], true: tuple[float, float, float], seed: int
) -> None:
    x = np.array(sorted(lengths), dtype=float)
    y = true[0] + true[1] * x + true[2] * x**2 + np.random.default_rng(seed).normal(0, 5, len(x))
    curve = fit(list(x), list(y))
    assert curve is not None
    scale = x.max()
    expected = np.polynomial.Polynomial.fit(x / scale, y, 2, domain=[-1, 1], window=[-1, 1]).coef
    assert np.array(curve.coefficients) * scale ** np.arange(3) == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert curve.x[0] == x.min()
    assert curve.x[-1] == x.max()
    assert all(low <= y <= high for low, y, high in zip(curve.low, curve.y, curve.high, strict=True))


def test_the_band_of_a_line_is_that_of_the_textbook() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.1, 1.9, 3.2, 3.9])
    curve = fit(list(x), list(y))
    assert curve is not None
    line = stats.linregress(x, y)
    assert curve.coefficients == pytest.approx((line.intercept, line.slope))
    residual = np.sqrt(np.sum((y - line.intercept - line.slope * x) ** 2) / 2)
    at = np.array(curve.x)
    half = stats.t.ppf(0.975, 2) * residual * np.sqrt(1 / 4 + (at - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
    assert np.array(curve.high) - np.array(curve.y) == pytest.approx(half)


def test_no_band_of_times_goes_below_nothing() -> None:
    curve = fit([1, 2, 3, 4, 5], [1.0, 90.0, 2.0, 80.0, 200.0])
    assert curve is not None
    assert min(curve.low) == 0
    assert min(curve.y) >= 0
    below = fit([1, 2, 3, 4, 5], [-1.0, 90.0, 2.0, 80.0, 200.0])
    assert below is not None
    assert min(below.low) < 0


def test_a_coefficient_that_is_rounding_is_zero_on_every_processor() -> None:
    x = [64, 128, 512, 1024, 1536]
    for value in (4.0, 1e6, 0.0):
        found = fit(x, [value] * 5)
        assert found is not None
        assert found.coefficients == (pytest.approx(value, rel=1e-12), 0.0, 0.0)
        assert found.low == found.high == found.y
    slope = fit(x, [2.0 + 1e-6 * one for one in x])  # small, and no rounding
    assert slope is not None
    assert slope.coefficients[1] == pytest.approx(1e-6, rel=1e-6)
    assert slope.coefficients[2] == 0.0


def test_too_few_lengths_make_no_curve_however_many_points_there_are() -> None:
    assert fit([8192, 16384, 32768] * 5, list(range(15))) is None
    assert fit(list(range(1, LENGTHS_FOR_LINE + 1)), [1, 2, 3, 5]) is not None


def test_the_interval_of_a_mean_is_that_of_scipys_bootstrap() -> None:
    data = np.random.default_rng(3).gamma(4, 25, 150)
    ours = resampling.interval(data.mean(), resampling.draws(data, np.mean, np.random.default_rng(0)))
    theirs = stats.bootstrap((data,), np.mean, method="percentile", n_resamples=5000, rng=1)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.08 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.08 * width)
    assert ours.error == pytest.approx(theirs.standard_error, rel=0.08)


@pytest.mark.parametrize(("together", "block"), [(1, 1), (8, 16)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(together: int, block: int) -> None:
    """Samples in runs of `together` that are equal, as requests in flight together are; the interval says 95 %."""
    rng = np.random.default_rng(7)
    held = 0
    for seed in range(100):
        one, two = (100 * scale + np.repeat(rng.normal(0, 10, 240 // together), together) for scale in (1.0, 1.1))
        found = resampling.relative_difference([one], [two], seed=seed, block=block)
        held += found.low <= 0.1 <= found.high
    assert 86 <= held < 100


def test_without_blocks_dependent_samples_would_seem_surer_than_they_are() -> None:
    rng = np.random.default_rng(1)
    one, two = (np.repeat(rng.normal(100, 10, 30), 8) for _ in range(2))
    naive = resampling.relative_difference([one], [two])
    honest = resampling.relative_difference([one], [two], block=8)
    assert honest.error > 2 * naive.error


def test_windows_that_scatter_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    still = [rng.normal(100, 1, 80) for _ in range(4)]
    scattered = [rng.normal(level, 1, 80) for level in (80, 95, 105, 120)]
    assert resampling.relative_difference(still, still).error < 0.005
    assert resampling.relative_difference(still, scattered).error > 0.05


@pytest.mark.parametrize("windows", [2, 3, 5])
def test_windows_that_scatter_alike_show_a_difference_no_oftener_than_said(windows: int) -> None:
    """Both sides are the same setting, whose windows differ by 5 % of deviation: 5 % of trials may say otherwise."""
    rng = np.random.default_rng(windows)

    def side() -> list[np.ndarray]:
        return [rng.normal(100 * (1 + rng.normal(0, 0.05)), 15, 60) for _ in range(windows)]

    false = sum(not resampling.relative_difference(side(), side(), seed=seed).holds_zero for seed in range(250))
    assert false <= 0.07 * 250


def test_the_scatter_of_windows_has_the_interval_of_welch() -> None:
    rng = np.random.default_rng(4)
    one, two = rng.normal(100, 2, 3), rng.normal(110, 4, 4)
    sides = [[np.full(40, level) for level in side] for side in (one, two)]
    found = resampling.relative_difference(*sides)
    shares = [stats.sem(side) / side.mean() for side in (one, two)]
    free = sum(np.square(shares)) ** 2 / (shares[0] ** 4 / 2 + shares[1] ** 4 / 3)
    half = stats.t.ppf(0.975, free) * np.hypot(*shares)
    assert np.log1p(found.high) - np.log1p(found.estimate) == pytest.approx(half, rel=0.01)
    assert np.log1p(found.estimate) - np.log1p(found.low) == pytest.approx(half, rel=0.01)


def test_idle_slices_divide_nothing_by_zero() -> None:
    idle = np.zeros(40)
    idle[0] = 5.0
    with np.errstate(all="raise"):
        found = resampling.relative_difference([idle], [np.ones(40)], seed=1)
    assert found.low > -1


def test_pairs_take_out_what_both_sides_share() -> None:
    rng = np.random.default_rng(2)
    prompt = rng.uniform(50, 500, 120)
    one, two = prompt + rng.normal(0, 1, 120), prompt * 1.02 + rng.normal(0, 1, 120)
    paired = resampling.paired_difference(one, two)
    assert 0.01 < paired.low < paired.estimate < paired.high < 0.03
    assert resampling.relative_difference([one], [two]).holds_zero


def test_draws_are_seeded() -> None:
    data = np.random.default_rng(0).normal(10, 1, 50)
    first, second, other = (resampling.relative_difference([data], [data + 1], seed=seed) for seed in (4, 4, 5))
    assert first == second != other


def test_the_least_difference_that_would_be_seen() -> None:
    assert resampling.minimum_detectable(1.0) == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    # Its meaning: a true difference of this size is found in 80 % of all trials.
    rng = np.random.default_rng(0)
    found = np.abs(rng.normal(resampling.minimum_detectable(1.0), 1, 20_000)) > stats.norm.ppf(0.975)
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_the_rate_of_a_closed_loop() -> None:
    pairs = np.array([[10.0, 100.0], [30.0, 100.0]])
    assert resampling.per_time(pairs, axis=0) == pytest.approx(0.2)
