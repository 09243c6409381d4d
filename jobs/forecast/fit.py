"""Constants from measurements: least squares of logarithms with a prior (maximum a posteriori). Pure.

Residuals r(x) in units of their own standard deviation, a normal prior of mean m and standard deviations s: what is
least is |r|² + |(x - m) / s|²; the posterior is taken as normal around it, with the inverse of the curvature
(Gauss-Newton; Bishop 2006, "Pattern Recognition and Machine Learning", 4.4: Laplace's approximation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 30
WAYS = 8
"""Of a parameter's belief, half deviations up and down where a fit looks for its beginning."""

STEP = 1e-4
"""Of the numeric derivative; parameters are logarithms."""


@dataclass(frozen=True)
class Posterior:
    """What is believed of the parameters after the measurements."""

    mean: Floats
    covariance: Floats


def slopes(residuals: Callable[[Floats], Floats], at: Floats) -> Floats:
    """Return the derivatives of the residuals, one column a parameter."""
    columns = []
    for k in range(len(at)):
        step = np.zeros_like(at)
        step[k] = STEP
        columns.append((residuals(at + step) - residuals(at - step)) / (2 * STEP))
    return np.stack(columns, axis=1)


def fit(
    residuals: Callable[[Floats], Floats], mean: Floats, deviation: Floats, begin: Floats | None = None
) -> Posterior:
    """Return the posterior of the parameters; the residuals are in units of their measurement's standard deviation.

    `begin`: where to look first; None: at the prior's mean.
    """
    weight = np.diag(1 / deviation**2)
    at = (mean if begin is None else begin).copy()

    def cost(x: Floats) -> float:
        return float(np.sum(residuals(x) ** 2) + np.sum(((x - mean) / deviation) ** 2))

    best = cost(at)
    for _ in range(STEPS):
        jacobian, found = slopes(residuals, at), residuals(at)
        step = -np.linalg.solve(jacobian.T @ jacobian + weight, jacobian.T @ found + weight @ (at - mean))
        size = 1.0
        while size > 1e-3 and not (reached := cost(at + size * step)) < best:
            size /= 2
        if size <= 1e-3:
            break
        at = at + size * step
        last, best = best, reached
        if last - best < 1e-8 * max(1.0, last):
            break
    jacobian = slopes(residuals, at)
    return Posterior(at, np.asarray(np.linalg.inv(jacobian.T @ jacobian + weight), dtype=np.float64))


def near(residuals: Callable[[Floats], Floats], mean: Floats, deviation: Floats, first: int) -> Floats:
    """Return where a fit of a wide prior had better begin: the `first` parameters are tried one after the other, twice.

    Far from its measurements a model may not depend on a parameter at all (arithmetic that takes no time beside the
    rest), and slopes do not lead to it.
    """

    def cost(x: Floats) -> float:
        return float(np.sum(residuals(x) ** 2) + np.sum(((x - mean) / deviation) ** 2))

    at = mean
    for k in [*range(first), *range(first)]:
        ways = [at.copy() for _ in range(-WAYS, WAYS + 1)]
        for way, there in enumerate(ways):
            there[k] = mean[k] + (way - WAYS) * deviation[k] / 2
        at = min([at, *ways], key=cost)
    return at
