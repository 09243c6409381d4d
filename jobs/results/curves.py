"""A figure against context length: a least-squares curve with its interval, where there are points enough.

A figure scatters by a share of its size, so each point weighs by 1 / size squared, with the sizes of the curve itself
(iterated, as generalized linear models are: McCullagh, Nelder 1989, chapter 2.5): with equal weights the longest
length, which lies alone at the end, would pull the curve through itself. The interval is one of the logarithm (delta
method), so that it stays above 0. Of a rate the inverse is fitted, a time per token: a + b L + c L^2 is how times grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.core.student import t_quantile

LENGTHS_FOR_LINE = 4
LENGTHS_FOR_PARABOLA = 5
"""Different lengths that a curve needs. One more than coefficients would give an interval that says nothing."""

ROUNDING = 64
"""How many units of rounding error a least-squares fit may add up (a bound from Higham, Accuracy and Stability, 20.1,
is a small multiple of the condition number; this is that multiple)."""

GRID = 33
"""Lengths at which a curve is drawn."""

ROUNDS = 4
"""Times that weights are taken from the curve."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """y = sum of coefficients[k] * x**k (of a rate 1 / y), with the 95 % confidence interval of the mean at each x."""

    coefficients: tuple[float, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def fit(x: Sequence[float], y: Sequence[float], *, rate: bool = False) -> Curve | None:
    """Fit a parabola (attention in prefill costs L squared, the rest L), a line where lengths are few.

    `x`: context lengths, tokens. `y`: the figure at each, above 0. A `rate`, where more is better, is inverted.

    Returns:
        None where there are fewer than LENGTHS_FOR_LINE different lengths, or a figure or the curve is not above 0.
    """
    different = len(set(x))
    if different < LENGTHS_FOR_LINE or min(y) <= 0:
        return None
    degree = 2 if different >= LENGTHS_FOR_PARABOLA else 1
    lengths, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    values = 1 / values if rate else values
    scale = float(lengths.max())  # of order 1: the normal equations stay well conditioned
    design = _powers(lengths / scale, degree)
    grid = np.linspace(lengths.min(), scale, GRID)
    rows = _powers(grid / scale, degree)
    sizes = values
    for _ in range(ROUNDS):
        coefficients, covariance = _weighted(design, values, sizes)
        centre, sizes = rows @ coefficients, design @ coefficients
        if min(centre.min(), sizes.min()) <= 0:
            return None  # a time below 0 cannot be: these points lie on no such curve
    free = len(values) - degree - 1
    half = t_quantile(0.975, free) * np.sqrt(np.einsum("ij,jk,ik->i", rows, covariance, rows).clip(min=0)) / centre
    lines = [centre, centre * np.exp(-half), centre * np.exp(half)]
    if rate:
        lines = [1 / lines[0], 1 / lines[2], 1 / lines[1]]
    return Curve(
        tuple(float(c) / scale**k for k, c in enumerate(coefficients)),
        *(tuple(float(value) for value in line) for line in (grid, *lines)),
    )


def _weighted(design: Floats, values: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Return coefficients and their covariance, each point weighed by 1 / size squared."""
    scaled, ones = design / sizes[:, None], values / sizes
    coefficients, *_ = np.linalg.lstsq(scaled, ones, rcond=None)
    # What is smaller than this is rounding, and another processor's libraries would say another number.
    noise = ROUNDING * np.finfo(float).eps * float(np.linalg.cond(scaled))
    shares = np.abs(coefficients) * np.abs(scaled).max(axis=0)
    coefficients = np.where(shares > noise, coefficients, 0.0)
    residuals = ones - scaled @ coefficients
    free = len(values) - design.shape[1]
    variance = float(np.sum(np.where(np.abs(residuals) > noise, residuals, 0.0) ** 2)) / free
    return np.asarray(coefficients, dtype=np.float64), np.asarray(
        variance * np.linalg.inv(scaled.T @ scaled), dtype=np.float64
    )


def _powers(x: Floats, degree: int) -> Floats:
    return np.vander(x, degree + 1, increasing=True)
