"""A load that the service cannot keep up with: seen, flagged, told, and never a winner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jobs.cli.launch import Outcome
from jobs.core.config import Bench, Config
from jobs.measure.objective import combine, queue_grows
from jobs.measure.records import RequestRecord, Window
from jobs.measure.statistics import summarize
from jobs.measure.validity import notes

RATE = Bench(request_rate=10.0)
OVERLOAD = (
    "the queue grows: while 100 requests came 50 were answered, so latencies depend on the length of the measurement"
)


def record(start: float, end: float, queue_s: float = 0.0, *, in_window: bool = True) -> RequestRecord:
    times = np.array([end])
    return RequestRecord(0, start, end, end, times, 8, 1, queue_s=queue_s, in_window=in_window)


def window(*records: RequestRecord, closed_s: float = 20.0) -> Window:
    return Window(10.0, closed_s, 5.0, 1.0, records, {}, 0.1, truncated=False)


def test_a_window_of_time_is_judged_whole() -> None:
    kept_up = window(*(record(10 + i / 10, 10.05 + i / 10) for i in range(100)))
    late = window(*(record(10 + i / 10, 10.05 + i / 5) for i in range(100)))
    assert queue_grows(kept_up, RATE) is None
    assert queue_grows(late, RATE) == OVERLOAD
    assert queue_grows(late, Bench(concurrency=8)) is None, "a closed loop has no queue"


def test_under_a_cap_the_rate_counts_those_that_wait_unsent() -> None:
    sent = window(*(record(10 + i / 5, 10.1 + i / 5) for i in range(50)))
    assert queue_grows(sent, RATE) is None, "what was sent was answered"
    assert queue_grows(sent, replace(RATE, concurrency=4)) == OVERLOAD


@pytest.mark.parametrize(("each_s", "grows"), [(0.1, False), (0.2, True)])
@pytest.mark.parametrize("cap", [None, 1])
def test_a_fixed_number_of_requests_is_judged_while_they_come(each_s: float, grows: bool, cap: int | None) -> None:
    """All are answered in the end, so the whole window would never show it. One is answered at a time."""
    records, free = [], 10.0
    for i in range(400):
        came = 10 + i / 10
        begun = max(free, came)
        free = begun + each_s
        records.append(record(begun if cap else came, free, begun - came if cap else 0.0))
    bench = replace(RATE, num_requests=400, concurrency=cap)
    assert (queue_grows(window(*records, closed_s=free), bench) is not None) is grows


def test_long_answers_of_a_steady_load_are_no_queue() -> None:
    """1,000 requests at 10 a second, 20 s each: the article's test."""
    steady = [record(10 + i / 10, 30 + i / 10) for i in range(1000)]
    assert queue_grows(window(*steady, closed_s=131.0), replace(RATE, num_requests=1000)) is None


def test_it_is_a_note_of_a_valid_row_and_one_such_window_flags_the_row() -> None:
    late = window(*(record(10 + i / 10, 10.05 + i / 5) for i in range(100)))
    config = Config(bench=RATE)
    assert OVERLOAD in notes(config, late, summarize(late, RATE))
    assert combine([{"saturated": False}, {"saturated": False}, {"saturated": True}])["saturated"] is True
    assert combine([{"saturated": False}, {"saturated": False}])["saturated"] is False


def test_no_study_takes_it_for_its_best_trial() -> None:
    rows = {name: {"valid": True, "saturated": name == "fast", "output_tok_s": 9.0} for name in ("fast", "steady")}
    outcome = Outcome(("fast", "steady"), rows, worst=-1.0)
    assert (outcome.objective(0), outcome.objective(1)) == (-1.0, 9.0)
