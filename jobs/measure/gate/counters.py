"""The engines' own counters against what we asked of them, from above and from below."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.core.config import Config
from jobs.core.load import turn_input
from jobs.measure.gate.case import NEEDED_IN_FLIGHT, NEEDED_NEARLY, Case, Finding, Found
from jobs.measure.metrics import ALL
from jobs.measure.records import Growth, RequestRecord, Window, by_moment
from jobs.measure.series import generated
from jobs.measure.statistics import arrived_tokens, tokens_a_chunk

COUNTED_SHARE = 0.005
"""By which usage and the engines' counters may differ over a whole run, which has no moments at its ends."""

FOREIGN_SHARE = 0.05
"""Tokens beyond ours of which the rest is taken to be the difference of moments: a page is read, a token on its way."""

FOREIGN_IN_FLIGHT = 4
"""Further tokens for each request in flight, for the same reason. vLLM renders a page in a thread beside its event
loop (prometheus-fastapi-instrumentator), so that one counter of a page may be some steps ahead of another."""

LEAST_SHARE, NOTED_SHARE = 0.25, 0.75
"""Of an even part of the tokens: below the first a data-parallel rank took no part, below the second it is noted."""

ENOUGH_TO_BALANCE, FEW_TO_BALANCE = 50, 8
"""Requests for each data-parallel rank: with fewer than the first an uneven window is chance, with fewer than the
second not even worth a note. vLLM balances by counts that are 0.1 s old, so requests in step may all go one way."""

UNEVEN = 2.6
"""Standard deviations by which the least share is less than even: a service that draws an engine for each request gives
one so little in one of a hundred windows or two."""

SLOWER = 1.5
"""An engine that holds a request for so many times as long as another one, for each of its tokens, is slower."""

SLOWER_READING = 2.0
"""The same of prompts: where few slots send equal requests, those of one engine fall into step and are read together,
those of the other are not, and so it stays (1.6 times as long at most; benchmarks/prefills.py)."""

ENOUGH_FOR_PACE = 20
"""Requests for each rank: where each answer takes a fifth more or less, the mean of so many is known to a twentieth."""

GAUGED = 100
"""Requests seen in all readings of a window together from which their mean is known to a tenth."""

SCATTERED = 4
"""So many times more requests are needed where their lengths scatter: an engine may have got the longer prompts."""

ROUNDS_TO_BALANCE = 2.0
"""Requests for each that is in flight (mean) with fewer of which a silent engine is chance: those of one round are sent
in step, and 16 of them go to one engine of two in one window of ten or so (rehearsal, windows of 1 s)."""

UNINTENDED_HITS = 0.02
"""Share of prompt tokens found in a prefix cache beyond what is intended: equal words of a chat template, no more."""

AROUND_S = 1.5
"""A gauge may be so old: a busy service hears late that it is asked, and counts once a step."""

SEEN_SHARE, SEEN_LEAST = 0.05, 3
"""Readings in which the engines hold more requests than we sent: share and number that no moment of change explains."""


def of_load(case: Case) -> Found:
    """Every check of this file that a window of our own client allows."""
    served, window = case.window.engine_tokens, case.window
    yield from not_checked(case.config, window)
    yield from restarted(window)
    yield from balance(case.config, served, len(case.counted), case.in_flight)
    paces = list(pace(case))
    yield from paces or prefills(case.config, window.growth)
    yield from foreign(case)
    yield from usage(case)
    longest = max(((r.prompt_tokens or 0) + (r.output_tokens or 0) for r in window.records), default=0)
    repeated = sum(r.prompt_tokens or 0 for r in window.records if r.check) / (window.growth.prefix_queries or 1)
    yield from hits(case.config, window.growth, longest, repeated)


def not_checked(config: Config, window: Window) -> Found:
    """What a service that does not tell leaves open."""
    aged_s = window.growth.aged_s
    if aged_s:
        words = f"the service's page of counters is a copy that is up to {aged_s:.0f} s old"
        yield Finding(f"{words}: requests of others are not checked by their number")
    if not window.engine_tokens:
        yield Finding("the service tells no counters: requests of others, idle engines and cache hits are not checked")
        return
    unknown = [] if window.finished is not None or aged_s else ["requests of others by their number"]
    if window.growth.prefix_queries is None and config.parallel.enable_prefix_caching is not False:
        unknown.append("cache hits")
    if unknown:
        yield Finding(f"the service does not tell all counters: {' and '.join(unknown)} are not checked")
    seen = {sample.engine for sample in window.series if sample.generated_tokens is not None}
    if gone := sorted(seen - window.growth.tokens.keys()) if ALL not in window.growth.tokens else []:
        yield Finding(f"the counters of engine {', '.join(gone)} were gone at the end of the window: did it end?")


def restarted(window: Window) -> Found:
    """An engine whose counters began anew: of what it did before nothing is known, and it was gone for a while.

    Where engines have got other numbers all of them together have made as many tokens as before.
    """
    inside = [one for one in window.series if window.holds(one.time_s)]
    fell = {two[0] for one, two in itertools.pairwise(generated(inside)) if two[1] < one[1]}
    last, anew = dict[str, float](), set[str]()
    for one in inside:
        if one.generated_tokens is not None:
            if one.time_s in fell and one.generated_tokens < last.get(one.engine, 0.0):
                anew.add(one.engine)
            last[one.engine] = one.generated_tokens
    if anew:
        yield Finding(
            f"the counters of engine {', '.join(sorted(anew))} began anew in the window: it was restarted", True
        )


def balance(config: Config, served: Mapping[str, int], requests: int, in_flight: float | None) -> Found:
    """Data-parallel ranks that made no token or hardly any, where the load needed them.

    Args:
        config: of the point.
        served: tokens by rank; empty: not told.
        requests: how many were measured.
        in_flight: requests under way, mean; None: not known.
    """
    ranks = config.parallel.engines
    if not served or ranks < 2:
        return
    if ALL in served:
        yield Finding("the service does not tell its engines apart: whether each took part is not checked")
        return
    # Over replicas our own client spreads the requests: a row of two is one of both.
    load = None if config.parallel.replicas > 1 else in_flight
    needed = load is None or load >= NEEDED_NEARLY * NEEDED_IN_FLIGHT * ranks
    chance = load is not None and requests < ROUNDS_TO_BALANCE * load
    silent = [str(rank) for rank in range(ranks) if not served.get(str(rank))]
    if silent:
        words = f"data-parallel rank {', '.join(silent)} served no token in the window"
        if not needed:
            words += f": {load:.2g} requests in flight did not need it"
        elif chance:
            words += ": it is too short to tell whether that is chance"
        yield Finding(words, needed and not chance)
    elif sum(served.values()) and requests >= FEW_TO_BALANCE * ranks and needed:
        rank, tokens = min(served.items(), key=lambda pair: pair[1])
        share = tokens * ranks / sum(served.values())
        if share < min(NOTED_SHARE, 1 - UNEVEN * math.sqrt((ranks - 1) / requests)):
            invalid = share < LEAST_SHARE and requests >= ENOUGH_TO_BALANCE * ranks
            yield Finding(f"data-parallel rank {rank} served {share:.0%} of an even share", invalid)


def pace(case: Case) -> Found:
    """An engine that is slower than the others although it made its share: figures are then those of a mixture.

    By Little's law a token takes as long on an engine as its running requests (mean) by its tokens a second.
    """
    window, ranks = case.window, case.config.parallel.engines
    tokens = {engine: count for engine, count in window.engine_tokens.items() if count and engine != ALL}
    bench = case.config.bench
    alike = bench.lengths == "fixed" and bench.workload not in ("sharegpt", "trace")
    if len(tokens) < max(2, ranks) or len(case.counted) < ENOUGH_FOR_PACE * ranks * (1 if alike else SCATTERED):
        return
    inside = [one for one in window.series if window.holds(one.time_s)]
    took: dict[str, float] = {}
    for engine, count in tokens.items():
        running = [one.running for one in inside if one.engine == engine and one.running is not None]
        if sum(running) < GAUGED:
            return
        took[engine] = sum(running) / len(running) * window.seconds / count
    slow, fast = max(took, key=lambda one: took[one]), min(took, key=lambda one: took[one])
    if tokens[fast] * ranks < NOTED_SHARE * sum(tokens.values()):
        return  # uneven, which is said already: the busier one is the slower one
    if took[slow] > SLOWER * took[fast]:
        times = f"{took[slow] / took[fast]:.2g} times as long"
        yield Finding(f"data-parallel rank {slow} held a request for a token {times} as rank {fast}: is it slower?")


def prefills(config: Config, growth: Growth) -> Found:
    """An engine that is slower than the others in reading prompts alone, which long answers hide.

    By what each took from taking a request up to its first token, for each token of a prompt. One that read more
    requests may be as much slower: prompts that come together are read together.
    """
    told = growth.prefills
    if len(told) < max(2, config.parallel.engines) or min(one.requests for one in told.values()) < ENOUGH_FOR_PACE:
        return
    took = {engine: one.seconds / one.tokens for engine, one in told.items()}
    slow, fast = max(took, key=lambda one: took[one]), min(took, key=lambda one: took[one])
    busier = max(1.0, told[slow].requests / told[fast].requests)
    if took[slow] > SLOWER_READING * busier * took[fast]:
        times = f"{took[slow] / took[fast]:.2g} times as long"
        yield Finding(f"data-parallel rank {slow} took {times} to read a prompt as rank {fast}: is it slower?")


def foreign(case: Case) -> Found:
    """Nobody else may have used the service: by requests, tokens, prompts, and by what the engines hold."""
    window, probes = case.window, case.probes
    if strangers := _strangers(window, probes):
        yield Finding(f"{strangers} requests that were not ours ran on the service", True)
    ours_cut = sum(record.status != "ok" for record in window.records)
    if (window.aborted or 0) > ours_cut:
        yield Finding(f"{(window.aborted or 0) - ours_cut} requests that were not ours were broken off", True)
    first, last = _ends(window)
    arrived = arrived_tokens(window, first[0], last[1])
    generated = sum(window.engine_tokens.values())
    if generated > arrived * (1 + FOREIGN_SHARE) + FOREIGN_IN_FLIGHT * (_at_closing(window) + 1):
        yield Finding(f"the engines made {generated} tokens in the window, {arrived:.0f} of them for us", True)
    asked = _asked_prompts(window.records)
    if window.prompted is not None and asked is not None:
        longest = max(record.prompt_tokens or 0 for record in window.records)
        again = (window.growth.preemptions or 0) * longest
        if window.prompted > asked * (1 + FOREIGN_SHARE) + longest + again + 16 * probes:
            yield Finding(f"the engines read {window.prompted} tokens of prompts, {asked:.0f} of them ours", True)
    if held := _held_beyond_ours(window, probes):
        yield Finding(f"the engines held up to {held} requests more than ours in flight", True)


def usage(case: Case) -> Found:
    """Usage that says more tokens than the engines made, or less. Of a rank without counters nothing can be said."""
    window = case.window
    if len(window.growth.tokens) < case.config.parallel.engines:
        return
    slack = FOREIGN_IN_FLIGHT * (_at_closing(window) + 1)
    first, last = _ends(window)
    told = arrived_tokens(window, first[1], last[0])
    made = sum(window.growth.tokens.values())
    if made < told * (1 - FOREIGN_SHARE) - slack:
        yield Finding(f"usage says {told:.0f} tokens in the window, and the engines made {made}", True)
        return
    ours = [record for record in window.records if record.status == "ok"]
    prompts = sum(record.prompt_tokens or 0 for record in ours)
    if window.prompted is not None and window.prompted < prompts * (1 - FOREIGN_SHARE):
        words = f"usage says {prompts} tokens of prompts, and the engines read {window.prompted}"
        yield Finding(f"{words}: were they cut short?", True)
    if window.generated is None:
        return
    whole = sum(record.output_tokens or 0 for record in ours)
    generated = window.generated - case.probes
    words = f"usage says {whole} tokens in all, and the engines made {generated}"
    if window.generated < whole * (1 - COUNTED_SHARE) - slack:
        yield Finding(words, True)
    elif generated > (whole + _of_broken(window)) * (1 + COUNTED_SHARE) + slack:
        yield Finding(f"{words}: usage that is too low, or requests of others?", True)


def _ends(window: Window) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return between which moments each of the two pages of the window was made."""
    told, opened, closed = window.growth, window.opened_s, window.closed_s
    return told.first_s or (opened, opened), told.last_s or (closed, closed)


def _of_broken(window: Window) -> float:
    """Return the most tokens that answers may have had which did not end: each may have been made whole."""
    broken = [record for record in window.records if record.status != "ok"]
    longest = max((r.output_tokens or 0 for r in window.records if r.status == "ok"), default=0)
    return float(sum(record.asked_output or longest for record in broken))


def _at_closing(window: Window) -> int:
    return sum(r.start_s < window.closed_s <= r.end_s for r in window.records)


def _strangers(window: Window, probes: int) -> int:
    """Return how many requests the engines finished that cannot be ours.

    One that we cut off may have been finished all the same: an engine may be ahead of what we have read of it, and a
    busy one hears late that we are gone. Then the rest of its answer is among the tokens that were made and that we
    did not see; so many are taken for ours as these, and `FOREIGN_IN_FLIGHT`, are enough for, those near their end
    first.
    """
    asked = min((r.output_tokens or 0 for r in window.records if r.status == "ok" and not r.check), default=0)
    ended = [record for record in window.records if record.status == "truncated"]
    cut = [record for record in ended if not 0 < asked <= (record.output_tokens or 0)]  # others lack their end alone
    beyond = max(0, (window.finished or 0) - probes - (len(window.records) - len(cut)))
    if window.generated is None:
        return max(0, beyond - len(cut))
    made = window.generated - probes + FOREIGN_IN_FLIGHT * (len(ended) + 1)
    unseen = round(made - arrived_tokens(window, -np.inf, np.inf))
    seen = tokens_a_chunk(window)
    rests = sorted(max(0.0, asked - seen * len(record.chunk_times)) for record in cut)
    return beyond - int(np.searchsorted(np.cumsum(rests[:beyond]), unseen, side="right"))


def _asked_prompts(records: Sequence[RequestRecord]) -> float | None:
    """Return the tokens of all our prompts; one that was not told counts as the longest. None: none was told."""
    known = [record.prompt_tokens for record in records if record.prompt_tokens]
    if not known:
        return None
    longest = max(known)
    return float(sum(record.prompt_tokens or record.asked_input or longest for record in records))


def _held_beyond_ours(window: Window, probes: int) -> int:
    """Return how many requests more than ours the engines held, where several readings say so; else 0."""
    inside = [sample for sample in window.series if window.holds(sample.time_s)]
    held = by_moment((s.time_s, None if s.running is None else s.running + (s.waiting or 0.0)) for s in inside)
    if not held:
        return 0
    starts = np.sort([record.start_s for record in window.records])
    ends = np.sort([record.end_s for record in window.records])
    beyond = []
    for moment, count in held.items():
        # All that ran at some time around the reading; one more is a probe of our own watch, where it sent any.
        ours = np.searchsorted(starts, moment + AROUND_S) - np.searchsorted(ends, moment - AROUND_S)
        beyond.append(count - float(ours) - min(probes, 1))
    more = [one for one in beyond if one > 0]
    seen = len(more) >= max(SEEN_LEAST, SEEN_SHARE * len(held))
    return round(max(more)) + min(probes, 1) if seen else 0


def intended_hits(config: Config) -> tuple[float, float] | None:
    """Return between which shares of prompt tokens the prefix caches should find; None: it is not known.

    Whole blocks alone are found, and the upper limit leaves room for chat templates. A conversation's drawn answers
    are new to the cache, so each turn finds the prompt of the turn before.
    """
    bench, block = config.bench, config.parallel.block_size or 128
    if bench.workload in ("sharegpt", "trace"):
        return None
    share = 0.0
    if bench.workload == "shared_prefix":
        share = bench.prefix_share
        whole = round(share * bench.input_tokens) // block * block / bench.input_tokens
    elif bench.workload == "multi_turn":
        prompts = [turn_input(bench, turn) for turn in range(bench.turns)]
        share = sum(prompts[:-1]) / sum(prompts)
        whole = sum(prompt // block * block for prompt in prompts[:-1]) / sum(prompts)
    else:
        whole = 0.0
    return 0.75 * whole, share + UNINTENDED_HITS


def hits(config: Config, growth: Growth, longest: int, repeated: float = 0.0) -> Found:
    """Prefix caches that helped beyond what is intended, or less.

    Args:
        config: of the point.
        growth: of the engines' counters in the window.
        longest: request, prompt and answer, tokens: so many a preempted one may find again of itself.
        repeated: further share of the prompts that may have been found whole.
    """
    intended, share = intended_hits(config), growth.prefix_hit_share
    if intended is None or share is None:
        return
    least, most = intended[0], intended[1] + repeated
    again = (growth.preemptions or 0) * longest / (growth.prefix_queries or 1)
    if share - again > most:
        yield Finding(f"prefix cache hits {share:.0%} of the prompt tokens, at most {most:.0%} were intended", True)
    if share < least:
        yield Finding(f"prefix cache hits {share:.0%}, at least {least:.0%} were intended")


def preemptions(figures: Mapping[str, Any]) -> Found:
    """Requests that were put back."""
    if figures["preemptions"]:
        yield Finding(f"{figures['preemptions']} preemptions: the KV cache was full")
