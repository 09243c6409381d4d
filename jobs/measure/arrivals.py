"""When the requests of an open loop come.

**Poisson, with the asked count.** A Poisson process of which one knows that N arrivals fell into [0, T) has them at N
independent uniform times, in order (Ross, Introduction to Probability Models, "Conditional Distribution of the Arrival
Times"; Cox & Lewis, The Statistical Analysis of Series of Events, 1966, chapter 2). So each window draws as many times
as its rate asks for, to the nearest whole number, and sorts them: gaps and bursts are those of a Poisson process, and
only the scatter of N is gone, by which a window of 60 requests would be off its rate by 13 %. What comes after is drawn
likewise, one span of the same length after the other.

**Of its own for each window.** The times are a function of (`bench.seed`, number of the window in its point, rate,
length of the window): every repeat and every probe of a search meets others, and the n-th window of every setting
that is compared meets the same. They begin at the opening of the window, whenever that was: how long a service needs
to get warm moves none of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jobs.core.config import Bench

_BRANCH = 1
"""Of the seed, apart from prompts and lengths."""


def poisson(bench: Bench, window: int, *, warming: bool = False) -> Iterator[float]:
    """Yield the times at which requests come, in seconds from the opening of a window of the point, for ever.

    The first span, that of `bench.window_s` or of `bench.num_requests`, holds `count` of them. While it is `warming`,
    the times are those before the window, from the begin of the load.
    """
    rate = bench.request_rate or 0.0
    span = bench.num_requests / rate if bench.num_requests else bench.window_s
    draws = np.random.default_rng(np.random.SeedSequence(bench.seed, spawn_key=(_BRANCH, window, int(warming))))
    begin, sent, until = 0.0, 0, count(bench)
    while True:
        for time in np.sort(draws.uniform(begin, begin + span, size=until - sent)):
            yield float(time)
        begin, sent = begin + span, until
        until = max(sent, round(rate * (begin + span)))


def count(bench: Bench) -> int:
    """Return how many requests come in a window: at least one."""
    return bench.num_requests or max(1, round((bench.request_rate or 0.0) * bench.window_s))
