"""A figure against context length: a least-squares curve with its interval, where there are points enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LENGTHS_FOR_LINE = 4
LENGTHS_FOR_PARABOLA = 5
"""Different lengths that a curve needs. One more than coefficients would give an interval that says nothing."""

ROUNDING = 64
"""How many units of rounding error a least-squares fit may add up (a bound from Higham, Accuracy and Stability, 20.1,
is a small multiple of the condition number; this is that multiple)."""

GRID = 33
"""Lengths at which a curve is drawn."""


@dataclass(frozen=True)
class Curve:
    """y = sum of coefficients[k] * x**k, with the 95 % confidence interval of the mean at each x.

    Of values that are never below 0, neither are the curve nor its interval.
    """

    coefficients: tuple[float, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def fit(x: Sequence[float], y: Sequence[float]) -> Curve | None:
    """Fit a parabola (attention in prefill costs L squared, the rest L), a line where lengths are few.

    Args:
        x: context lengths, tokens.
        y: the figure at each of them.

    Returns:
        None where there are fewer than LENGTHS_FOR_LINE different lengths.
    """
    different = len(set(x))
    if different < LENGTHS_FOR_LINE:
        return None
    degree = 2 if different >= LENGTHS_FOR_PARABOLA else 1
    lengths, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    scale = float(lengths.max())  # of order 1: the normal equations stay well conditioned
    design = _powers(lengths / scale, degree)
    coefficients, *_ = np.linalg.lstsq(design, values, rcond=None)
    # What is smaller than this is rounding, and another processor's libraries would say another number.
    noise = ROUNDING * np.finfo(float).eps * float(np.linalg.cond(design)) * float(np.abs(values).max())
    coefficients = np.where(np.abs(coefficients) > noise, coefficients, 0.0)
    free = len(values) - degree - 1
    residuals = values - design @ coefficients
    variance = float(np.sum(np.where(np.abs(residuals) > noise, residuals, 0.0) ** 2)) / free
    covariance = variance * np.linalg.inv(design.T @ design)
    grid = np.linspace(lengths.min(), scale, GRID)
    rows = _powers(grid / scale, degree)
    centre = rows @ coefficients
    half = t_quantile(0.975, free) * np.sqrt(np.einsum("ij,jk,ik->i", rows, covariance, rows).clip(min=0))
    least = 0.0 if values.min() >= 0 else -np.inf  # a time or a rate below 0 cannot be
    lines = (one.clip(min=least) for one in (centre, centre - half, centre + half))
    return Curve(
        tuple(float(c) / scale**k for k, c in enumerate(coefficients)),
        *(tuple(float(value) for value in line) for line in (grid, *lines)),
    )


def _powers(x: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    return np.vander(x, degree + 1, increasing=True)


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
