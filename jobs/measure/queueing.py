"""Whether the requests of an open loop come faster than they are answered: the trend of those that are overdue. Pure.

A request is overdue while it has no end although it came longer ago than a fast answer takes (5th percentile of the
window's end-to-end latencies, from the arrival). What is in flight anyway, and how the rate of a trace goes up and
down, is thereby left out; a ramp is too. Overdue ones are counted in six equal parts of the window, and a line through
the counts says by how many they grew from its begin to its end. At 120 % of what the service can do that is a sixth of
all that came.

    saturated      they grew by 8 % of the requests that came, and by 11 at least
    not saturated  growth by a sixth can be ruled out (95 %, one-sided), the window being four fast answers long; or
                   the service had nothing to do for half of the time
    not known      else: the window is too short

**Power**, by simulation (tests/unit/test_queueing.py; 8 slots, 4 s a request, Poisson arrivals with a fixed count): of
windows of 120 s at 2 requests/s 97 % or more are found saturated at 120 % of capacity, half at 110 %, none of 300 at
90 %. With lengths that scatter by half of their mean: 96 %, half, 1 %. At 1 request/s 92 %, half, 2 %. Windows of fewer
than about 100 requests mostly say "not known" from 90 % of capacity on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.core.config import Bench
from jobs.measure.records import Window

PARTS = 6
FAST = 5.0
"""Percentile of the end-to-end latencies that stands for a fast answer."""

GROWN_SHARE, GROWN_LEAST = 0.08, 11.0
"""Growth that is an overload, as a share of the requests that came, and in requests. A queue at 90 % of the capacity
comes and goes by 5 (one standard deviation of its growth over 60 to 600 requests)."""

OVERLOAD = 1 / 6
"""Share of the requests by which 120 % of what a service can do makes its queue grow."""

NOISE_LEAST, NOISE_MOST, NOISE_RESIDUAL = 1.5, 5.0, 3.0
"""Standard deviation of the growth, requests: thrice that of the line through six parts, which are not independent."""

ONE_SIDED = 1.64
ANSWERS_LONG, IDLE = 4.0, 0.5
FEW, SLOWER = 5, 3.0
"""Where a fixed number of requests comes faster than one is answered none is overdue while they come: then the last
third of them took so many times as long as the first, or longer by so many times the time between their arrivals."""

LASTING = 8.0
"""So many answers long a trace shows a queue by those that are overdue."""

ENOUGH = 120
"""Requests by which a window can always tell."""


@dataclass(frozen=True)
class Trend:
    """What a window says. `saturated` None: it does not tell; `words`: for people, None where nothing is to be said."""

    saturated: bool | None
    words: str | None = None

    @property
    def grows(self) -> str | None:
        """Words where the queue grows; None: it does not, or that is not known."""
        return self.words if self.saturated else None


def trend(window: Window, bench: Bench) -> Trend:
    """Return whether requests came faster than they were answered; in a closed loop they never do.

    A window of time is judged whole; of a fixed number of requests and of a trace the time in which they come.
    """
    came = np.array([record.came_s for record in window.records if record.in_window])
    if not bench.is_open or not came.size:
        return Trend(False)
    whole = bench.num_requests is not None or bench.workload == "trace"
    begin, end = (came.min(), came.max()) if whole else (window.opened_s, window.closed_s)
    if end <= begin:
        return Trend(None)
    ours = sorted(
        (one.came_s, one.end_s, one.prompt_tokens or 0, one.output_tokens or 0)
        for one in window.records
        if one.in_window and one.status == "ok"
    )
    ended = [one[1] - one[0] for one in ours]
    fast = float(np.percentile(ended, FAST)) if ended else 0.0
    if whole and (slower := _slower(ours, end - begin)):
        return Trend(True, f"the queue grows: {slower}, so latencies depend on the length of the measurement")
    # Behind a long queue no answer is fast; a window of time has no ramp that would have to be left out.
    late = fast if whole else min(fast, (end - begin) / ANSWERS_LONG)
    grown, error = _line(_in_flight(window, late, begin, end))
    noise = min(NOISE_MOST, max(NOISE_LEAST, NOISE_RESIDUAL * error))
    if grown > max(GROWN_SHARE * came.size, GROWN_LEAST):
        return Trend(
            True,
            f"the queue grows: of {came.size} requests that came {grown:.0f} more were waiting at the end than at the"
            " begin, so latencies depend on the length of the measurement",
        )
    ruled_out = grown + ONE_SIDED * noise < OVERLOAD * came.size and end - begin >= ANSWERS_LONG * fast
    if ruled_out or _in_flight(window, 0.0, begin, end).mean() < IDLE:
        return Trend(False)
    needed = max(ENOUGH * (end - begin) / came.size, ANSWERS_LONG * fast)
    return Trend(None, _too_short(came.size, needed, bench))


def notes(found: Trend, window: Window, bench: Bench) -> list[str]:
    """Return what a reader of the row should know of the queue: that it grows, or may, or stood before the service."""
    said = [found.words] if found.words else []
    waits = sorted(record.wait_s for record in window.records if record.in_window)
    if bench.is_open and bench.concurrency and waits:
        said.append(
            f"bench.concurrency={bench.concurrency} caps the open loop: the median request waited"
            f" {waits[len(waits) // 2] * 1e3:.0f} ms for a slot, the longest {waits[-1] * 1e3:.0f} ms;"
            " latencies count from the arrival"
        )
    return said


def _too_short(count: int, needed_s: float, bench: Bench) -> str:
    seconds = math.ceil(needed_s / 10) * 10
    longer = f"bench.window_s={seconds}"
    if bench.workload == "trace":
        longer = f"a trace of {seconds} s"
    elif bench.num_requests and bench.request_rate:
        longer = f"bench.num_requests={math.ceil(seconds * bench.request_rate)}"
    return f"whether the queue grows is not known: {count} requests do not tell, {longer} would"


def _slower(ours: list[tuple[float, float, int, int]], lasted_s: float) -> str | None:
    """Return words where the last third of the requests clearly took longer than the first third.

    They took several times as long; or longer by several times the time that lies between their arrivals, which a
    delay of all of them alike (the first request of an engine, a slow machine) neither makes nor hides. Where they had
    more to do (a trace whose prompts or answers get longer) so many times longer is what they would take. Where they
    came over so long a time that a queue would have shown in it, an engine that has more to do takes longer, no more.

    Args:
        ours: arrival and end of each request, s, and the tokens of its prompt and answer.
        lasted_s: from the first arrival to the last.
    """
    third = len(ours) // 3
    if third < FEW:
        return None
    first, last = np.array(ours[:third]), np.array(ours[-third:])
    more = np.median(last[:, 2:], axis=0) / np.median(first[:, 2:], axis=0).clip(min=1.0)
    took, longer = (first[:, 1] - first[:, 0]) * max(1.0, *more), last[:, 1] - last[:, 0]
    apart = float(np.median(last[:, 0]) - np.median(first[:, 0]))
    much = np.median(longer) - np.median(took) > SLOWER * apart
    clearly = much and np.percentile(longer, 25) > np.percentile(took, 75)
    if not clearly and (np.median(longer) <= SLOWER * np.median(took) or lasted_s > LASTING * np.median(longer)):
        return None
    return f"the first requests took {np.median(took):.3g} s and the last {np.median(longer):.3g} s"


def _in_flight(window: Window, after_s: float, begin: float, end: float) -> NDArray[np.float64]:
    """Return the mean number of requests that came `after_s` ago or longer and have no end, in each part; (PARTS,)."""
    ours = [record for record in window.records if not record.check]
    since, until = np.array([(record.came_s + after_s, record.end_s) for record in ours]).T
    edges = np.linspace(begin, end, PARTS + 1)
    inside = np.minimum(until, edges[1:, None]) - np.maximum(since, edges[:-1, None])
    return np.asarray(np.clip(inside, 0.0, None).sum(axis=1) / np.diff(edges))


def _line(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return by how much the line through the parts rises over all of them, and the standard error of that."""
    x = (np.arange(PARTS) + 0.5) / PARTS - 0.5
    square = float((x**2).sum())
    rise = float((x * values).sum()) / square
    rest = values - values.mean() - rise * x
    return rise, math.sqrt(float((rest**2).sum()) / (PARTS - 2) / square)
