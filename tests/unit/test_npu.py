"""Power and memory from what `npu-smi info` prints."""

from __future__ import annotations

import pytest

from jobs.measure import npu
from jobs.measure.npu import Reading, parse
from jobs.measure.records import Window

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


def test_a_device_of_one_chip() -> None:
    assert parse(A2, 5.0) == (Reading(5.0, 0, 95.6, 61234), Reading(5.0, 7, 101.0, 3375))


def test_a_device_of_two_chips() -> None:
    assert parse(A3) == (Reading(0.0, 0, 178.5, 6611), Reading(0.0, 1, 186.3, 3415))


def test_other_words_give_nothing() -> None:
    for text in ("", "dcmi model initialized failed, because the device is used. ret is -8020", "| 0 | x |"):
        assert parse(text) == ()


def test_the_power_of_a_window_is_the_mean_of_the_sums() -> None:
    window = Window(10.0, 20.0, 1.0, 1.0, (), {}, 0.1, truncated=False)
    before, first, second = (parse(A2, time) for time in (9.0, 11.0, 13.0))
    louder = tuple(Reading(one.time_s, one.npu, (one.power_w or 0) + 10, one.hbm_mb) for one in second)
    assert npu.mean_power([*before, *first, *louder], window) == (95.6 + 101) + 10
    assert npu.mean_power(before, window) is None
    rows = npu.table([window], [(*before, *first)]).to_pylist()
    assert [(row["npu"], row["time_s"], row["in_window"]) for row in rows] == [
        (0, -1.0, False), (7, -1.0, False), (0, 1.0, True), (7, 1.0, True),
    ]  # fmt: skip
    assert npu.table([], []).schema == npu.table([window], [first]).schema


async def test_a_host_without_the_program_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    readings: list[Reading] = []
    await npu.watch(readings)
    assert readings == []
