"""Rates of a closed loop, which hold for windows of few rounds as well. Pure.

A window that counts what arrived in it is wrong by up to a round: one of 120 s holds 0.8 answers of 150 s, and always
the same part of them, since it opens just after an answer. **Little's law** (L = X W; Little, Operations Research 9,
1961) has no such ends: in flight L (the mean over the window, from the records: `bench.concurrency`, less the moments
between an answer and the next request), times of the requests W, so their rate is X = L / mean(W), and what each of
them brings (tokens, itself) comes at X times its mean. W is that of the requests that *come* in the window: the last
one may end after it, and by Wald's equation the mean of all that began in a window is not biased by how long that one
takes. L holds the questions that stand among the load too (underload.py): a slot that asks one is a slot of this load.
"""

from __future__ import annotations

import math

import numpy as np

from jobs.core.config import Bench
from jobs.measure.records import Window

FEW = 10
"""Rounds of requests in a window below which one slow answer moves the figures by more than a tenth."""

FULL = 0.98
"""Requests in flight (mean) by the slots below which the rates of a fixed number of requests are too low."""


def in_rounds(bench: Bench) -> bool:
    """Tell whether the rates of a window are those of Little's law: a closed loop that is measured for a time."""
    return not bench.is_open and bench.num_requests is None


def per_request(window: Window) -> float | None:
    """Return requests a second for each one that came: rates are this times their sums. None: there was no window."""
    if window.seconds <= 0:
        return None
    took = sum(record.end_s - record.start_s for record in window.records if record.in_window)
    if not took:
        return 0.0
    return in_flight(window) / took


def in_flight(window: Window) -> float:
    """Return the requests in flight, the mean over the window."""
    start, end = np.array([(record.start_s, record.end_s) for record in window.records]).reshape(-1, 2).T
    inside = np.minimum(end, window.closed_s) - np.maximum(start, window.opened_s)
    return float(inside.clip(0.0).sum()) / max(window.seconds, 1e-9)


def note(window: Window, bench: Bench) -> str | None:
    """Return words where the window held few rounds of requests, or a fixed number of them that is mostly ramps."""
    came, slots = [record for record in window.records if record.in_window], bench.concurrency or 0
    counted = bench.num_requests is not None or bench.workload == "trace"
    if not came or window.seconds <= 0:
        return None
    if counted and not bench.is_open and in_flight(window) < FULL * slots:
        return (
            f"{len(came)} requests are {len(came) / slots:.2g} rounds of bench.concurrency={slots}:"
            " the rates hold the begin and the end too, when fewer are in flight"
        )
    if counted and bench.is_open:
        after = window.closed_s - max(record.came_s for record in came)
        if after > window.seconds / FEW:
            return (
                f"{after:.3g} of {window.seconds:.3g} s were after the last request had come: the rates hold them too"
            )
    took = [record.end_s - record.start_s for record in came if record.status == "ok"]
    return few(window.seconds, float(np.mean(took))) if in_rounds(bench) and took else None


def few(window_s: float, each_s: float) -> str | None:
    """Return words on a window that holds few rounds of requests of `each_s` seconds, and on one that holds enough."""
    found = window_s / each_s if each_s else FEW
    if found > FEW - 0.05:
        return None
    enough = math.ceil(round(each_s, 3)) * FEW
    return f"about {found:.2g} requests a slot in the window: bench.window_s={enough} would hold {FEW}"
