"""How rows lie beside the model of time, and what that says of points near them. Pure.

What a model leaves over is of two kinds: noise of a row, and what the model does not know of a machine, which a row
shares with rows like it (kriging of the residuals: Rasmussen, Williams 2006, "Gaussian Processes for Machine Learning",
2.7). Two rows are alike by how many doublings of each part of the load (prompt, answer, concurrency, rate, ...) lie
between them (Matérn 3/2, 4.2.1), and less where layout, model or release differ. What share of the scatter is of the
second kind is chosen by the likelihood of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jobs.forecast.fit import Floats

if TYPE_CHECKING:
    from jobs.forecast.learn import Subject

DOUBLINGS = 2.0
"""Length over which rows are alike."""

OTHERS = 0.5
"""Of likeness, for each name of the scope that differs."""

SHARES = (0.0, 0.5, 0.8, 0.95)
"""Of the scatter's variance, that may be alike; the first is where the fit begins."""


def likeness(some: Sequence[Subject], others: Sequence[Subject]) -> Floats:
    """Return how alike two points are, 1: the same to the model; [some, others]."""
    near = math.sqrt(3) / DOUBLINGS * np.linalg.norm(_lies(some)[:, None, :] - _lies(others)[None, :, :], axis=2)
    differ = np.array([[sum(one.scope[key] != two.scope[key] for key in one.scope) for two in others] for one in some])
    return np.asarray((1 + near) * np.exp(-near) * OTHERS**differ, dtype=np.float64)


def _lies(subjects: Sequence[Subject]) -> Floats:
    loads = [one.load for one in subjects]
    lies = [
        (
            one.prompt,
            one.output,
            one.concurrency,
            one.rate or 1,
            1 - one.cached,
            1 + one.drafted,
            one.batched,
            one.slots,
        )
        for one in loads
    ]
    return np.log2(np.maximum(lies, 1e-3))


@dataclass(frozen=True)
class Misfit:
    """How rows lie beside the model: of one figure.

    Attributes:
        rows: those that have the figure.
        whitener: inverse of Cholesky's root of their correlation.
        share: of the scatter that is alike.
    """

    rows: NDArray[np.intp]
    whitener: Floats
    share: float

    @classmethod
    def of(cls, alike: Floats, rows: NDArray[np.intp], share: float) -> Misfit:
        """Return it for some rows of those whose likeness is given."""
        within = alike[np.ix_(rows, rows)]
        root = np.linalg.cholesky(share * within + (1 - share) * np.eye(len(rows)))
        return cls(rows, np.linalg.inv(root), share)

    def white(self, values: Floats) -> Floats:
        """Return values of the rows [row, ...] as independent ones of the same deviation."""
        return np.asarray(self.whitener @ values, dtype=np.float64)

    def likely(self, off: Floats, first: float, free: float) -> float:
        """Return the logarithm of the likelihood of what rows are off by, but for a constant.

        Their variance is not known; the first guess of the deviation counts for `free` rows.
        """
        squares = free * first**2 + float(np.sum(self.white(off) ** 2))
        whole = float(np.sum(np.log(np.diag(self.whitener))))
        return whole - (free + len(off)) / 2 * math.log(squares)

    def weights(self, near: Floats) -> tuple[Floats, float]:
        """Return how much each row says of a point as alike to them as that, and what is left of its variance."""
        white = self.white(self.share * near[self.rows])
        return self.whitener.T @ white, 1 - float(white @ white)
