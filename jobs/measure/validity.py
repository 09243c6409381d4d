"""Whether a row may be believed. Each check has its reason; the first one that fails stands in the row.

A check that fails makes the row **invalid** where its figures are not those of the question: requests that failed,
other lengths than asked, somebody else's load, a client that was too slow, a cache that helped. It becomes a **note**
where they are, but a reader should know more: preemptions, few requests, a short window, an uneven balance. A load
that the service cannot keep up with is a note and a flag: see objective.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.core.config import Bench, Config
from jobs.measure import objective
from jobs.measure.records import Window
from jobs.measure.statistics import arrived_tokens, in_one_piece, latencies, tokens_a_chunk
from jobs.measure.workload import turn_input

LENGTH_TOLERANCE = 0.01
"""Mean prompt length against what was asked."""

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

CPU_LIMIT, CPU_NOTED = 0.95, 0.7
"""Processor share of the client, one event loop: near 1 the client was measured."""

UNINTENDED_HITS = 0.02
"""Share of prompt tokens found in a prefix cache beyond what is intended: equal words of a chat template, no more."""

WINDOW_TTFTS = 3.0
"""A window of fewer TTFT p99's saw hardly any request from its start to its end."""

STALL_S = 10.0

TOKENS_A_CHUNK = 4.0
"""Beyond so many, TPOT and ITL are about pieces of an answer. Speculative decoding gives two or three tokens a step."""


def invalid_reason(config: Config, window: Window, figures: Mapping[str, Any], probes: int = 0) -> str | None:
    """Return why the figures of this window cannot be believed, or None.

    Args:
        config: of the point.
        window: what was measured.
        figures: its summary (`statistics.summarize`).
        probes: one-token requests that our own watch sent from `window.begun_s` to `window.ended_s`.
    """
    return (
        _unanswered(config.bench, window, figures)
        or _lengths(window)
        or _silent(config, window)
        or _foreign(window, probes)
        or hits(config, figures)
        or slow_client(figures)
    )


def notes(config: Config, window: Window, figures: Mapping[str, Any]) -> list[str]:
    """Return what a reader of a valid row should know as well."""
    found = []
    if figures["failed"]:
        found.append(f"{figures['failed']} requests failed: {_first_error(window)}")
    if grows := objective.queue_grows(window, config.bench):
        found.append(grows)
    found += of_engines(config, window.engine_tokens, _requests(window), figures)
    ttft = _ttft_p99(window)
    if ttft and window.seconds * 1e3 < WINDOW_TTFTS * ttft:
        found.append(f"the window is shorter than {WINDOW_TTFTS:g} x TTFT p99 ({ttft / 1e3:.3g} s)")
    found += _pieces(window)
    if (stall := _longest_silence(window)) > STALL_S and stall * 1e3 > 2 * (figures["ttft_ms_p50"] or 0.0):
        found.append(f"no token came for {stall:.0f} s of the window")
    return found


def _pieces(window: Window) -> list[str]:
    """Tell of answers whose tokens came in few pieces: how fast a user sees them is then not known."""
    whole = [r for r in window.records if r.in_window and r.status == "ok" and (r.output_tokens or 0) > 1]
    at_once = sum(map(in_one_piece, whole))
    if at_once:
        return [f"{at_once} of {len(whole)} answers came in one piece: they have no TPOT and no ITL"]
    chunks, tokens = sum(len(r.chunk_times) for r in whole), sum(r.output_tokens or 0 for r in whole)
    if chunks and tokens > TOKENS_A_CHUNK * chunks:
        return [f"{tokens / chunks:.3g} tokens a chunk: TPOT and ITL are those of pieces of an answer"]
    return []


def of_engines(config: Config, served: Mapping[str, int], requests: int, figures: Mapping[str, Any]) -> list[str]:
    """Return the notes that need no record of single requests: those of every client.

    Args:
        config: of the point.
        served: tokens by data-parallel rank.
        requests: how many were measured.
        figures: columns of the row.
    """
    found = []
    if figures["preemptions"]:
        found.append(f"{figures['preemptions']} preemptions: the KV cache was full")
    share = _least_share(config, served, requests, FEW_TO_BALANCE)
    if share and share[1] < NOTED_SHARE:
        found.append(f"data-parallel rank {share[0]} served {share[1]:.0%} of an even share")
    if 0 < figures["completed"] < 100:
        found.append(f"{figures['completed']} requests: too few for a p99")
    low, _ = intended_hits(config) or (0.0, 1.0)
    found_share = figures["prefix_hit_share"]
    if found_share is not None and found_share < low:
        found.append(f"prefix cache hits {found_share:.0%}, at least {low:.0%} were intended")
    if (figures["client_cpu_share"] or 0.0) > CPU_NOTED:
        found.append(f"the client used {figures['client_cpu_share']:.0%} of one processor")
    return found


def _requests(window: Window) -> int:
    return sum(record.in_window for record in window.records)


def _unanswered(bench: Bench, window: Window, figures: Mapping[str, Any]) -> str | None:
    completed, failed, cut = figures["completed"], figures["failed"], figures["truncated_requests"]
    if not completed:
        error = next((record.error for record in window.records if record.error), None)
        why = f": {error}" if error else ""
        if window.closed_s <= window.opened_s:
            return f"the window never opened: no answer within bench.warmup_s and limits.warmup_s{why}"
        return f"no request of the window was completed{why}"
    if completed < bench.min_success * (completed + failed):
        return f"{failed} requests failed: {_first_error(window)}"
    if not figures["output_tok_s"]:
        return "no token arrived in the window"
    if window.truncated:
        return "the window was cut short"
    if window.late_s is not None:
        return f"the requests of the window took longer than {window.late_s:g} s (limits.window_s)"
    if cut:
        return f"{cut} requests had no whole answer within limits.drain_s after the window"
    return None


def _first_error(window: Window) -> str:
    return next((record.error for record in window.records if record.error and record.in_window), None) or "no words"


def _lengths(window: Window) -> str | None:
    """Compare real prompt lengths with what was asked. Output lengths are checked at each answer (sse.py)."""
    pairs = [
        (record.prompt_tokens, record.asked_input)
        for record in window.records
        if record.in_window and record.status == "ok" and record.prompt_tokens and record.asked_input
    ]
    if not pairs:
        return None
    real, asked = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    return other_length(real, asked)


def other_length(real: float, asked: float) -> str | None:
    """Return a reason where the mean prompt is not as long as it was asked for, both in tokens."""
    if abs(real / asked - 1) > LENGTH_TOLERANCE:
        return f"prompts had {real:.5g} tokens on average instead of {asked:.5g}"
    return None


def _silent(config: Config, window: Window) -> str | None:
    served = window.engine_tokens
    return silent_ranks(config, served) or took_no_part(config, served, _requests(window))


def silent_ranks(config: Config, served: Mapping[str, int]) -> str | None:
    """Return a reason where a data-parallel rank made no token; `served`: tokens by rank, empty: not told."""
    ranks = config.parallel.data_parallel_size
    silent = [str(rank) for rank in range(ranks) if not served.get(str(rank))]
    if served and silent and (config.bench.concurrency or ranks) >= ranks:
        return f"data-parallel rank {', '.join(silent)} served no token in the window"
    return None


def took_no_part(config: Config, served: Mapping[str, int], requests: int) -> str | None:
    """Return a reason where a data-parallel rank hardly served; `served`: tokens by rank."""
    share = _least_share(config, served, requests, ENOUGH_TO_BALANCE)
    if share and share[1] < LEAST_SHARE:
        return f"data-parallel rank {share[0]} served {share[1]:.0%} of an even share"
    return None


def _least_share(
    config: Config, served: Mapping[str, int], requests: int, requests_each: int
) -> tuple[str, float] | None:
    """Return the rank that served least and its part of an even share; None where the load is too small to tell."""
    ranks = config.parallel.data_parallel_size
    load = config.bench.concurrency or requests
    if len(served) < 2 or not sum(served.values()) or load < ranks or requests < requests_each * ranks:
        return None
    rank, tokens = min(served.items(), key=lambda pair: pair[1])
    return rank, tokens * ranks / sum(served.values())


def _foreign(window: Window, probes: int) -> str | None:
    """Compare the engines' own counters with what we asked of them: nobody else may have used the service."""
    if strangers := _strangers(window, probes):
        return f"{strangers} requests that were not ours ran on the service"
    arrived = arrived_tokens(window, until_s=max(window.closed_s, window.growth.until_s or 0.0))
    generated = sum(window.engine_tokens.values())
    in_flight = sum(r.start_s < window.closed_s <= r.end_s for r in window.records)
    if generated > arrived * (1 + FOREIGN_SHARE) + FOREIGN_IN_FLIGHT * (in_flight + 1):
        return f"the engines made {generated} tokens in the window, {arrived:.0f} of them for us"
    return None


def _strangers(window: Window, probes: int) -> int:
    """Return how many requests the engines finished that cannot be ours.

    One that we cut off may have been finished all the same: an engine may be ahead of what we have read of it, and a
    busy one hears late that we are gone. Then the rest of its answer is among the tokens that were made and that we
    did not see; so many are taken for ours as these, and `FOREIGN_IN_FLIGHT`, are enough for, those near their end
    first.
    """
    cut = [record for record in window.records if record.status == "truncated"]
    beyond = max(0, (window.finished or 0) - probes - (len(window.records) - len(cut)))
    if window.generated is None:
        return max(0, beyond - len(cut))
    made = window.generated - probes + FOREIGN_IN_FLIGHT * (len(cut) + 1)
    unseen = round(made - arrived_tokens(window, -np.inf, np.inf))
    asked = min((r.output_tokens or 0 for r in window.records if r.status == "ok"), default=0)
    seen = tokens_a_chunk(window)
    rests = sorted(max(0.0, asked - seen * len(record.chunk_times)) for record in cut)
    return beyond - int(np.searchsorted(np.cumsum(rests[:beyond]), unseen, side="right"))


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


def hits(config: Config, figures: Mapping[str, Any], repeated: float = 0.0) -> str | None:
    """Return a reason where a prefix cache helped beyond what is intended.

    Args:
        config: of the point.
        figures: columns of the row.
        repeated: further share of the prompts that may have been found whole.
    """
    intended, share = intended_hits(config), figures["prefix_hit_share"]
    if intended is None or share is None or figures["preemptions"]:
        return None  # a preempted request may find its own blocks again
    if share > (most := intended[1] + repeated):
        return f"prefix cache hits {share:.0%} of the prompt tokens, at most {most:.0%} were intended"
    return None


def slow_client(figures: Mapping[str, Any]) -> str | None:
    """Return a reason where the client's own processor was full."""
    share = figures["client_cpu_share"] or 0.0
    if share > CPU_LIMIT:
        return f"the client used {share:.0%} of its processor: it was measured, not the service"
    return None


def _ttft_p99(window: Window) -> float | None:
    each = (latencies(record).ttft for record in window.records if record.in_window and record.status == "ok")
    known = [ttft for ttft in each if ttft is not None]
    return float(np.percentile(known, 99)) if known else None


def _longest_silence(window: Window) -> float:
    """Return the longest time in the window without any token, while requests were under way, s."""
    if not window.records or window.seconds <= 0:
        return 0.0
    times = np.concatenate([record.chunk_times for record in window.records])
    inside = np.sort(times[(times >= window.opened_s) & (times < window.closed_s)])
    if inside.size < 2:
        return 0.0
    gaps = np.diff(inside)
    place = int(gaps.argmax())
    begin, end = float(inside[place]), float(inside[place + 1])
    busy = any(record.start_s <= begin + 1e-9 and record.end_s >= end for record in window.records)
    return float(gaps[place]) if busy else 0.0
