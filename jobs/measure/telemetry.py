"""What a window costs this node: power and memory of its NPUs, and the processor time of an external client.

NPUs are read by `npu-smi info` where it is there. The head measures, so these are the NPUs of the head's node alone,
and the row's column says so (`head_npu_power_w`): rates of the row are those of all nodes.

A client that fills a processor was itself what was measured. Its processes are the children that this process got
since the client began. One that a container's daemon starts is no child of ours: then nothing is known.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import psutil
import pyarrow as pa

from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.waiting import aside
from jobs.engines.ascend import npu_smi
from jobs.measure.records import Window, by_moment
from jobs.measure.wire import clock

PROGRAM = "npu-smi"
NPUS_PERIOD_S = 2.0
LIMIT_S = 20.0


@dataclass(frozen=True)
class Reading:
    """One NPU at one moment of the records' clock. None: it does not tell."""

    time_s: float
    npu: int
    power_w: float | None
    hbm_mb: int | None


def parse_npus(text: str, time_s: float = 0.0) -> tuple[Reading, ...]:
    """Return the NPUs of the table that `npu-smi info` prints, one a device; empty where there is none.

    A device of two chips (A3) shows its power once; the HBM of its chips is added up.
    """
    found: dict[int, Reading] = {}
    for one in npu_smi.npus(text):
        before = found.setdefault(one.index, Reading(time_s, one.index, one.power_w, 0))
        found[one.index] = replace(before, hbm_mb=(before.hbm_mb or 0) + one.used_mb)
    return tuple(found.values())


async def watch_npus(readings: list[Reading]) -> None:
    """Add readings until cancelled; end at once on a host without the program, or where it fails."""
    if shutil.which(PROGRAM) is None:
        return
    while True:
        now = clock()
        try:
            done = await aside(process.run, [PROGRAM, "info"], timeout_s=LIMIT_S)
        except RunError:
            return
        if done.returncode != 0:
            return
        readings.extend(parse_npus(done.stdout, now))
        await asyncio.sleep(max(0.0, NPUS_PERIOD_S - (clock() - now)))


def mean_power(readings: Sequence[Reading], window: Window) -> float | None:
    """Return the mean over the window of the power of all NPUs together, W."""
    totals = by_moment((one.time_s, one.power_w) for one in readings if window.holds(one.time_s))
    return sum(totals.values()) / len(totals) if totals else None


def npu_table(windows: Sequence[Window], readings: Sequence[Sequence[Reading]]) -> pa.Table:
    """Return one row per NPU and moment, for npu.parquet: times in s from the opening of its window."""
    rows = [
        (number, one.time_s - window.opened_s, window.holds(one.time_s), one)
        for number, (window, of_window) in enumerate(zip(windows, readings, strict=True), 1)
        for one in of_window
    ]
    return pa.table(
        {
            "window": pa.array([number for number, _, _, _ in rows], pa.int64()),
            "time_s": pa.array([time for _, time, _, _ in rows], pa.float64()),
            "in_window": pa.array([inside for _, _, inside, _ in rows], pa.bool_()),
            "npu": pa.array([one.npu for *_, one in rows], pa.int64()),
            "power_w": pa.array([one.power_w for *_, one in rows], pa.float64()),
            "hbm_mb": pa.array([one.hbm_mb for *_, one in rows], pa.int64()),
        }
    )


THREADS_PERIOD_S = 1.0

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


def _threads(known: set[int]) -> Usage:
    """Return what the processes below this one have used, but for `known` ones."""
    now, seconds = clock(), {}
    for pid in children() - known:
        try:
            for thread in psutil.Process(pid).threads():
                seconds[pid, thread.id] = thread.user_time + thread.system_time
        except psutil.Error:  # it has ended meanwhile
            continue
    return Usage(now, seconds)


async def watch_threads(usages: list[Usage], known: set[int]) -> None:
    """Add a reading a second until cancelled; `known`: the processes that were there before the client."""
    while True:
        usages.append(await aside(_threads, known))
        await asyncio.sleep(THREADS_PERIOD_S)


def busiest(usages: Sequence[Usage], opened_s: float, closed_s: float) -> float | None:
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
