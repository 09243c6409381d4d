"""How busy an external client was: a full processor would be what was measured, not the service.

Its processes are the children that this process got since the client began. One that a container's daemon starts is no
child of ours: then nothing is known.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from jobs.measure.wire import clock

PERIOD_S = 1.0

LEAST_S = 2.0
"""Span of readings below which they tell nothing: the kernel counts in hundredths of a second."""

Thread = tuple[int, int]
"""Process and thread."""


@dataclass(frozen=True)
class Usage:
    """Processor seconds of each thread so far, at one moment of the records' clock."""

    time_s: float
    seconds: Mapping[Thread, float]


def children() -> set[int]:
    """Return the processes below this one."""
    return {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}


def sample(known: set[int]) -> Usage:
    """Return what the processes below this one have used, but for `known` ones."""
    now, seconds = clock(), {}
    for pid in children() - known:
        try:
            for thread in psutil.Process(pid).threads():
                seconds[pid, thread.id] = thread.user_time + thread.system_time
        except psutil.Error:  # it has ended meanwhile
            continue
    return Usage(now, seconds)


async def watch(usages: list[Usage], known: set[int]) -> None:
    """Add a reading a second until cancelled; `known`: the processes that were there before the client."""
    while True:
        usages.append(await asyncio.to_thread(sample, known))
        await asyncio.sleep(PERIOD_S)


def share(usages: Sequence[Usage], opened_s: float, closed_s: float) -> float | None:
    """Return the processor share of the busiest thread between two moments; an event loop is one thread.

    None: there are no readings of it, or they lie too close together.
    """
    seen: dict[Thread, list[tuple[float, float]]] = {}
    for usage in usages:
        if opened_s <= usage.time_s <= closed_s:
            for thread, seconds in usage.seconds.items():
                seen.setdefault(thread, []).append((usage.time_s, seconds))
    shares = [
        (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
        for points in seen.values()
        if points[-1][0] - points[0][0] >= LEAST_S
    ]
    return max(shares, default=None)
