"""Whether 99 % of all requests keep an objective, from a sample of them: kept, broken, or not known. Pure.

The bound is Clopper and Pearson's (1934), one-sided: kept is said where a service of which 1 % of the requests miss
would show so few misses with a probability of at most 5 %, broken where it would show so many with at most that. So 299
requests without a miss are the least that tell; MLPerf's LoadGen, which asks for 99 % confidence in its early stopping,
wants 459 (mlcommons/inference, loadgen/early_stopping.cc). A failed request and one that was cut off are misses.
"""

from __future__ import annotations

import math
from functools import cache

SHARE, DOUBT = 0.99, 0.05
"""Of the requests that are to keep every limit; and the probability of being wrong at the edge."""

WINDOWS = 6
"""Windows that a search measures at one load, and again to confirm it, until what it asks is known."""


def at_most(misses: int, total: int) -> float:
    """Return the probability of at most so many misses where 1 - SHARE of the requests miss (binomial)."""
    odds = math.log((1 - SHARE) / SHARE)
    logs = [_choose(total, count) + count * odds + total * math.log(SHARE) for count in range(min(misses, total) + 1)]
    most = max(logs, default=-math.inf)
    return min(1.0, math.exp(most) * sum(math.exp(log - most) for log in logs)) if logs else 0.0


def _choose(total: int, count: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)


def decided(misses: int, total: int) -> bool | None:
    """Return whether the objective is kept (True) or broken (False) by so many misses; None: they do not tell."""
    if not total:
        return None
    if at_most(misses, total) <= DOUBT:
        return True
    return False if misses and 1 - at_most(misses - 1, total) <= DOUBT else None


@cache
def needed(misses: int) -> int:
    """Return how many requests would tell that the objective is kept, with so many misses among them."""
    low, high = misses, 299 + misses
    while at_most(misses, high) > DOUBT:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at_most(misses, middle) <= DOUBT else (middle, high)
    return high


def may_tell(misses: int, total: int, more_misses: int, more: int) -> bool:
    """Return whether `more` requests may decide: that it is kept, if none misses; broken, if `more_misses` do."""
    return needed(misses) <= total + more or decided(misses + more_misses, total + more) is False


def words(misses: int, total: int) -> str:
    """Return what is to be said where nothing is decided."""
    return (
        f"{misses} of {total} requests missed bench.slo: whether {SHARE:.0%} of all keep it is not known,"
        f" {needed(misses)} with no more misses would tell"
    )
