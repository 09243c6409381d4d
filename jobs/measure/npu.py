"""Power and memory of this node's NPUs while a window is measured, by `npu-smi info` where it is there.

The head measures, so these are the NPUs of the head's node alone, and the row's column says so (`head_npu_power_w`):
rates of the row are those of all nodes.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from jobs.core import process
from jobs.core.errors import RunError
from jobs.engines.ascend import npu_smi
from jobs.measure.records import Window
from jobs.measure.wire import clock

PROGRAM = "npu-smi"
PERIOD_S = 2.0
LIMIT_S = 20.0


@dataclass(frozen=True)
class Reading:
    """One NPU at one moment of the records' clock. None: it does not tell."""

    time_s: float
    npu: int
    power_w: float | None
    hbm_mb: int | None


def parse(text: str, time_s: float = 0.0) -> tuple[Reading, ...]:
    """Return the NPUs of the table that `npu-smi info` prints, one a device; empty where there is none.

    A device of two chips (A3) shows its power once; the HBM of its chips is added up.
    """
    found: dict[int, Reading] = {}
    for one in npu_smi.npus(text):
        before = found.setdefault(one.index, Reading(time_s, one.index, one.power_w, 0))
        found[one.index] = replace(before, hbm_mb=(before.hbm_mb or 0) + one.used_mb)
    return tuple(found.values())


async def watch(readings: list[Reading]) -> None:
    """Add readings until cancelled; end at once on a host without the program, or where it fails."""
    if shutil.which(PROGRAM) is None:
        return
    while True:
        now = clock()
        try:
            done = await asyncio.to_thread(process.run, [PROGRAM, "info"], timeout_s=LIMIT_S)
        except RunError:
            return
        if done.returncode != 0:
            return
        readings.extend(parse(done.stdout, now))
        await asyncio.sleep(max(0.0, PERIOD_S - (clock() - now)))


def mean_power(readings: Sequence[Reading], window: Window) -> float | None:
    """Return the mean over the window of the power of all NPUs together, W."""
    totals: dict[float, float] = {}
    for one in readings:
        if one.power_w is not None and window.opened_s <= one.time_s < window.closed_s:
            totals[one.time_s] = totals.get(one.time_s, 0.0) + one.power_w
    return sum(totals.values()) / len(totals) if totals else None


def table(windows: Sequence[Window], readings: Sequence[Sequence[Reading]]) -> pa.Table:
    """Return one row per NPU and moment, for npu.parquet: times in s from the opening of its window."""
    rows = [
        (number, one.time_s - window.opened_s, window.opened_s <= one.time_s < window.closed_s, one)
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
