"""A or B in the fewest measurements: a sequential test with bounded errors, and a bisection by it. Pure.

A pair is the logarithm of A's figure and that of B's, from two windows of one service one after the other, or from a
start of each. Asked is whether B is better or worse by a difference d that the user names, or neither: two sequential
probability ratio tests (Wald 1947) run at once, 0 against +d and 0 against -d (Sobel, Wald 1949). B is better where the
first takes +d, worse where the second takes -d, and no different by d where both take 0. With alpha / 2 on each side at
most alpha of equal pairs are told apart, and at least 1 - beta of those that differ by d are.

The deviation s of a pair is learnt from these pairs alone. Starts are independent of each other, so that each is held
against the others of its setting, once a straight line over the pairs is taken out of both (a cluster that gets slower
by the hour): v = 2n - 3 degrees of freedom of n pairs. Windows drift in other ways too, which adjacent ones share:
there it is the differences that count, v = n - 1. A boundary of a = log(1/p) for a known deviation becomes
(v / 2) (p^(-2/v) - 1) (Hall 1962, "Some sequential analogs of Stein's two-stage test", Biometrika 49), less
0.583 d / s, by which a sum that moves in steps lies beyond a boundary when it passes it (Siegmund 1985, "Sequential
Analysis", 10.2); for "better" and "worse" so much of that as is certain of s, v / (v + UNSURE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jobs.core.student import student

Floats = NDArray[np.float64]

ALPHA = BETA = 0.05
FREE = 5
"""Degrees of freedom before anything is decided: a deviation of fewer is nothing to stand on."""

OVERSHOOT = 0.583
UNSURE = 6
"""Degrees of freedom from which half of the overshoot is taken off a boundary whose error is a false alarm: a deviation
that was found too small by few pairs would count twice there."""

SPENT, EARLY, SOON = 0.6, 1.0, 8
"""Share of alpha for the boundary itself, and how much more of it early, falling by e with so many degrees of freedom.
The rest of alpha is what a deviation costs that is estimated anew with each pair: where many pairs are needed there are
many looks at it, and where few are needed few. Found by simulation (benchmarks/decides.py)."""

LEAST = 1e-6
"""Deviation of a pair at least, where figures are alike to the last digit."""

Logs = tuple[float, float]
"""Of one pair: the logarithm of A's figure and of B's, higher is better."""

Answer = Literal["better", "worse", "same", "open"]


@dataclass(frozen=True)
class Decision:
    """What pairs say of B against A.

    Attributes:
        answer: better, worse or same (by less than the difference that was named); open: more pairs are needed.
        pairs: how many there were.
        ratio: of B to A, geometric mean - 1.
        low, high: its 95 % interval, as if the number of pairs had been fixed.
    """

    answer: Answer
    pairs: int
    ratio: float
    low: float
    high: float


def first_pairs(*, by_turns: bool) -> int:
    """Return the number of pairs before which nothing is decided."""
    return FREE + 1 if by_turns else math.ceil((FREE + 3) / 2)


def decide(
    pairs: Sequence[Logs], difference: float, *, by_turns: bool = False, alpha: float = ALPHA, beta: float = BETA
) -> Decision:
    """Return what pairs, in the order of time, say.

    Args:
        difference: that is to be found, as a share (0.03: 3 %).
        by_turns: they are windows, of which adjacent ones share what drifts.
        alpha, beta: at most so many false alarms, and so many differences of this size that are not found.
    """
    data = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    count = len(data)
    mean = float((data[:, 1] - data[:, 0]).mean()) if count else 0.0
    if count < 2:
        return Decision("open", count, math.expm1(mean), -1.0, math.inf)
    deviation, free = _deviation(data, by_turns=by_turns)
    half = student(0.975, free) * deviation / math.sqrt(count)
    answer: Answer = "open"
    if free >= FREE:
        spent = (SPENT + EARLY * math.exp(-free / SOON)) * alpha / 2
        answer = _answer(mean, deviation, count, free, math.log1p(difference), (spent, beta))
    return Decision(answer, count, math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half))


def _deviation(data: Floats, *, by_turns: bool) -> tuple[float, float]:
    """Return the deviation of a pair, and its degrees of freedom; of two pairs at least."""
    count = len(data)
    if by_turns:
        return max(float((data[:, 1] - data[:, 0]).std(ddof=1)), LEAST), count - 1.0
    off = data - data.mean(axis=0)
    time = np.arange(count) - (count - 1) / 2
    off -= np.outer(time, np.full(2, float((off.T @ time).sum()) / (2 * float(time @ time))))
    free = 2.0 * count - 3
    return max(math.sqrt(2 * float(np.sum(off**2)) / free), LEAST), free


def _answer(mean: float, deviation: float, count: int, free: float, step: float, errors: tuple[float, float]) -> Answer:
    up, down = (_boundary(p, free) for p in errors)
    beyond = OVERSHOOT * step / deviation
    down, up = max(down - beyond, down / 2), max(up - beyond * free / (free + UNSURE), up / 2)
    evidence = [step / deviation**2 * count * (sign * mean - step / 2) for sign in (1, -1)]
    if evidence[0] >= up:
        return "better"
    if evidence[1] >= up:
        return "worse"
    return "same" if max(evidence) <= -down else "open"


def _boundary(p: float, free: float) -> float:
    """Return the evidence that is needed, with the deviation known to so many degrees of freedom."""
    return float(free / 2 * (p ** (-2 / free) - 1))


def errors_of(items: int) -> tuple[float, float]:
    """Return alpha and beta of each comparison of a bisection that goes wrong in one of ten at most.

    A false "worse" is half of alpha: it errs on one side.
    """
    each = 0.1 / (1 + math.ceil(math.log2(max(2, items - 1))))
    return min(ALPHA, 2 * each), min(BETA, each)


def first_worse(items: int, worse: Callable[[int], bool]) -> int | None:
    """Return the place of the first item that is worse than item 0, by bisection; None: the last one is not.

    Once one is worse, all later ones are.
    """
    if items < 2 or not worse(items - 1):
        return None
    low, high = 0, items - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if worse(middle) else (middle, high)
    return high
