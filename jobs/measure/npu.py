"""Power and memory of this node's NPUs while a window is measured, by `npu-smi info` where it is there.

The head measures, so these are the NPUs of the head's node; the other nodes' work is alike.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from jobs import process
from jobs.errors import RunError
from jobs.measure.records import Window
from jobs.measure.wire import clock

PROGRAM = "npu-smi"
PERIOD_S = 2.0
LIMIT_S = 20.0

_POWER = re.compile(r"^\|\s*(?P<npu>\d+)\s+(?P<name>\S+)\s*\|\s*(?P<health>\w+)\s*\|\s*(?P<power>\d+(?:\.\d+)?|-)\s")
_CHIP = re.compile(r"^\|\s*(?P<chip>\d+)\s*(?:\d+\s*)?\|\s*[0-9A-Fa-f:.]+\s*\|(?P<rest>.*)\|\s*$")
_PAIR = re.compile(r"(\d+)\s*/\s*(\d+)")


@dataclass(frozen=True)
class Reading:
    """One NPU at one moment of the records' clock. None: it does not tell."""

    time_s: float
    npu: int
    power_w: float | None
    hbm_mb: int | None


def parse(text: str, time_s: float = 0.0) -> tuple[Reading, ...]:
    """Return the NPUs of the table that `npu-smi info` prints, one a device; a line of another form is passed over.

    A device has two lines: number, name, health and power in W; then chip, bus and, as the last pair of numbers,
    used and total HBM in MB. A device of two chips (A3) has four lines, its power in the first of them and a dash in
    the third; the HBM of its chips is added up. Forms: vllm-ascend issues 2534 and 12980.
    """
    found: dict[int, Reading] = {}
    current: int | None = None
    for line in text.splitlines():
        if power := _POWER.match(line):
            current = int(power["npu"])
            if current not in found:
                watts = None if power["power"] == "-" else float(power["power"])
                found[current] = Reading(time_s, current, watts, None)
        elif current is not None and (chip := _CHIP.match(line)) and (pairs := _PAIR.findall(chip["rest"])):
            before = found[current]
            used = (before.hbm_mb or 0) + int(pairs[-1][0])
            found[current] = Reading(time_s, current, before.power_w, used)
        elif "Process id" in line:
            break  # the table of processes has the same form
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
