"""Times of log lines: what loggers leave out comes from their neighbours."""

from __future__ import annotations

from datetime import datetime

import pytest

from jobs.diagnose.times import has_stamp, timeline


def times(*logs: list[str], ends: list[datetime | None] | None = None) -> list[list[str | None]]:
    found = timeline(list(zip(logs, ends or [None] * len(logs), strict=True)))
    return [[when.time.isoformat(timespec="seconds") if when.time else None for when in log] for log in found]


@pytest.mark.parametrize(
    ("line", "time"),
    [
        ("[2026-11-24T22:51:48] error: x", "2026-11-24T22:51:48"),
        ("slurmstepd: error: *** STEP 9.0 ON n1 CANCELLED AT 2026-11-24T22:25:56 ***", "2026-11-24T22:25:56"),
        ("[ERROR] HCCL(1234,python):2025-09-12-10:00:00.123.456 [a.cc:1] x", "2025-09-12T10:00:00"),
        ("[ERROR] 2025-04-08-18:07:20 (PID:1, Device:1, RankID:-1) ERR01100", "2025-04-08T18:07:20"),
        ("submitit INFO (2026-11-24 23:25:49,921) - Starting", "2026-11-24T23:25:49"),
        ("(EngineCore_DP1 pid=3) ERROR 11-24 22:51:48 [core.py:7] x", "2000-11-24T22:51:48"),
        ("[rank0]:[W1029 16:38:45.563133150 compiler_depend.ts:149] x", "2000-10-29T16:38:45"),
        ("[rank9]:[E119 05:52:40.886041733 compiler_depend.ts:444] x", "2000-01-19T05:52:40"),
        ("W0427 03:08:57.144000 540525 torch/distributed/run.py:793] x", "2000-04-27T03:08:57"),
        ("22:51:48 service 45fa: start", "2000-01-01T22:51:48"),
        ("no time at all", None),
        ("ERROR 13-45 22:51:48 [a.py:1] x", None),
        ("took 22:51:48 hours", None),
    ],
)
def test_forms(line: str, time: str | None) -> None:
    got = times([line])[0][0]
    if time and time.startswith("2000-"):  # no log tells the year: any will do
        assert got is not None
        assert got[5:] == time[5:] or time.startswith("2000-01-01T")
    else:
        assert got == time
    assert has_stamp(line) == (time is not None or "13-45" in line)


def test_microseconds_of_cann_order_lines_of_one_second() -> None:
    found = timeline([(["HCCL(1,p):2025-09-12-10:00:00.123.456 a", "HCCL(1,p):2025-09-12-10:00:00.1 b"], None)])
    assert [when.time and when.time.microsecond for when in found[0]] == [123456, 100000]


def test_a_line_without_a_time_has_that_of_the_line_before() -> None:
    found = timeline([(["Traceback", "ERROR 11-24 10:00:00 [a.py:1] x", "ValueError: y"], None)])[0]
    assert [(when.time is not None, when.own) for when in found] == [(False, False), (True, True), (True, False)]
    assert found[2].time == found[1].time


def test_year_and_day_come_from_the_logs_that_tell_them() -> None:
    vllm = ["ERROR 11-24 22:51:48 [a.py:1] x"]
    ours = ["22:51:49 service s: start"]
    slurm = ["[2026-11-24T22:50:00] x"]
    assert times(vllm, ours, slurm)[:2] == [["2026-11-24T22:51:48"], ["2026-11-24T22:51:49"]]


def test_logs_over_midnight_and_new_year() -> None:
    ours = ["submitit INFO (2026-12-31 23:59:58,000) - x", "23:59:59 a", "00:00:01 b", "13:00:00 c"]
    vllm = ["INFO 12-31 23:59:59 [a.py:1] x", "INFO 01-01 00:00:02 [a.py:1] y"]
    assert times(ours, vllm) == [
        ["2026-12-31T23:59:58", "2026-12-31T23:59:59", "2027-01-01T00:00:01", "2027-01-01T13:00:00"],
        ["2026-12-31T23:59:59", "2027-01-01T00:00:02"],
    ]


def test_the_29th_of_february_is_a_day_of_leap_years_only() -> None:
    assert times(["INFO 02-29 10:00:00 [a.py:1] x"], ["2028-03-01T00:00:00 y"])[0] == ["2028-02-29T10:00:00"]
    assert times(["INFO 02-29 10:00:00 [a.py:1] x"], ["2026-03-01T00:00:00 y"])[0] == [None]


def test_a_log_without_any_time_has_that_of_its_end() -> None:
    end = datetime(2026, 11, 24, 12)
    assert times(["a", "b"], ends=[end]) == [["2026-11-24T12:00:00"] * 2]
    assert times(["a", "b"]) == [[None, None]]


def test_a_log_of_clocks_alone_is_placed_by_its_end_and_rolls_back_over_days() -> None:
    ours = ["06:00:00 a", "18:00:00 b", "23:00:00 c", "09:00:00 d"]
    end = datetime(2026, 11, 25, 9, 0, 1)
    days = ["2026-11-24T06:00:00", "2026-11-24T18:00:00", "2026-11-24T23:00:00", "2026-11-25T09:00:00"]
    assert times(ours, ends=[end]) == [days]
    vllm = ["INFO 11-24 06:00:05 [a.py:1] x", "ERROR 11-25 08:59:58 [a.py:1] y"]
    assert times(ours, vllm, ends=[end, end])[0] == days


def test_the_clock_of_the_file_system_may_be_a_little_behind() -> None:
    assert times(["09:00:05 a"], ends=[datetime(2026, 11, 25, 9)]) == [["2026-11-25T09:00:05"]]


def test_a_copied_log_is_placed_by_what_the_other_logs_tell() -> None:
    copied = datetime(2026, 12, 3, 15)
    ours, vllm = ["23:59:00 a", "00:01:00 b"], ["ERROR 11-24 00:00:58 [a.py:1] y"]
    assert times(ours, vllm, ends=[copied, copied])[0] == ["2026-11-23T23:59:00", "2026-11-24T00:01:00"]
