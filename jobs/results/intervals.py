"""The interval of a relative difference, from figures of windows or of starts. Pure; nothing is drawn by chance.

What scatters is a window, and a start of the engine: requests in flight together share the engine's steps, and a
machine's state lasts for many of them. So the figures of several windows, or of several starts, have Welch's t interval
(Welch 1947), with the degrees of freedom of Satterthwaite (1946). Of one window its parts in the order of time are
taken (batch means: Schmeiser 1982, "Batch size effects in the analysis of simulation output", finds no use in more
than 10 to 30): that is the noise inside of this window, and nothing else.

Who is the best of several is compared with each of its rivals, each at a level that is stricter by their number
(Bonferroni; Dunn 1961; for the best of several: Hsu 1984, "Constrained simultaneous confidence intervals for multiple
comparisons with the best").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.core.student import student

Floats = NDArray[np.float64]

LEVEL = 0.95
POWER = 0.8

BATCHES = 10
"""Parts of one window."""


@dataclass(frozen=True)
class Scatter:
    """Squared relative error of a mean, and its degrees of freedom (inf: it is known)."""

    squared: float
    free: float


@dataclass(frozen=True)
class Interval:
    """A relative difference with its interval. `error`: standard error of the logarithm of the ratio.

    `least`: the least true difference that would have been seen about four times in five.
    """

    estimate: float
    low: float
    high: float
    error: float
    least: float

    @property
    def holds_zero(self) -> bool:
        """Whether the interval includes no difference."""
        return self.low <= 0 <= self.high


def of_values(values: Sequence[float] | Floats) -> Scatter | None:
    """Return the scatter of the mean of independent figures; None: there is one alone, or their mean is not above 0."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) < 2 or mean <= 0:
        return None
    return Scatter(float(data.var(ddof=1)) / len(data) / mean**2, len(data) - 1)


def pooled(groups: Sequence[Sequence[float]]) -> Scatter | None:
    """Return the scatter of a single figure from groups of figures of the same thing; None: no group has two.

    Each group is taken as a share of its own mean.
    """
    parts = [(scatter, len(group)) for group in groups if group and (scatter := of_values(group))]
    free = sum(part.free for part, _ in parts)
    return Scatter(sum(part.squared * n * part.free for part, n in parts) / free, free) if free else None


def added(parts: Sequence[Scatter]) -> Scatter:
    """Return the scatter of a sum of independent errors (Satterthwaite)."""
    squared = sum(part.squared for part in parts)
    below = sum(part.squared**2 / part.free for part in parts)
    return Scatter(squared, squared**2 / below if below else math.inf)


def around(ratio: float, scatter: Scatter, level: float = LEVEL) -> Interval:
    """Return the interval of ratio - 1; it is one of the logarithm of the ratio, which is the same from both sides."""
    error = math.sqrt(scatter.squared)
    half = student((1 + level) / 2, scatter.free) * error
    least = math.expm1(half + student(POWER, scatter.free) * error)
    return Interval(ratio - 1, ratio * math.exp(-half) - 1, ratio * math.exp(half) - 1, error, least)


def batches(count: int) -> list[range]:
    """Cut so many members, in the order of time, into BATCHES runs; fewer where a run would have less than two."""
    parts = max(1, min(BATCHES, count // 2))
    return [range(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def wider(one: Interval, two: Interval | None) -> Interval:
    """Return the one of two intervals around the same estimate that spans more."""
    return one if two is None or one.high - one.low >= two.high - two.low else two
