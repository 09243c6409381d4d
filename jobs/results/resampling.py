"""Intervals from resampling, and what could have been seen. Pure numpy; every draw is seeded.

The bootstrap is the percentile bootstrap (Efron, Tibshirani: An Introduction to the Bootstrap, chapter 13). Requests
of one window are not independent: those in flight together share the engine's steps. So whole blocks of neighbours
are drawn, the moving-block bootstrap (Künsch 1989), with blocks of twice the number in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[..., Floats]
"""A numpy reduction that takes an array and `axis`: np.mean, np.median."""

DRAWS = 1000
LEVEL = 0.95
POWER = 0.8


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


def of_windows(windows: Sequence[Floats], statistic: Statistic, rng: np.random.Generator, block: int = 1) -> Floats:
    """Return DRAWS resamples of the mean of a statistic over windows: windows are drawn, and blocks inside of each.

    With one window this is `draws`: then only the noise inside of it is known.
    """
    inside = np.stack([draws(data, statistic, rng, block) for data in windows])
    chosen = rng.integers(0, len(windows), size=(DRAWS, len(windows)))
    return np.asarray(inside[chosen, np.arange(DRAWS)[:, None]].mean(axis=1))


def relative_difference(
    one: Sequence[Floats], two: Sequence[Floats], statistic: Statistic = np.mean, *, seed: int = 0, block: int = 1
) -> Interval:
    """Return two / one - 1 of a statistic with its interval.

    Args:
        one, two: windows of each side; each a sample in the order of time, shape (n,) or, for `per_time`, (n, 2).
        statistic: of a sample; its mean over windows is compared.
        seed: of the draws.
        block: see `draws`.
    """
    rng = np.random.default_rng(seed)
    first, second = of_windows(one, statistic, rng, block), of_windows(two, statistic, rng, block)
    before, after = (float(np.mean([statistic(data, axis=0) for data in side])) for side in (one, two))
    return interval(after / before - 1, second / first - 1)


def paired_difference(one: Floats, two: Floats, *, seed: int = 0, block: int = 1) -> Interval:
    """Return mean(two) / mean(one) - 1 with its interval, where one[i] and two[i] belong together (the same prompt)."""
    both = draws(np.stack([one, two], axis=1), np.mean, np.random.default_rng(seed), block)
    return interval(float(two.mean() / one.mean() - 1), both[:, 1] / both[:, 0] - 1)


def minimum_detectable(error: float, level: float = LEVEL, power: float = POWER) -> float:
    """Return the least true difference that a two-sided test at `level` finds with probability `power`.

    (z of level + z of power) x standard error (Bloom 1995, minimum detectable effects): 2.80 standard errors.
    """
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * error
