"""Whether a window keeps the service-level objective and its queue stays, and several windows as one row. Pure.

The objective (`bench.slo`) is told while the single requests are at hand, by how many of them miss a limit, fail or are
cut off (bound.py): a 99th percentile of a few hundred lies below the true one more often than not.

Where requests come faster than they are answered, a window says what the service can do at most (its rates), but its
latencies are those of a queue that grows: they depend on how long was measured. So its row is kept and flagged
(`saturated`); it wins nothing and keeps no objective.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median, median_low
from typing import Any

from jobs.core import alike
from jobs.core.load import Slo
from jobs.measure import bound, statistics
from jobs.measure.records import Window

SPREAD = ("output_tok_per_s", "total_tok_per_s", "request_per_s", "ttft_ms_p50", "tpot_ms_p50", "e2el_ms_p50")
"""Figures whose smallest and largest value over the repeats stand in the row."""

APART, LIMIT = ("output_tok_per_s", "tpot_ms_p50"), 0.3
"""Figures that windows of one service share, whatever queue they met; and by which share they may differ."""

CLOSE, SCATTER = 0.1, 6.0
"""In a closed loop they may differ by the first; or by so many standard errors of the mean answer, each slot being an
answer after the other (all may be in step)."""

COUNTED = ("slo_requests", "slo_misses")
"""Requests of all windows of a row that were held against the objective, and those that missed it."""

TOGETHER = "slo_together"
"""How many of the slowest of them come together, and tell as much as one (bound.py)."""

REPEAT = "repeat "
"""Begins what is said of one of several windows."""

SPREAD_COLUMNS = tuple(f"{name}_{end}" for name in SPREAD for end in ("min", "max"))


def told(window: Window, slo: Slo, *, saturated: bool | None) -> dict[str, Any]:
    """Return the columns of a window that its objective has.

    `slo_kept`: whether it keeps every limit; None: none is set, or its requests do not tell. A queue that grows keeps
    none: its latencies depend on how long was measured.
    """
    if (found := statistics.shares_of_limits(window, slo)) is None:
        kept = False if saturated and limits(slo) else None
        return {"slo_kept": kept, **dict.fromkeys((*COUNTED, TOGETHER))}
    came, shares = found
    misses, together = int((shares > 1).sum()), bound.together(came, shares)
    kept = False if saturated else bound.decided(misses, len(shares), bound.pooled([together]))
    return {"slo_kept": kept, "slo_misses": misses, "slo_requests": len(shares), TOGETHER: together}


def notes(row: Mapping[str, Any], slots: int | None = None) -> list[str]:
    """Return what a reader should know of a row: it is not known whether the objective is kept; its windows differ.

    `slots`: of a closed loop.
    """
    unknown = row.get("slo_requests") and row.get("slo_kept") is None
    said = [bound.words(row["slo_misses"], row["slo_requests"], row[TOGETHER] or 1.0)] if unknown else []
    ends = {name: (row.get(f"{name}_min"), row.get(f"{name}_max")) for name in APART}
    apart = {name: most / least - 1 for name, (least, most) in ends.items() if least and most}
    name = max(apart, key=lambda one: apart[one], default="")
    if name and apart[name] > _allowed(row, slots):
        said.append(f"{name} differs by {apart[name]:.0%} between the windows: their median is that of no one service")
    return said


def _allowed(row: Mapping[str, Any], slots: int | None) -> float:
    """Return by which share windows of one row may differ."""
    completed, mean, std = (row.get(name) for name in ("completed", "e2el_ms_mean", "e2el_ms_std"))
    if not (slots and completed and mean) or std is None:
        return LIMIT
    return min(LIMIT, max(CLOSE, SCATTER * float(std / mean) * math.sqrt(slots / completed)))


def limits(slo: Slo) -> dict[str, float]:
    """Return the limits that are set: column to limit."""
    return {slo.column(name): limit for name, limit in asdict(slo).items() if limit is not None}


def _mean_list(texts: Sequence[str]) -> str:
    """Return the means, place by place, of lists of numbers that are JSON text (`spec_by_position`)."""
    places = zip(*map(json.loads, texts), strict=False)
    return json.dumps([round(sum(place) / len(place), 4) for place in places])


def _most(said: Sequence[bool]) -> bool | None:
    """Return what most windows say; None: as many say the other."""
    return None if 2 * sum(said) == len(said) else 2 * sum(said) > len(said)


def combine(windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the medians of all figures, and the ends of the key figures where there is more than one window.

    A figure that a window lacks is taken from the others; counts stay whole (the lower median). A row is `saturated`
    where most of the windows that tell are, and it is not known where as many are not: one of three that calls a busy
    service overloaded is chance. `slo_kept` is told by the requests of all windows together.
    """
    row: dict[str, Any] = {}
    for name in windows[0]:
        known = [window[name] for window in windows if window.get(name) is not None]
        if known and isinstance(known[0], str):
            row[name] = _mean_list(known)
            continue
        whole = all(isinstance(value, int) for value in known)
        if any(isinstance(value, bool) for value in known):
            row[name] = all(known) if name == "slo_kept" else _most(known)
            continue
        row[name] = None if not known else median_low(known) if whole else median(known)
    row["windows"] = len(windows)
    for name in SPREAD:
        known = [window[name] for window in windows if window.get(name) is not None]
        wanted = len(windows) > 1 and bool(known)
        row[f"{name}_min"], row[f"{name}_max"] = (min(known), max(known)) if wanted else (None, None)
    for name in COUNTED:
        known = [window[name] for window in windows if window.get(name) is not None]
        row[name] = sum(known) if known else None
    if row["slo_requests"]:
        together = row[TOGETHER] = bound.pooled(window.get(TOGETHER) for window in windows)
        if not row.get("saturated"):
            row["slo_kept"] = bound.decided(row["slo_misses"], row["slo_requests"], together)
    return row


def said_once(notes: Iterable[str]) -> tuple[str, ...]:
    """Return each note once; what windows say alike stands behind all their numbers.

    Notes that differ in figures alone are one: `repeats 1, 3: p99 of 90 / 125 requests: ...`.
    """
    found: dict[str, dict[str, str]] = {}
    for note in notes:
        whose, _, text = note.partition(": ") if note.startswith(REPEAT) else ("", "", note)
        kind, number = alike.kind(text) if whose else text, whose.removeprefix(REPEAT)
        if found.get(kind, {}).get(number, text) != text:  # one window says it of two things
            kind = text
        found.setdefault(kind, {})[number] = text
    told = []
    for windows in found.values():
        text, numbers = alike.as_one(list(windows.values())), ", ".join(filter(None, windows))
        told.append(f"repeat{'s' if ',' in numbers else ''} {numbers}: {text}" if numbers else text)
    return tuple(told)
