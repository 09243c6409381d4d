"""When the requests of an open loop arrive."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_ARRIVALS = (1,)  # a branch of the seed of its own, apart from the prompts
_BLOCK = 1024


def poisson(seed: int, rate: float) -> Iterator[float]:
    """Yield the arrival times of a Poisson process, in seconds from its start, for ever.

    Gaps are exponential with mean 1/rate and a pure function of the seed. The times are absolute: a slow
    service does not thin the load out. N arrivals scatter by sqrt(N), as the real thing does: with few in a
    window the rate that was realised may be well off the one that was asked for.
    """
    draws = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=_ARRIVALS))
    last = 0.0
    while True:
        for time in last + np.cumsum(draws.exponential(1.0 / rate, size=_BLOCK)):
            yield float(time)
            last = float(time)
