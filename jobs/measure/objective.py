"""Whether a window keeps the service-level objective and its queue stays, and several windows as one row. Pure.

The objective (`bench.slo`) is told while the single requests are at hand: a row shows no 99th percentile of fewer than
100 of them, and without one nobody could tell later.

Where requests come faster than they are answered, a window says what the service can do at most (its rates), but its
latencies are those of a queue that grows: they depend on how long was measured. So its row is kept and flagged
(`saturated`); it wins nothing and keeps no objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median, median_low
from typing import Any

from jobs.core.config import Bench
from jobs.core.load import Slo
from jobs.measure import statistics
from jobs.measure.records import RequestRecord, Window

MISSING_SHARE = 0.1
"""Part of the arrivals that may be missing among the answers: long answers of a steady load overlap its ends."""

MISSING_DEVIATIONS = 3.0
"""Standard deviations of a Poisson count below which fewer answers than arrivals are chance."""

SPREAD = ("output_tok_s", "total_tok_s", "request_s", "ttft_ms_p50", "tpot_ms_p50", "e2el_ms_p50")
"""Figures whose smallest and largest value over the repeats stand in the row."""

SPREAD_COLUMNS = tuple(f"{name}_{end}" for name in SPREAD for end in ("min", "max"))


def kept(window: Window, bench: Bench) -> bool | None:
    """Return whether a window keeps every limit; None: none is set, or its requests do not tell.

    A queue that grows keeps none: its latencies depend on how long was measured.
    """
    if not limits(bench.slo):
        return None
    if queue_grows(window, bench):
        return False
    if not any(record.in_window and record.status == "ok" for record in window.records):
        return None
    broken = statistics.broken(window, bench.slo)
    return None if broken is not None and statistics.UNKNOWN in broken else broken is None


def kept_by(figures: Mapping[str, Any], slo: Mapping[str, float]) -> bool | None:
    """Return whether the figures of a row keep these limits (column to limit); None: one that matters is unknown."""
    if not slo:
        return None
    if any(isinstance(figures.get(name), int | float) and figures[name] > limit for name, limit in slo.items()):
        return False
    return True if all(isinstance(figures.get(name), int | float) for name in slo) else None


def limits(slo: Slo) -> dict[str, float]:
    """Return the limits that are set: column to limit."""
    return {name: limit for name, limit in asdict(slo).items() if limit is not None}


def queue_grows(window: Window, bench: Bench) -> str | None:
    """Return words where an open loop's requests come faster than they are answered, or None.

    A window of time is judged whole. A fixed number of requests has its ramp in the window, and all of them are
    answered in the end: there the second half of the time in which they come is judged.
    """
    if bench.request_rate is None or window.seconds <= 0:
        return None
    if bench.num_requests:
        ours = [record for record in window.records if record.in_window]
        came = sorted(_arrival(record) for record in ours)
        begin, end = (came[0] + came[-1]) / 2 if came else 0.0, came[-1] if came else 0.0
        expected = float(sum(begin <= moment < end for moment in came))
        answered = _answered(window, begin, end)
    else:
        # With a cap those that wait for a slot leave no record before they are sent: then the rate is the measure.
        arrivals = sum(r.in_window for r in window.records) if bench.concurrency is None else None
        expected = bench.request_rate * window.seconds if arrivals is None else float(arrivals)
        answered = _answered(window, window.opened_s, window.closed_s)
    return overload(expected, answered)


def overload(expected: float, answered: float) -> str | None:
    """Return words where fewer were answered than came, by a tenth and by three deviations; None: it is chance."""
    missing = expected - answered
    if missing > MISSING_SHARE * expected and missing > MISSING_DEVIATIONS * expected**0.5:
        return (
            f"the queue grows: while {expected:.0f} requests came {answered:.0f} were answered,"
            " so latencies depend on the length of the measurement"
        )
    return None


def _arrival(record: RequestRecord) -> float:
    return record.start_s - record.queue_s


def _answered(window: Window, begin: float, end: float) -> int:
    return sum(record.status == "ok" and begin <= record.end_s < end for record in window.records)


def combine(windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the medians of all figures, and the ends of the key figures where there is more than one window.

    A figure that a window lacks is taken from the others; counts stay whole (the lower median). What is true of one
    window (`saturated`) is true of the row; the objective is kept (`slo_kept`) where every window that tells keeps it.
    """
    row: dict[str, Any] = {}
    for name in windows[0]:
        known = [window[name] for window in windows if window.get(name) is not None]
        whole = all(isinstance(value, int) for value in known)
        if any(isinstance(value, bool) for value in known):
            row[name] = all(known) if name == "slo_kept" else any(known)
            continue
        row[name] = None if not known else median_low(known) if whole else median(known)
    row["windows"] = len(windows)
    for name in SPREAD:
        known = [window[name] for window in windows if window.get(name) is not None]
        wanted = len(windows) > 1 and bool(known)
        row[f"{name}_min"], row[f"{name}_max"] = (min(known), max(known)) if wanted else (None, None)
    return row
