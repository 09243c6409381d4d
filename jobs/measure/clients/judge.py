"""Whether a run of an external client may be believed: the checks of measure/gate that need no single records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jobs.core.config import Bench, Config
from jobs.measure import objective, queueing, speculation, validity
from jobs.measure.clients.base import request_count
from jobs.measure.clients.result import Result
from jobs.measure.gate import answers, counters
from jobs.measure.gate.case import Finding, Found
from jobs.measure.records import Window
from jobs.measure.series import generated
from jobs.measure.statistics import of_series
from jobs.measure.workload import longest_request

BEFORE = 1
"""Requests that either client sends before those that it counts: a try (vllm bench), a warm-up (AISBench). They repeat
its first prompt."""

MISCOUNT = 0.01
"""A client's count of tokens may differ by this share from the engines' own: it re-encodes the answers' text."""

MISSING_SHARE = 0.1
"""Part of the arrivals that may be missing among the answers: long answers of a steady load overlap its ends."""

MISSING_DEVIATIONS = 3.0
"""Standard deviations of a Poisson count below which fewer answers than arrivals are chance."""

LEAST_S = 10.0
"""Seconds in which requests come below which readings a second apart do not tell whether a queue grows."""


def figures(config: Config, result: Result, window: Window, cpu_share: float | None = None) -> dict[str, Any]:
    """Return the columns of a row: the client's own, and what was seen of the service's counters and the client."""
    growth = window.growth
    counted: dict[str, Any] = {"prefix_hit_share": growth.prefix_hit_share, "preemptions": growth.preemptions}
    counted["client_cpu_share"] = cpu_share
    saturated = True if queue_grows(config, result, window) else _keeps_up(config, result, window)
    return {
        **result.figures,
        **counted,
        **of_series(window),
        **speculation.figures(config, growth.drafts, text=config.bench.workload == "sharegpt"),
        "saturated": saturated,
        **_objective(config.bench, result, window, saturated),
    }


def _objective(bench: Bench, result: Result, window: Window, saturated: bool | None) -> dict[str, Any]:
    """Return the columns of the objective: by the single requests, where they tell how long each took from its arrival.

    A p99 alone tells of no objective (bound.py).
    """
    seen = result.requests if len(result.requests) == result.requested and not _hides_waits(bench, result) else ()
    return objective.told(replace(window, records=tuple(seen)), bench.slo, saturated=saturated)


def _hides_waits(bench: Bench, result: Result) -> bool:
    """Return whether requests may have waited for a slot, and the client does not tell how long."""
    return bench.request_rate is not None and bench.concurrency is not None and not result.tells_waits


def fault(config: Config, result: Result, engine_tokens: Mapping[str, int]) -> str | None:
    """Return why a run is not whole, or None. An exit code says nothing.

    The last two checks see the streams that an error event broke, which both `vllm bench` and AISBench count as whole
    answers.
    """
    bench = config.bench
    error = f": {result.errors[0]}" if result.errors else ""
    if not result.completed or not result.output_tokens:
        return f"no request was completed{error}"
    if result.failed:
        return f"{result.failed} of {result.requested} requests failed{error}"
    if result.completed < result.requested:
        return f"{result.requested - result.completed} of {result.requested} requests are missing from its result"
    if bench.ignore_eos and bench.workload == "random":
        short = sum(length < bench.output_tokens * (1 - MISCOUNT) for length in result.output_lengths)
        if short:
            return f"{short} answers are shorter than bench.output_tokens={bench.output_tokens}: broken streams"
    if len(engine_tokens) == config.parallel.engines:
        made = sum(engine_tokens.values())
        if made < result.output_tokens * (1 - MISCOUNT):
            return f"it counted {result.output_tokens} tokens, and the engines made {made}"
    return None


def reason(config: Config, result: Result, window: Window, probes: int, row: Mapping[str, Any]) -> str | None:
    """Return why the figures of a run that is whole (`fault`) cannot be believed, or None.

    Args:
        config: of the point.
        result: of the client.
        window: what was seen of the service (run.py).
        probes: one-token requests that our own watch sent meanwhile.
        row: `figures`.
    """
    return next((found.words for found in _findings(config, result, window, probes, row) if found.invalid), None)


def notes(config: Config, result: Result, window: Window, row: Mapping[str, Any]) -> list[str]:
    """Return what a reader of a valid row should know as well."""
    grows = queue_grows(config, result, window)
    bench = config.bench
    found = [one.words for one in _findings(config, result, window, 0, row) if not one.invalid]
    if bench.request_rate is not None and bench.concurrency is not None:
        found.append(
            f"bench.concurrency={bench.concurrency} caps the open loop, and the latencies of this client leave the wait"
            " for a slot out"
        )
    if objective.limits(bench.slo) and not row.get("slo_requests") and row.get("slo_kept") is None:
        found.append(
            "whether bench.slo is kept is not known: this client does not tell how long each request took from its"
            " arrival"
        )
    return [grows, *found] if grows else found


def _findings(config: Config, result: Result, window: Window, probes: int, row: Mapping[str, Any]) -> Found:
    bench = config.bench
    longest = longest_request(bench) or config.parallel.max_model_len
    yield from _lengths(config, result, row)
    yield from counters.not_checked(config, window)
    if len(window.engine_tokens) == config.parallel.engines:
        yield from counters.balance(config, window.engine_tokens, result.completed, _in_flight(bench, row))
    yield from counters.prefills(config, window.growth)
    if words := _foreign(config, result, window, probes):
        yield Finding(words, True)
    yield from counters.hits(config, window.growth, longest, repeated=BEFORE / max(1, result.requested))
    yield from validity.of_figures(row)


def _in_flight(bench: Bench, row: Mapping[str, Any]) -> float | None:
    """Return the mean number of requests under way: what was set, or by Little's law; None: it is not known."""
    if bench.request_rate is None:
        return bench.concurrency
    e2el = row["e2el_ms_mean"]
    return None if e2el is None else bench.request_rate * e2el / 1e3


def _lengths(config: Config, result: Result, row: Mapping[str, Any]) -> Found:
    """Compare lengths with what was asked; a chat template adds to prompts, a conversation has its own."""
    bench, real = config.bench, row["input_tokens_mean"]
    if bench.workload != "random":
        return
    asked = bench.input_tokens if bench.endpoint == "completions" else None
    if asked and real is not None and (words := answers.other_length("prompts", real, asked)):
        yield Finding(words, True)
    mean = sum(result.output_lengths) / len(result.output_lengths) if result.output_lengths else None
    if mean is not None and (words := answers.other_length("answers", mean, bench.output_tokens)):
        yield Finding(words, True)


def _foreign(config: Config, result: Result, window: Window, probes: int) -> str | None:
    """Compare the engines' own counters with what the client says that it sent."""
    if window.finished is not None and window.finished > (ours := result.requested + BEFORE + probes):
        return f"{window.finished - ours} requests that were not ours ran on the service"
    before = BEFORE * max(result.output_lengths, default=config.bench.output_tokens)
    ours, generated = result.output_tokens + before + probes, sum(window.engine_tokens.values())
    if generated > ours * (1 + counters.FOREIGN_SHARE) + counters.FOREIGN_IN_FLIGHT:
        return f"the engines made {generated} tokens in the window, {ours} of them for us"
    return None


def queue_grows(config: Config, result: Result, window: Window) -> str | None:
    """Return words where an open loop's requests come faster than they are answered, or None."""
    expected, missing = _unanswered(config, result, window) or (0.0, 0.0)
    if missing > MISSING_SHARE * expected and missing > MISSING_DEVIATIONS * expected**0.5:
        return (
            f"the queue grows: while {expected:.0f} requests came {expected - missing:.0f} were answered,"
            " so latencies depend on the length of the measurement"
        )
    return None


def _keeps_up(config: Config, result: Result, window: Window) -> bool | None:
    """Return False where the queue of a run does not grow; None: its requests do not rule out an overload."""
    if config.bench.request_rate is None:
        return False
    found = _unanswered(config, result, window)
    sure = found and found[1] + queueing.ONE_SIDED * found[0] ** 0.5 < queueing.OVERLOAD * found[0]
    return False if sure else None


def _unanswered(config: Config, result: Result, window: Window) -> tuple[float, float] | None:
    """Return how many requests came in the second half of the arrivals, and how many of them were not made up for.

    All are answered in the end, so that half is judged by the tokens that the engines make in it: in a steady load as
    many as half of the requests ask for. None: it cannot be told.
    """
    rate = config.bench.request_rate
    if rate is None or not result.completed or not result.output_tokens:
        return None
    count = request_count(config.bench)
    lasts, points = count / rate, generated(window.series)
    if lasts < LEAST_S or len(points) < 2:
        return None
    times, tokens = np.array(points).T
    half, end = np.interp([window.opened_s + lasts / 2, window.opened_s + lasts], times, tokens)
    expected = count / 2
    return expected, expected - float(end - half) * result.completed / result.output_tokens
