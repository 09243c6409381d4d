"""Times without any token: of the whole service, and of one engine beside others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.measure.gate.case import LIMIT, NEEDED_IN_FLIGHT, NEEDED_NEARLY, NOTED, Case, Finding, Found
from jobs.measure.records import RequestRecord, Sample, Window, by_moment

Floats = NDArray[np.float64]

BLOCKED_TTFTS = 3.0
"""A silence no longer than so many median TTFTs may be the prefill of a long prompt, which others wait for."""

PAUSE_S, STALL_S = 1.0, 10.0
"""A shorter silence is no pause; a longer one is told, however long the window."""

USUAL_GAPS = 5.0
"""A silence of so many median gaps between tokens is unusual."""

READ_S = 1.0
"""Counters are read once a second."""

SHORT_S, SHORT_GAPS = 0.2, 3.0
"""Shortest silence that is a pause where no prompt waits to be read, s and in median gaps between tokens."""

IDLE_ROUNDS = 3.0
"""An engine without a request for so many answers of the others is left out: a balancer's chance lasts for one."""


def pauses(case: Case) -> Found:
    """Times without any token while answers were on their way: one long pause, or many that add up.

    A prefill that holds up the answers beside it is no pause: it is no longer than prompts usually take. A pause in the
    drain counts too: requests of the window wait in it, and with them the rates of a closed loop.
    """
    window = case.window
    _, lasting = _gaps(window.records, window.opened_s, window.closed_s + window.drain_s, PAUSE_S)
    ttft, gap = case.figures["ttft_ms_p50"] or 0.0, _piece_s(case.whole)
    usual = max(PAUSE_S, BLOCKED_TTFTS * ttft / 1e3, USUAL_GAPS * gap)
    long = lasting[lasting > usual]
    share = float(long.sum()) / max(window.seconds, 1e-9)
    if share > NOTED or (long > STALL_S).any():
        many = f", in {long.size} pauses" if long.size > 1 else ""
        yield Finding(f"no token came for {long.sum():.0f} s of the window{many}", share > LIMIT)
        return
    short = _unexplained(window, max(SHORT_S, SHORT_GAPS * gap), BLOCKED_TTFTS * ttft / 1e3)
    if short.sum() > NOTED * window.seconds:
        many = f"in {short.size} short pauses without a prompt to read"
        yield Finding(
            f"no token came for {short.sum():.0f} s of the window, {many}", short.sum() > LIMIT * window.seconds
        )
        return
    for engine in sorted({one.engine for one in window.series}):
        stood = [span for span in _stood_still(case, engine) if span > usual + READ_S]
        if sum(stood) > max(NOTED * window.seconds, STALL_S):
            words = f"engine {engine} made no token for {sum(stood):.0f} s of the window while it had requests"
            yield Finding(words, sum(stood) > LIMIT * window.seconds)
    yield from _left_out(case)


def _left_out(case: Case) -> Found:
    """An engine that had no request for long while each of the others had several: was it gone for a while?"""
    window, ranks = case.window, case.config.parallel.engines
    usual = IDLE_ROUNDS * (case.figures["e2el_ms_p50"] or 0.0) / 1e3
    least = max(NOTED * window.seconds, STALL_S, usual)
    inside = [one for one in window.series if window.holds(one.time_s) and one.running is not None]
    load = by_moment((one.time_s, one.running) for one in inside)
    for engine in sorted({one.engine for one in inside} if ranks > 1 else ()):
        own = [one for one in inside if one.engine == engine]
        needed = (not one.running and load[one.time_s] >= NEEDED_NEARLY * NEEDED_IN_FLIGHT * ranks for one in own)
        longest = max(_spans(own, needed), default=0.0)
        if least < longest < window.seconds - 2 * READ_S:  # one that served nothing at all is named elsewhere
            yield Finding(
                f"engine {engine} had no request for {longest:.0f} s of the window while the others had several"
            )


def _spans(own: Sequence[Sample], met: Iterator[bool]) -> Iterator[float]:
    """Yield for how long a condition was met without a break, s."""
    for holds, group in itertools.groupby(zip(own, met, strict=True), key=lambda pair: pair[1]):
        times = [one.time_s for one, _ in group]
        if holds:
            yield times[-1] - times[0]


def _stood_still(case: Case, engine: str) -> Iterator[float]:
    """Yield the times in the window in which the tokens of an engine did not rise while it had requests, s."""
    window = case.window
    own = [one for one in window.series if one.engine == engine and window.holds(one.time_s)]
    for _, alike in itertools.groupby((one for one in own if one.running), key=lambda one: one.generated_tokens):
        times = [one.time_s for one in alike if one.generated_tokens is not None]
        yield times[-1] - times[0] if times else 0.0


def _piece_s(records: Sequence[RequestRecord]) -> float:
    """Return the median time between two pieces of an answer, s; tokens that came at one moment are one piece."""
    gaps = np.concatenate([np.diff(record.chunk_times) for record in records]) if records else np.empty(0)
    apart = gaps[gaps > 0]
    return float(np.median(apart)) if apart.size else 0.0


def _unexplained(window: Window, least_s: float, most_s: float) -> Floats:
    """Return what silences of so many seconds at least last beside the time in which a prompt waited to be read, s.

    One that came in a silence explains it for so many seconds at most, `most_s`.
    """
    begins, lasting = _gaps(window.records, window.opened_s, window.closed_s, least_s)
    waits = np.array([(r.start_s, r.end_s if r.first_token_s is None else r.first_token_s) for r in window.records])
    left = []
    for begin, end in zip(begins, begins + lasting, strict=True):
        at, free = begin, 0.0
        for start, first in sorted(map(tuple, waits[(waits[:, 0] < end) & (waits[:, 1] > begin)])):
            free, at = free + max(0.0, start - at), max(at, min(first, max(start, begin) + most_s))
        left.append(free + max(0.0, end - at))
    found = np.array(left)
    return found[found >= least_s]


def _gaps(records: Sequence[RequestRecord], opened_s: float, closed_s: float, least_s: float) -> tuple[Floats, Floats]:
    """Return when times without a token began while an answer was under way, and how long they were, s each."""
    times = np.concatenate([record.chunk_times for record in records]) if records else np.empty(0)
    inside = np.unique(times[(times >= opened_s) & (times < closed_s)])
    gaps, begins = np.diff(inside), inside[:-1]
    long = np.flatnonzero(gaps > least_s)
    spans = [(r.chunk_times[0], r.end_s) for r in records if len(r.chunk_times)]
    kept = [i for i in long if any(a <= begins[i] + 1e-9 and b >= begins[i] + gaps[i] for a, b in spans)]
    return begins[kept], gaps[kept]
