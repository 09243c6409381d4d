"""Whether a run of an external client may be believed: the checks of validity.py, without single records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.core.config import Config
from jobs.measure import objective, validity
from jobs.measure.clients.base import request_count
from jobs.measure.clients.result import Result
from jobs.measure.records import Window
from jobs.measure.series import generated
from jobs.measure.statistics import of_series

BEFORE = 1
"""Requests that either client sends before those that it counts: a try (vllm bench), a warm-up (AISBench). They repeat
its first prompt."""

MISCOUNT = 0.01
"""A client's count of tokens may differ by this share from the engines' own: it re-encodes the answers' text."""

LEAST_S = 10.0
"""Seconds in which requests come below which readings a second apart do not tell whether a queue grows."""


def figures(config: Config, result: Result, window: Window, cpu_share: float | None = None) -> dict[str, Any]:
    """Return the columns of a row: the client's own, and what was seen of the service's counters and the client."""
    growth = window.growth
    counted: dict[str, Any] = {"prefix_hit_share": growth.prefix_hit_share, "preemptions": growth.preemptions}
    counted["client_cpu_share"] = cpu_share
    grows = queue_grows(config, result, window) is not None
    limits = objective.limits(config.bench.slo)
    return {
        **result.figures,
        **counted,
        **of_series(window),
        "saturated": grows,
        "slo_kept": False if grows and limits else objective.kept_by(result.figures, limits),
    }


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
    if len(engine_tokens) == config.parallel.data_parallel_size:
        if silent := validity.silent_ranks(config, engine_tokens):
            return silent
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
    return (
        _lengths(config, row)
        or validity.took_no_part(config, window.engine_tokens, result.completed)
        or _foreign(config, result, window, probes)
        or validity.hits(config, row, repeated=BEFORE / max(1, result.requested))
        or validity.slow_client(row)
    )


def notes(config: Config, result: Result, window: Window, row: Mapping[str, Any]) -> list[str]:
    """Return what a reader of a valid row should know as well."""
    grows = queue_grows(config, result, window)
    found = validity.of_engines(config, window.engine_tokens, result.completed, row)
    return [grows, *found] if grows else found


def _lengths(config: Config, row: Mapping[str, Any]) -> str | None:
    """Compare prompt lengths with what was asked; a chat template adds to them, a conversation has its own."""
    bench, real = config.bench, row["input_tokens_mean"]
    if bench.workload != "random" or bench.endpoint != "completions" or real is None:
        return None
    return validity.other_length(real, bench.input_tokens)


def _foreign(config: Config, result: Result, window: Window, probes: int) -> str | None:
    """Compare the engines' own counters with what the client says that it sent."""
    if window.finished is not None and window.finished > (ours := result.requested + BEFORE + probes):
        return f"{window.finished - ours} requests that were not ours ran on the service"
    before = BEFORE * max(result.output_lengths, default=config.bench.output_tokens)
    ours, generated = result.output_tokens + before + probes, sum(window.engine_tokens.values())
    if generated > ours * (1 + validity.FOREIGN_SHARE) + validity.FOREIGN_IN_FLIGHT:
        return f"the engines made {generated} tokens in the window, {ours} of them for us"
    return None


def queue_grows(config: Config, result: Result, window: Window) -> str | None:
    """Return words where an open loop's requests come faster than they are answered, or None.

    All are answered in the end, so the second half of the time in which they come is judged, by the tokens that the
    engines make in it: in a steady load as many as half of the requests ask for.
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
    return objective.overload(count / 2, float(end - half) * result.completed / result.output_tokens)
