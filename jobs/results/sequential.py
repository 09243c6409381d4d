"""A or B in the fewest measurements: a sequential test with bounded errors, and a bisection by it. Pure.

A measurement is the logarithm of the ratio of B's figure to A's, from one pair: two windows of one service one after
the other, or a start of each. Asked is whether B is better or worse by a difference d that the user names, or neither:
two sequential probability ratio tests (Wald 1947) run at once, 0 against +d and 0 against -d (Sobel, Wald 1949). B is
better where the first takes +d, worse where the second takes -d, and no different by d where both take 0. With
alpha / 2 on each side at most alpha of equal pairs are told apart, and at least 1 - beta of those that differ by d are.

The deviation s of a pair is that of all pairs so far, v = n - 1 degrees of freedom, and of earlier ones where there
are any. A boundary of a = log(1/p) for a known deviation becomes (v / 2) (p^(-2/v) - 1) (Hall 1962, "Some sequential
analogs of Stein's two-stage test", Biometrika 49), less 0.583 d / s, by which a sum that moves in steps lies beyond a
boundary when it passes it (Siegmund 1985, "Sequential Analysis", 10.2); for "better" and "worse" so much of that as
is certain of s, v / (v + 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jobs.core.student import student

ALPHA = BETA = 0.05
FIRST = 6
"""Pairs before anything is decided: a deviation of fewer is nothing to stand on."""

OVERSHOOT = 0.583
UNSURE = 10
"""Degrees of freedom from which half of the overshoot is taken off a boundary whose error is a false alarm: a deviation
that was found too small by few pairs would count twice there."""

SPENT = (0.7, 1.0)
"""Share of alpha for the boundary itself: the rest is what a deviation costs that is estimated anew with each pair. The
second where it is known beforehand to `ENOUGH` degrees of freedom. Found by simulation (benchmarks/decides.py)."""

ENOUGH = 30

CONTRADICTS = 1.0
"""Standard errors by which the variance of these pairs may lie above the known one. Beyond that they are of another day
or kind, and speak for themselves: a deviation that is too small by a third makes four times the false alarms."""

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


@dataclass(frozen=True)
class Known:
    """The deviation of a pair as earlier ones of its kind showed it, and its degrees of freedom."""

    deviation: float
    free: float


def decide(
    logs: Sequence[float],
    difference: float,
    known: Known | None = None,
    *,
    alpha: float = ALPHA,
    beta: float = BETA,
) -> Decision:
    """Return what pairs say.

    Args:
        logs: of the ratio of B to A, one a pair, in the order of time; above 0: B is better.
        difference: that is to be found, as a share (0.03: 3 %).
        known: what is known of the deviation beforehand; it counts as much as its degrees of freedom.
        alpha, beta: at most so many false alarms, and so many differences of this size that are not found.
    """
    data = np.asarray(logs, dtype=np.float64)
    count = len(data)
    if count < 2:
        return Decision("open", count, math.expm1(float(data.mean())) if count else 0.0, -1.0, math.inf)
    mean, squares, free = float(data.mean()), float(data.var(ddof=1)) * (count - 1), count - 1.0
    if known and squares / free > known.deviation**2 * (1 + CONTRADICTS * math.sqrt(2 / free + 2 / known.free)):
        known = None
    if known:
        squares, free = squares + known.free * known.deviation**2, free + known.free
    deviation = max(math.sqrt(squares / free), 1e-6)
    half = student(0.975, free) * deviation / math.sqrt(count)
    answer: Answer = "open"
    if free >= FIRST - 1:
        sure = min(1.0, known.free / ENOUGH) if known else 0.0
        spent = (SPENT[0] + (SPENT[1] - SPENT[0]) * sure) * alpha / 2
        answer = _answer(mean, deviation, count, free, math.log1p(difference), (spent, beta))
    return Decision(answer, count, math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half))


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


def known_of(groups: Sequence[Sequence[float]]) -> Known | None:
    """Return what earlier comparisons say of the deviation of a pair, by their logarithms; None: nothing.

    Each is taken around its own mean.
    """
    parts = [np.asarray(group, dtype=np.float64) for group in groups if len(group) > 1]
    free = sum(len(part) - 1 for part in parts)
    if not free:
        return None
    return Known(math.sqrt(sum(float(part.var(ddof=1)) * (len(part) - 1) for part in parts) / free), free)


def fixed_pairs(deviation: float, difference: float, alpha: float = ALPHA, beta: float = BETA) -> int:
    """Return the pairs that a design of a fixed number needs for the same errors: a t test of the mean of pairs."""
    step, count = math.log1p(difference), 2
    while True:
        free = count - 1
        need = (student(1 - alpha / 2, free) + student(1 - beta, free)) * deviation / step
        if count >= need**2:
            return count
        count += 1


def errors_of(items: int) -> tuple[float, float]:
    """Return alpha and beta of each comparison of a bisection that goes wrong in one of ten at most.

    A false "worse" is half of alpha: it errs on one side.
    """
    each = 0.1 / (1 + math.ceil(math.log2(max(2, items - 1))))
    return min(ALPHA, 2 * each), min(BETA, each)


def first_worse(items: int, worse: Callable[[int], bool]) -> int | None:
    """Return the place of the first item that is worse than the first one, by bisection; None: the last one is not.

    Args:
        items: how many there are, in order; once one is worse, all later ones are.
        worse: tells whether an item is worse than item 0.
    """
    if items < 2 or not worse(items - 1):
        return None
    low, high = 0, items - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if worse(middle) else (middle, high)
    return high
