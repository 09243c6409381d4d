"""Whether what was measured keeps the service-level objective (`bench.slo`). Pure.

It is told while the single requests are at hand: a row shows no 99th percentile of fewer than 100 of them, and without
one nobody could tell later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jobs.core.config import Bench
from jobs.core.load import Slo
from jobs.measure import saturation, statistics
from jobs.measure.records import Window


def kept(window: Window, bench: Bench) -> bool | None:
    """Return whether a window keeps every limit; None: none is set, or its requests do not tell.

    A queue that grows keeps none: its latencies depend on how long was measured.
    """
    if not limits(bench.slo):
        return None
    if saturation.queue_grows(window, bench):
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
