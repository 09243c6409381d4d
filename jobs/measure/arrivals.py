"""When the requests of an open loop arrive."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_ARRIVALS = 1  # keeps this stream of random numbers apart from that of the prompts
_BLOCK = 1024


def poisson(seed: int, rate: float) -> Iterator[float]:
    """Yield the arrival times of a Poisson process, in seconds from its start, for ever.

    Gaps are exponential with mean 1/rate and a pure function of the seed. The times are absolute: a slow
    service does not thin the load out.
    """
    draws = np.random.default_rng((seed, _ARRIVALS, _ARRIVALS))
    last = 0.0
    while True:
        for time in last + np.cumsum(draws.exponential(1.0 / rate, size=_BLOCK)):
            yield float(time)
            last = float(time)
