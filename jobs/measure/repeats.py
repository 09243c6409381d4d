"""Several windows of one point as one row."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

SPREAD = ("output_tok_s", "total_tok_s", "request_s", "ttft_ms_p50", "tpot_ms_p50", "e2el_ms_p50")
"""Figures whose smallest and largest value over the repeats stand in the row."""

SPREAD_COLUMNS = tuple(f"{name}_{end}" for name in SPREAD for end in ("min", "max"))


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
        row[name] = None if not known else statistics.median_low(known) if whole else statistics.median(known)
    row["windows"] = len(windows)
    for name in SPREAD:
        known = [window[name] for window in windows if window.get(name) is not None]
        wanted = len(windows) > 1 and bool(known)
        row[f"{name}_min"], row[f"{name}_max"] = (min(known), max(known)) if wanted else (None, None)
    return row
