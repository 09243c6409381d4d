"""Whether a row may be believed. Each check has its reason; the first one that fails stands in the row.

A check that fails makes the row **invalid** where its figures are not those of the question: requests that failed,
other lengths than asked, somebody else's load, a service that changed, a client that was late, a cache that helped. It
becomes a **note** where they are, but a reader should know more: preemptions, few requests, a short window, an uneven
balance, counters that are not told. A load that the service cannot keep up with is a note and a flag: see queueing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jobs.measure import bound, queueing, rounds, speculation
from jobs.measure.gate import accuracy, answers, client, counters, pauses, steady
from jobs.measure.gate.case import Case, Finding, Found
from jobs.measure.statistics import latencies

WINDOW_TTFTS = 3.0
"""A window of fewer TTFT p99's saw hardly any request from its start to its end."""


def judge(case: Case) -> tuple[str | None, tuple[str, ...]]:
    """Return why the figures of a window cannot be believed (None: they can), and what a reader should know as well."""
    found = [finding for check in CHECKS for finding in check(case)]
    reason = next((one.words for one in found if one.invalid), None)
    return reason, tuple(one.words for one in found if not one.invalid)


def of_figures(figures: Mapping[str, Any]) -> Found:
    """What a row alone tells, of whatever client."""
    yield from counters.preemptions(figures)
    yield from client.busy(figures)
    completed = figures["completed"]
    if 0 < completed < 100:
        yield Finding(f"{completed} requests: too few for a p99")
    elif 0 < completed < bound.needed(0):
        yield Finding(f"p99 of {completed} requests: only {bound.needed(0)} tell how far above the true one may lie")


def _short(case: Case) -> Found:
    asked, held = case.config.bench.num_requests, len(case.counted)
    if case.config.bench.workload == "trace" and asked and held < asked:
        yield Finding(f"the trace holds {held} requests, and bench.num_requests={asked}")
    if few := rounds.note(case.window, case.config.bench):
        yield Finding(few)
    known = [ttft for record in case.whole if (ttft := latencies(record).ttft) is not None]
    ttft = float(np.percentile(known, 99)) if known else 0.0
    if case.window.seconds * 1e3 < WINDOW_TTFTS * ttft:
        yield Finding(f"the window is shorter than {WINDOW_TTFTS:g} x TTFT p99 ({ttft / 1e3:.3g} s)")


CHECKS: tuple[Callable[[Case], Found], ...] = (
    answers.unanswered,
    client.kept_time,
    answers.lengths,
    answers.too_fast,
    counters.of_load,
    accuracy.under_load,
    steady.steady,
    steady.engines,
    pauses.pauses,
    lambda case: map(Finding, queueing.notes(case.trend, case.window, case.config.bench)),
    answers.pieces,
    lambda case: of_figures(case.figures),
    lambda case: (Finding(words) for words in speculation.notes(case.config, case.figures)),
    _short,
)
"""In this order: of a client that stood still the other checks would name what is only its shadow."""
