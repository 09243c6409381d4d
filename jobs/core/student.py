"""Quantiles of Student's t. Pure."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

MANY = 200
"""Degrees of freedom from which Student's t is taken for the normal distribution."""


@functools.lru_cache(maxsize=4096)
def student(p: float, free: float) -> float:
    """Return the quantile p of Student's t, between whole degrees of freedom straight in their inverse."""
    if free > MANY:
        return NormalDist().inv_cdf(p)
    low = max(1, math.floor(free))
    ends = t_quantile(p, low), t_quantile(p, low + 1)
    share = min(1.0, max(0.0, (1 / low - 1 / max(free, 1)) * low * (low + 1)))
    return ends[0] + share * (ends[1] - ends[0])


@functools.lru_cache(maxsize=4096)
def t_quantile(p: float, free: int) -> float:
    """Return the quantile p (0.5 < p < 1) of Student's t with `free` degrees of freedom, by bisection of its CDF."""
    low, high = 0.0, 1e3
    while _t_cdf(high, free) < p:
        high *= 10
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, free) < p else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, free: int) -> float:
    """Return the CDF of Student's t at t >= 0 by its finite sums (Abramowitz, Stegun: 26.7.3 and 26.7.4)."""
    theta = math.atan2(t, math.sqrt(free))
    sine, cosine = math.sin(theta), math.cos(theta)
    if free % 2:
        term = total = cosine if free > 1 else 0.0
        for k in range(2, free - 1, 2):
            term *= cosine**2 * k / (k + 1)
            total += term
        inside = 2 / math.pi * (theta + sine * total)
    else:
        term = total = 1.0
        for k in range(1, free - 2, 2):
            term *= cosine**2 * k / (k + 1)
            total += term
        inside = sine * total
    return (1 + inside) / 2
