"""Whether a service did the same all through a window: no drift, no throttling, no warm-up that was not over.

The window is cut into 5 to 10 parts, and the time that a token takes is told for each: the request-seconds in it by the
tokens that fall into it. It is told twice. In a closed loop over whole requests, where the tokens of each are spread
evenly over its time from the start to the last one: that is tokens/s turned round, or end-to-end latency by Little's
law, and rounds in step give a level line too. And over the gaps between token chunks, which no queue is in. What these
two hardly see, prefills that get slower, shows in the times to the first token: of each part their median, of those
that came in it, where the service says that hardly a request waited.

A service that comes and goes fits none of the shapes. In a closed loop of equal requests it is told by the slowest
quarter of the parts against the fastest: noise of 20 % an answer makes 1.9 of that in one of a hundred windows. And
slowness that is short is told by the time that it costs, over parts as short as a round: those in which a token took
several times as long as in the fastest quarter of them, whatever comes before and after. In an open loop prefills and
neighbours come and go too, so there the fast gaps of a part (their 10th percentile) must be slow. By these gaps, over
parts of a second or two, a swing is told too that comes again in a period or dies away, where the quarters cannot be
compared by rounds: in an open loop of equal requests, and in a closed one of unequal ones.

How far noise alone goes is measured in each window, by neighbouring parts: one that is twice as slow as others tells
nothing where every answer takes a fifth more or less than the next. And an answer that reaches over two parts makes
them alike, so that a level seems to hold where it is one slow answer: the fewer rounds a part has, the better a shape
must fit (`_alike`).

What is said is the change of the shape that fits best, where it fits far better than none: by an F test whose limit is
that of the best of all these shapes (shapes.py). `benchmarks/steady.py` has the
simulations from which the limits come, with the share of clean windows that they refuse and what they find.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from jobs.measure.gate.case import LIMIT, NEEDED_IN_FLIGHT, NOTED, Case, Finding, Found
from jobs.measure.gate.shapes import CHANCE, LEAST_PARTS, change
from jobs.measure.records import RequestRecord
from jobs.measure.statistics import in_one_piece

Floats = NDArray[np.float64]

MOST_PARTS = 10
LEAST_S = 3.0
"""Shortest part: what a machine does within a second or two is its scheduler's doing, and other programs'."""

NOISE = 0.2
"""Scatter of the answers that is allowed for, where neighbouring parts have so much; what is more is worth a note."""

TWICE, SOME, SMOOTH, SMOOTH_PARTS = 2.0, 1.25, 0.5, 12
"""Time of a token in the slowest quarter of the parts against the fastest from which a service came and went; and from
which it did where neighbouring parts are alike: squares of the differences of neighbours by those from the mean (von
Neumann 1941), which are 2 of noise, over so many parts at least."""

IN_GAPS = 2.2
"""Of the fast gaps of parts of a second or two, whatever the noise: one in 400 windows of 60 requests goes so far."""

FIRSTS = 5
"""Requests of a part from which their times to the first token have a median, and an open loop's prefills a mean."""

FINE_PARTS, FINE_GAPS, FAST_GAPS = 40, 10, 10.0
"""Most parts in which short slowness is looked for, gaps of one from which its fast ones tell, and their percentile."""

SLOW_CLOSED, SLOW_OPEN, PARTLY = 2.0, 2.6, 1.6
"""A token that takes so many times as long as in the fastest quarter of the parts is slow. In a closed loop a part that
is slow for most of its time counts too, where another one is slow."""

LOST_CLOSED, LOST_OPEN, LOST_LIMIT, LOST_ENGINE = 0.05, 0.08, LIMIT / (1 + LIMIT), 0.04
"""Share of the time that slow parts cost: noted, beyond which the mean is off by LIMIT, and noted of an engine."""

SWINGS = "the service was not steady: a token took {:.3g} times as long in the slowest quarter as in the fastest"

_QUARTER = NormalDist().inv_cdf(0.75)
"""A quarter of normal values lie so many standard deviations below their mean."""

WAITING, QUEUED = 0.5, 2.5
"""Requests waiting (mean) from which the time to the first token is a queue's, which comes and goes. And how far slow
ones of a part lie from fast ones (90th by 10th percentile) where a gateway holds a queue of its own."""


def steady(case: Case) -> Found:
    """Drift, throttling, and a warm-up that was not over.

    The load of a trace is another in each part, so that what is found in one is a note. Where a queue grows, an engine
    may get slower bit by bit.
    """
    window, bench = case.window, case.config.bench
    if not case.whole:
        return
    traced = bench.workload == "trace"
    counted = traced or bench.num_requests is not None
    until = max(r.start_s for r in case.counted) if counted else window.closed_s  # then it runs dry
    ours = [r for r in window.records if r.status == "ok" and not r.check]
    answers = [r for r in ours if r.output_tokens and len(r.chunk_times)]
    turns = bench.turns if bench.workload == "multi_turn" else 1  # each has a longer prompt than the one before
    # A part is no shorter than a round; where the service got slower that is one of the quick ones.
    open_loop = bench.is_open
    spans = [r.end_s - ((r.first_token_s if open_loop else None) or r.start_s) for r in case.whole]
    round_s = turns * float(np.percentile(spans, 25))
    rounds = int((until - window.opened_s) / max(round_s, LEAST_S))
    parts = min(MOST_PARTS, rounds, len(case.whole) // FIRSTS if open_loop else MOST_PARTS)
    if parts < LEAST_PARTS:
        yield Finding("the window is too short to tell whether the service was steady")
        return
    edges = np.linspace(window.opened_s, until, parts + 1)
    grows = bool(case.figures.get("saturated"))
    alike = 0.0 if open_loop else _alike((edges[1] - edges[0]) / round_s)
    gaps = _over_gaps(answers, edges)
    found = change(*gaps, open_loop=open_loop, bit_by_bit=not grows, alike=alike)
    if not open_loop:
        found = max(found, change(*_over_requests(answers, edges), open_loop=False, alike=alike))
    first = None if counted else _of_firsts(case, parts, open_loop=open_loop)
    if open_loop and first is None and not gaps[1].any():
        yield Finding("whether the service was steady is not known: answers of one token do not tell it here")
        return
    first = first or 0.0
    if max(found, first) > NOTED:
        what = f"the time of a token changed by {found:.0%}"
        if first > found:
            what = f"the time to the first token changed by {first:.0%}"
        why = "throttled, or another load?" if traced else "throttled, heated, or not yet warm?"
        words = f"the service was not steady: {what} over the window ({why})"
        yield Finding(words, max(found, first) > LIMIT and not traced)
    elif not grows:
        share, seconds, times = _slow(answers, window.opened_s, until, rounds, open_loop, turns) or (0.0, 0.0, 0.0)
        if share > (LOST_OPEN if open_loop else LOST_CLOSED):
            words = f"for {seconds:.0f} s of the window a token took up to {times:.2g} times as long as usual"
            invalid = share > LOST_LIMIT and not traced
            yield Finding(f"the service was not steady: {words} (throttled for a while?)", invalid)
        elif not case.of_equals and not traced and (not open_loop or case.alike):
            yield from _in_gaps(answers, window.opened_s, until, open_loop)
    if case.of_equals:
        yield from _comes_and_goes(answers, edges, rounds, quiet=max(found, first) <= NOTED)


def engines(case: Case) -> Found:
    """Engines of several that were slow for a while, in a closed loop of equal requests: all together may hide it."""
    window, series = case.window, case.window.series
    if not case.of_equals or not case.whole:
        return
    round_s = float(np.percentile([r.end_s - r.start_s for r in case.whole], 25))
    parts = min(FINE_PARTS, int(window.seconds / max(round_s, LEAST_S)))
    if parts < LEAST_PARTS:
        return
    edges = np.linspace(window.opened_s, window.closed_s, parts + 1)
    slow: dict[str, tuple[float, float, float]] = {}
    for engine in sorted({one.engine for one in series}) if case.config.parallel.engines > 1 else ():
        own = [(s.time_s, s.running, s.generated_tokens) for s in series if s.engine == engine]
        told = np.array([one for one in own if None not in one], dtype=np.float64)
        if len(told) < LEAST_PARTS or told[:, 1].mean() < NEEDED_IN_FLIGHT or (np.diff(told[:, 2]) < 0).any():
            continue
        times, running, tokens = told.T
        held = np.append(0.0, np.cumsum((running[1:] + running[:-1]) / 2 * np.diff(times)))
        busy, made = (np.diff(np.interp(edges, times, sums)) for sums in (held, tokens))
        cost = _cost(busy / np.maximum(made, 1.0), False, edges[1] - edges[0])
        if cost and cost[0] > LOST_ENGINE:
            slow[engine] = cost
    if slow:
        _, seconds, longer = max(slow.values())
        if len(slow) == 1:
            words = f"for {seconds:.0f} s of the window a token took it up to {longer:.2g} times as long as usual"
            yield Finding(f"engine {min(slow)} was not steady: {words}")
        else:
            words = f"for {seconds:.0f} s of the window a token took one up to {longer:.2g} times as long as usual"
            yield Finding(f"engines {', '.join(slow)} were not steady: {words}")


def _comes_and_goes(answers: Sequence[RequestRecord], edges: Floats, rounds: int, *, quiet: bool) -> Found:
    """Slow quarters of a closed loop; `quiet`: nothing was said of a change, so a smooth swing is worth a note."""
    measures = (_over_gaps, _over_requests)
    told = [over(answers, np.linspace(edges[0], edges[-1], min(FINE_PARTS, rounds) + 1)) for over in measures]
    limits = [max(TWICE, _apart(_levels(*one), len(edges) - 1)) for one in told]
    coarse = [_swing(*over(answers, edges)) for over in measures]
    if beyond := [swing for swing, limit in zip(coarse, limits, strict=True) if swing > limit]:
        yield Finding(f"{SWINGS.format(max(beyond))} (throttled now and then?)", True)
        return
    smooth = [_swing(*one) for one in told if quiet and rounds >= SMOOTH_PARTS and _regular(*one)]
    if (swing := max(smooth, default=1.0)) > SOME:
        yield Finding(SWINGS.format(swing))


def _in_gaps(answers: Sequence[RequestRecord], begin_s: float, end_s: float, open_loop: bool) -> Found:
    """Slow quarters by the fast gaps, which hold no prefill and are alike whatever the lengths of the requests."""
    edges = np.linspace(begin_s, end_s, min(2 * FINE_PARTS, int(2 * (end_s - begin_s) / LEAST_S)) + 1)
    levels = _fast_gaps(answers, edges)
    levels = _evened(levels, _over_gaps(answers, edges)[1]) if open_loop else levels
    known = levels[levels > 0]
    each, limit = np.ones(len(known)), min(IN_GAPS, max(SOME, _apart(known, len(known)) if len(known) > 3 else 0.0))
    if len(known) >= SMOOTH_PARTS and (swing := _swing(known, each)) > limit and _regular(known, each, alike=0.0):
        yield Finding(SWINGS.format(swing))


def _levels(busy: Floats, made: Floats) -> Floats:
    """Return the seconds for a token in each part that has any."""
    return busy[made > 0] / made[made > 0]


def _regular(busy: Floats, made: Floats, alike: float | None = None) -> bool:
    """Return whether neighbouring parts are more alike than noise would have them, or come again in a period.

    `alike`: correlation of neighbouring parts of noise; None: that of parts as long as a round.

    A period is told by the largest part of the periodogram (Fisher 1929, "Tests of significance in harmonic analysis"):
    noise of rounds, of which neighbours are alike, has so large a one in `CHANCE` of windows.
    """
    levels = np.log(_levels(busy, made))
    around = levels - levels.mean() if len(levels) >= SMOOTH_PARTS else np.zeros(1)
    waves = 2 * np.pi * np.arange(1, (len(around) + 1) // 2) / len(around)
    power = np.abs(np.fft.rfft(around)[1 : len(waves) + 1]) ** 2
    power /= 1 + 2 * (_alike(1.0) if alike is None else alike) * np.cos(waves)
    if not power.sum() > 0:
        return False
    smooth = float((np.diff(levels) ** 2).sum()) < SMOOTH * float((around**2).sum())
    return smooth or len(power) * (1 - power.max() / power.sum()) ** (len(power) - 1) < CHANCE


def _slow(
    answers: Sequence[RequestRecord], begin_s: float, end_s: float, rounds: int, open_loop: bool, turns: int
) -> tuple[float, float, float] | None:
    """Return what slow parts cost: the share of the time, their seconds, and how many times slower the slowest was.

    None: there are none, or the parts do not tell. Of `turns` of a conversation each has a longer prompt to read.
    """
    edges = np.linspace(begin_s, end_s, min(FINE_PARTS, rounds) + 1)
    told = [_evened(_fast_gaps(answers, edges), _over_gaps(answers, edges)[1])] if open_loop else []
    for over in () if open_loop else (_over_gaps, _over_requests)[: 1 if turns > 1 else 2]:
        busy, made = over(answers, edges)
        told.append(np.divide(busy, made, out=np.zeros_like(busy), where=made > 0))
    return max((one for levels in told if (one := _cost(levels, open_loop, edges[1] - edges[0]))), default=None)


def _evened(levels: Floats, made: Floats) -> Floats:
    """Return levels as if each part had made as many tokens: an engine takes longer for one where it makes more."""
    there = (levels > 0) & (made > 0)
    if there.sum() < LEAST_PARTS:
        return levels
    rates = made[there] / made[there].mean() - 1
    slope = max(0.0, float(rates @ np.log(levels[there])) / max(float(rates @ rates), 1e-9))
    evened = levels.copy()
    evened[there] *= np.exp(-slope * rates)
    return evened


def _cost(levels: Floats, open_loop: bool, each_s: float) -> tuple[float, float, float] | None:
    known = levels[levels > 0]
    if len(known) < LEAST_PARTS:
        return None
    usual = float(np.percentile(known, 25))
    limit = max(SLOW_OPEN if open_loop else SLOW_CLOSED, _slowest(known))
    if known.max() <= limit * usual:
        return None
    slow = known[known > (limit if open_loop else PARTLY) * usual]
    return float((1 - usual / slow).sum()) / len(levels), len(slow) * each_s, float(slow.max()) / usual


def _noise(levels: Floats) -> float:
    """Return the scatter of the logarithms of level parts, no more than is allowed for.

    By the median difference of neighbours, or by how far the fastest quarter lies below the median, whichever is more:
    one or two slow spells hardly move either.
    """
    if len(levels) < LEAST_PARTS:
        return 0.0
    logs = np.log(levels)
    apart = float(np.median(np.abs(np.diff(logs)))) / math.sqrt(2 * (1 - _alike(1.0)))
    return min(NOISE, max(apart, float(np.median(logs) - np.percentile(logs, 25))) / _QUARTER)


def _slowest(levels: Floats) -> float:
    """Return how many times slower than the fastest quarter one of level parts is by noise, in `CHANCE` of windows."""
    return math.exp(_noise(levels) * (NormalDist().inv_cdf(1 - CHANCE / len(levels)) + _QUARTER))


def _apart(levels: Floats, parts: int) -> float:
    """Return how many times slower the slowest quarter of so many parts is than the fastest by noise: both are."""
    quarters = parts / (parts // 4)
    return math.exp(_noise(levels) * 2 * NormalDist().inv_cdf(1 - math.sqrt(CHANCE) / quarters))


def _alike(rounds: float) -> float:
    """Return the correlation of neighbouring parts of so many rounds each: an answer reaches over the edge of two.

    For answers of equal length whose levels are independent: var = 1 / n - 1 / 3 n^2, cov = 1 / 6 n^2.
    """
    return 1 / (6 * max(rounds, 1.0) - 2)


def _fast_gaps(answers: Sequence[RequestRecord], edges: Floats) -> Floats:
    """Return for each part the time of a fast gap between token chunks, s; 0: it has too few; shape (parts,)."""
    several = [record.chunk_times for record in answers if not in_one_piece(record)]
    if not several:
        return np.zeros(len(edges) - 1)
    place = np.searchsorted(edges, np.concatenate([times[1:] for times in several]), side="right") - 1
    gaps = np.concatenate([np.diff(times) for times in several])
    parts = [gaps[place == part] for part in range(len(edges) - 1)]
    return np.array([np.percentile(one, FAST_GAPS) if len(one) >= FINE_GAPS else 0.0 for one in parts])


def _swing(busy: Floats, made: Floats) -> float:
    """Return the seconds for a token in the slowest quarter of the parts, as a multiple of those in the fastest."""
    levels = np.sort(np.log(_levels(busy, made)))
    if len(levels) < LEAST_PARTS:
        return 1.0
    quarter = len(levels) // 4
    return float(np.exp(levels[-quarter:].mean() - levels[:quarter].mean()))


def _of_firsts(case: Case, parts: int, *, open_loop: bool) -> float | None:
    """Return by which share the time to the first token changes over the window; None: it does not tell."""
    waiting = case.figures.get("waiting_mean")
    told = [(r.came_s, r.first_token_s - r.start_s) for r in case.whole if r.first_token_s is not None]
    parts = min(parts, len(told) // FIRSTS)
    if waiting is None or waiting > WAITING or parts < LEAST_PARTS:
        return None
    came, took = np.array(told).T
    edges = np.linspace(case.window.opened_s, case.window.closed_s, parts + 1)
    place = np.searchsorted(edges, came, side="right") - 1
    made = np.bincount(place, minlength=parts)[:parts].astype(np.float64)
    if open_loop and _queued([took[place == part] for part in range(parts)]):
        return None
    medians = np.array([np.median(took[place == part]) if made[part] else 0.0 for part in range(parts)])
    return change(medians * made, made, open_loop=open_loop)


def _queued(parts: Sequence[Floats]) -> bool:
    """Return whether requests wait all the same, in two parts at least: some of them far longer than others beside."""
    apart = sorted(float(np.divide(*np.percentile(part, (90, 10)))) for part in parts if len(part) >= FIRSTS)
    return len(apart) > 1 and apart[-2] > QUEUED


def _over_requests(answers: Sequence[RequestRecord], edges: Floats) -> tuple[Floats, Floats]:
    """Return for each part the seconds of a request by its tokens, and the tokens per second; shape (parts,) each."""
    begins = np.array([record.start_s for record in answers])
    spans = np.array([max(record.chunk_times[-1] - record.start_s, 1e-9) for record in answers])
    tokens = np.array([float(record.output_tokens or 0) for record in answers])
    passed = np.clip(edges[:, None] - begins, 0.0, spans)
    return np.diff(passed.sum(axis=1)), np.diff((passed * (tokens / spans)).sum(axis=1))


def _over_gaps(answers: Sequence[RequestRecord], edges: Floats) -> tuple[Floats, Floats]:
    """Return for each part the seconds between token chunks, and the tokens of these; shape (parts,) each."""
    several = [record for record in answers if not in_one_piece(record)]
    if not several:
        return np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    ends = np.concatenate([record.chunk_times[1:] for record in several])
    gaps = np.concatenate([np.diff(record.chunk_times) for record in several])
    each = np.concatenate([np.full(n - 1, (r.output_tokens or 0) / n) for r in several if (n := len(r.chunk_times))])
    return np.histogram(ends, edges, weights=gaps)[0], np.histogram(ends, edges, weights=each)[0]
