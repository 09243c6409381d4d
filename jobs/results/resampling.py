"""Intervals from resampling, and what could have been seen. Pure numpy; every draw is seeded.

The bootstrap is the percentile bootstrap (Efron, Tibshirani: An Introduction to the Bootstrap, chapter 13). Requests
of one window are not independent: those in flight together share the engine's steps. So whole blocks of neighbours
are drawn, the moving-block bootstrap (Künsch 1989), with blocks of twice the number in flight. Windows are few, so
their scatter has Student's t instead (Welch 1947).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from jobs.results.curves import t_quantile

Floats = NDArray[np.float64]
Statistic = Callable[..., Floats]
"""A numpy reduction that takes an array and `axis`: np.mean, np.median."""

DRAWS = 1000
LEVEL = 0.95
POWER = 0.8
MANY = 200
"""Degrees of freedom from which Student's t is taken for the normal distribution."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval at LEVEL, and its standard error (of the interval's width)."""

    estimate: float
    low: float
    high: float
    error: float

    @property
    def holds_zero(self) -> bool:
        """Whether the interval includes no difference."""
        return self.low <= 0 <= self.high


def draws(data: Floats, statistic: Statistic, rng: np.random.Generator, block: int = 1) -> Floats:
    """Return the statistic of DRAWS resamples.

    Args:
        data: shape (n,) or (n, columns), in the order of time.
        statistic: reduced over the n drawn rows.
        rng: source of the draws.
        block: neighbours that are drawn together, at most a quarter of n.

    Returns:
        shape (DRAWS,) or (DRAWS, columns).
    """
    n = len(data)
    block = max(1, min(block, n // 4))
    starts = rng.integers(0, n - block + 1, size=(DRAWS, -(-n // block)))
    chosen = (starts[:, :, None] + np.arange(block)).reshape(DRAWS, -1)[:, :n]
    return np.asarray(statistic(data[chosen], axis=1), dtype=np.float64)


def interval(estimate: float, drawn: Floats, level: float = LEVEL) -> Interval:
    """Return the percentile interval of an estimate from its draws."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return spanning(float(estimate), float(low), float(high), level)


def spanning(estimate: float, low: float, high: float, level: float = LEVEL) -> Interval:
    """Return an interval with its standard error, from its width.

    Not from the deviation of the draws: a ratio has a long tail, and a few wild draws would rule it.
    """
    return Interval(estimate, low, high, (high - low) / 2 / NormalDist().inv_cdf((1 + level) / 2))


def per_time(pairs: Floats, axis: int) -> Floats:
    """Return amount over time of rows (amount, time), summed over `axis`: the rate of requests in a closed loop."""
    sums = pairs.sum(axis=axis)
    return np.asarray(sums[..., 0] / sums[..., 1])


def inside_windows(windows: Sequence[Floats], statistic: Statistic, rng: np.random.Generator, block: int) -> Floats:
    """Return DRAWS resamples of the mean of a statistic over windows: blocks are drawn inside of each.

    So only the noise inside of windows is known by it.
    """
    return np.stack([draws(data, statistic, rng, block) for data in windows]).mean(axis=0)


@dataclass(frozen=True)
class _Scatter:
    """Squared relative error of a mean over windows, and its degrees of freedom (inf: known by many requests)."""

    squared: float
    free: float


def _scatter(values: Floats, drawn: Floats) -> _Scatter:
    """Return the error of the mean of these window figures; that of the draws where there is one window."""
    mean = float(values.mean())
    if len(values) < 2:
        return _Scatter(float(drawn.std()) ** 2 / mean**2, math.inf)
    return _Scatter(float(values.var(ddof=1)) / len(values) / mean**2, len(values) - 1)


def between_windows(one: _Scatter, two: _Scatter, ratio: float) -> tuple[float, float]:
    """Return the ends of Welch's t interval of ratio - 1, from the scatter of windows on both sides.

    A few windows drawn with replacement would scatter too little, by n / (n - 1) in their variance and by the normal
    for Student's t in the quantile: at 3 windows, the two together make 15 % false differences of 5 %. The error is
    that of the logarithm of the ratio, which is symmetric in the two sides.
    """
    both = one.squared + two.squared
    if not both:
        return ratio - 1, ratio - 1
    free = both**2 / (one.squared**2 / one.free + two.squared**2 / two.free or 1e-300)
    half = _t(free) * math.sqrt(both)
    return ratio * math.exp(-half) - 1, ratio * math.exp(half) - 1


def _t(free: float) -> float:
    """Return the quantile of Student's t at LEVEL, between whole degrees of freedom straight in their inverse."""
    if free > MANY:
        return NormalDist().inv_cdf((1 + LEVEL) / 2)
    low = max(1, math.floor(free))
    ends = t_quantile((1 + LEVEL) / 2, low), t_quantile((1 + LEVEL) / 2, low + 1)
    share = min(1.0, max(0.0, (1 / low - 1 / max(free, 1)) * low * (low + 1)))
    return ends[0] + share * (ends[1] - ends[0])


def relative_difference(
    one: Sequence[Floats], two: Sequence[Floats], statistic: Statistic = np.mean, *, seed: int = 0, block: int = 1
) -> Interval:
    """Return two / one - 1 of a statistic with its interval.

    It holds what the noise inside of windows says; where a side has several windows, also what their scatter says
    (`between_windows`).

    Args:
        one, two: windows of each side; each a sample in the order of time, shape (n,) or, for `per_time`, (n, 2).
        statistic: of a sample; its mean over windows is compared.
        seed: of the draws.
        block: see `draws`.
    """
    rng = np.random.default_rng(seed)
    first, second = inside_windows(one, statistic, rng, block), inside_windows(two, statistic, rng, block)
    before, after = (np.array([float(statistic(data, axis=0)) for data in side]) for side in (one, two))
    ratio = float(after.mean() / before.mean())
    inside = interval(ratio - 1, _ratio(second, first) - 1)
    if len(one) < 2 and len(two) < 2:
        return inside
    low, high = between_windows(_scatter(before, first), _scatter(after, second), ratio)
    return spanning(ratio - 1, min(inside.low, low), max(inside.high, high))


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return the ratios of draws without those that would divide by 0: a draw may hold only idle slices."""
    known = below != 0
    return above[known] / below[known] if known.any() else np.full(1, np.inf)


def paired_difference(one: Floats, two: Floats, *, seed: int = 0, block: int = 1) -> Interval:
    """Return mean(two) / mean(one) - 1 with its interval, where one[i] and two[i] belong together (the same prompt)."""
    both = draws(np.stack([one, two], axis=1), np.mean, np.random.default_rng(seed), block)
    return interval(float(two.mean() / one.mean() - 1), _ratio(both[:, 1], both[:, 0]) - 1)


def minimum_detectable(error: float, level: float = LEVEL, power: float = POWER) -> float:
    """Return the least true difference that a two-sided test at `level` finds with probability `power`.

    (z of level + z of power) x standard error (Bloom 1995, minimum detectable effects): 2.80 standard errors.
    """
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * error
