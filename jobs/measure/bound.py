"""Whether 99 % of all requests keep an objective, from a sample of them: kept, broken, or not known. Pure.

The bound is Clopper and Pearson's (1934), one-sided: kept is said where a service of which 1 % of the requests miss
would show so few misses with a probability of at most 5 %, broken where it would show so many with at most that. So 299
requests without a miss are the least that tell; MLPerf's LoadGen, which asks for 99 % confidence in its early stopping,
wants 459 (mlcommons/inference, loadgen/early_stopping.cc). A failed request and one that was cut off are misses.

That is of requests that miss independently of each other. Before a queue, or beside a stall, they miss together, and
ten that did tell no more than one. How many come together is told by those that come near a limit, since of misses
there are few: by how unevenly they lie over the parts of a window (index of dispersion: Cox, Lewis, "The Statistical
Analysis of Series of Events", 1966; as the extremal index of Leadbetter 1983 it hardly depends on how near is near). So
many requests count as one (design effect: Kish, "Survey Sampling", 1965).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

SHARE, DOUBT = 0.99, 0.05
"""Of the requests that are to keep every limit; and the probability of being wrong at the edge."""

WINDOWS = 10
"""Windows that a search measures at one load, and again to confirm it, until what it asks is known."""

NEAR, SLOWEST, PARTS = 0.5, 0.1, 10
"""Share of a limit from which a request comes near to it, and of the requests that do so at most; parts of a window."""

APART, MISSED = 1.01, 5
"""Factor by which near misses lie above the others: what jitters is no miss. And misses that tell of themselves."""

UNEVEN = 1.64
"""Standard deviations beyond which near misses lie unevenly (5 %, one-sided); what is less is chance."""

Floats = NDArray[np.float64]


def together(came: Floats, shares: Floats) -> float | None:
    """Return how unevenly the near misses of a window lie over it, 1: as chance has it; None: there are hardly any.

    Args:
        came: when each request came.
        shares: what each took, as a share of its limit (of several the largest share); shape as `came`.
    """
    if len(shares) < 2 * PARTS:
        return None
    slow = float(np.quantile(shares, 1 - SLOWEST, method="lower"))  # one that failed has no share between others
    missed = (shares > 1).sum() >= MISSED
    near = shares[np.argsort(came, kind="stable")] > (1.0 if missed else max(NEAR, APART * min(slow, 1.0)))
    share = float(near.mean())
    if near.sum() < 2 or share == 1:
        return 1.0
    parts = np.array_split(near, PARTS)
    count, of = (np.array([one(part) for part in parts]) for one in (np.sum, len))
    return float(((count - of * share) ** 2 / (of * share * (1 - share))).sum()) / (PARTS - 1)


def pooled(windows: Iterable[float | None]) -> float:
    """Return how many requests tell as much as one, by what `together` says of several windows; 1 at least."""
    known = [one for one in windows if one is not None]
    mean = sum(known) / len(known) if known else 1.0
    return mean if known and mean > 1 + UNEVEN * math.sqrt(2 / (PARTS - 1) / len(known)) else 1.0


def at_most(misses: int, total: int) -> float:
    """Return the probability of at most so many misses where 1 - SHARE of the requests miss (binomial)."""
    odds = math.log((1 - SHARE) / SHARE)
    logs = [_choose(total, count) + count * odds + total * math.log(SHARE) for count in range(min(misses, total) + 1)]
    most = max(logs, default=-math.inf)
    return min(1.0, math.exp(most) * sum(math.exp(log - most) for log in logs)) if logs else 0.0


def _choose(total: int, count: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)


def decided(misses: int, total: int, together: float = 1.0) -> bool | None:
    """Return whether the objective is kept (True) or broken (False) by so many misses; None: they do not tell.

    `together`: requests that tell as much as one (`pooled`).
    """
    count = int(total / together + _ROUND)
    if not count:
        return None
    if at_most(math.ceil(misses / together - _ROUND), count) <= DOUBT:
        return True
    alone = int(misses / together + _ROUND)
    return False if alone and 1 - at_most(alone - 1, count) <= DOUBT else None


_ROUND = 1e-9


def needed(misses: int, together: float = 1.0) -> int:
    """Return how many requests would tell that the objective is kept, with so many misses among them."""
    return math.ceil(_needed(math.ceil(misses / together - _ROUND)) * together - _ROUND)


@cache
def _needed(misses: int) -> int:
    low, high = misses, 299 + misses
    while at_most(misses, high) > DOUBT:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at_most(misses, middle) <= DOUBT else (middle, high)
    return high


def may_tell(misses: int, total: int, more_misses: int, more: int, together: float = 1.0) -> bool:
    """Return whether `more` requests may decide: that it is kept, if none misses; broken, if `more_misses` do."""
    if needed(misses, together) <= total + more:
        return True
    return decided(misses + more_misses, total + more, together) is False


def words(misses: int, total: int, together: float = 1.0) -> str:
    """Return what is to be said where nothing is decided."""
    more = needed(misses, together)
    if together == 1:
        return (
            f"{misses} of {total} requests missed bench.slo: whether {SHARE:.0%} of all keep it is not known,"
            f" {more} with no more misses would tell"
        )
    return (
        f"{misses} of {total} requests missed bench.slo, and slow ones come {together:.2g} at a time: whether"
        f" {SHARE:.0%} of all keep it is not known, {more} with no more misses would tell"
    )
