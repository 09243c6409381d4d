"""Power and memory from what `npu-smi info` prints; the processor share of an external client's busiest thread."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.measure import telemetry
from jobs.measure.records import Window
from jobs.measure.telemetry import Reading, Usage, busiest, parse_npus

# The form of vllm-ascend's issue reports: one chip a device (A2), and two (A3), where the power stands once.
A2 = """
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc2                 Version: 24.1.rc2                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 95.6        45                0    / 0             |
| 0                         | 0000:C1:00.0  | 12          0    / 0          61234/ 65536         |
+===========================+===============+====================================================+
| 7     910B3               | Warning       | 101         45                0    / 0             |
| 0                         | 0000:42:00.0  | 0           0    / 0          3375 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 12345         | python                   | 57859                   |
+===========================+===============+====================================================+
"""
A3 = """
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 178.5       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          3195 / 65536         |
+===========================+===============+====================================================+
| 1     Ascend910           | OK            | 186.3       36                0    / 0             |
| 0     2                   | 0000:99:00.0  | 0           0    / 0          3415 / 65536         |
+------------------------------------------------------------------------------------------------+
"""
LOADS, LOOP, IDLE = (7, 7), (8, 8), (8, 9)


def test_a_device_of_one_chip() -> None:
    assert parse_npus(A2, 5.0) == (Reading(5.0, 0, 95.6, 61234), Reading(5.0, 7, 101.0, 3375))


def test_a_device_of_two_chips() -> None:
    assert parse_npus(A3) == (Reading(0.0, 0, 178.5, 6611), Reading(0.0, 1, 186.3, 3415))


def test_other_words_give_nothing() -> None:
    for text in ("", "dcmi model initialized failed, because the device is used. ret is -8020", "| 0 | x |"):
        assert parse_npus(text) == ()


def test_the_power_of_a_window_is_the_mean_of_the_sums() -> None:
    window = Window(10.0, 20.0, 1.0, 1.0, (), {}, 0.1, truncated=False)
    before, first, second = (parse_npus(A2, time) for time in (9.0, 11.0, 13.0))
    louder = tuple(Reading(one.time_s, one.npu, (one.power_w or 0) + 10, one.hbm_mb) for one in second)
    assert telemetry.mean_power([*before, *first, *louder], window) == (95.6 + 101) + 10
    assert telemetry.mean_power(before, window) is None
    rows = telemetry.npu_table([window], [(*before, *first)]).to_pylist()
    assert [(row["npu"], row["time_s"], row["in_window"]) for row in rows] == [
        (0, -1.0, False), (7, -1.0, False), (0, 1.0, True), (7, 1.0, True),
    ]  # fmt: skip
    assert telemetry.npu_table([], []).schema == telemetry.npu_table([window], [first]).schema


async def test_a_host_without_the_program_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    readings: list[Reading] = []
    await telemetry.watch_npus(readings)
    assert readings == []


def test_the_busiest_thread_counts_and_only_in_the_window() -> None:
    """Loading takes a whole processor before the first request; the event loop half of one after it."""
    usages = [
        Usage(float(i), {LOADS: min(i, 3) * 1.0, LOOP: max(0.0, i - 3) * 0.5, IDLE: 0.25 + 0.01 * i}) for i in range(12)
    ]
    assert busiest(usages, 4.0, 9.0) == pytest.approx(0.5)
    assert busiest(usages, 0.0, 3.0) == pytest.approx(1.0)


def test_too_short_a_span_tells_nothing() -> None:
    usages = [Usage(float(i), {LOOP: i * 0.9}) for i in range(5)]
    assert busiest(usages, 1.0, 2.5) is None
    assert busiest([], 0.0, 10.0) is None
    assert busiest(usages, 1.0, 3.0) == pytest.approx(0.9)


def test_a_clients_processes_are_the_new_children() -> None:
    """The engine of this rank is a child as well, and was there before."""
    words = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]

    def started() -> subprocess.Popen[bytes]:
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        return child

    engine = started()
    known = telemetry.children()
    client = started()
    try:
        found = {pid for pid, _ in telemetry._threads(known).seconds}
        assert client.pid in found and engine.pid not in found
    finally:
        for child in (engine, client):
            child.communicate()
    assert client.pid not in {pid for pid, _ in telemetry._threads(known).seconds}
