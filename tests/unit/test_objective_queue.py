"""A load that the service cannot keep up with: seen, flagged, told, and never a winner."""

from __future__ import annotations

import numpy as np

from jobs.cli.launch import Outcome
from jobs.core.config import Bench, Config
from jobs.core.load import Slo
from jobs.measure.gate.case import Case
from jobs.measure.objective import combine, notes, told
from jobs.measure.queueing import trend
from jobs.measure.records import RequestRecord, Window
from jobs.measure.statistics import summarize
from jobs.measure.validity import judge

RATE = Bench(request_rate=10.0)


def window() -> Window:
    """10 requests a second come and 5 are answered: 100 of them, from an idle service on."""
    ends = [(10 + i / 10, 10.05 + i / 5) for i in range(100)]
    records = [RequestRecord(0, came, end, end, np.array([end]), 8, 1) for came, end in ends]
    return Window(10.0, 20.0, 5.0, 1.0, tuple(records), {}, 0.1, truncated=False)


def test_it_is_a_note_of_a_valid_row_and_most_windows_flag_the_row() -> None:
    late, config = window(), Config(bench=RATE)
    found = trend(late, RATE)
    words = found.grows
    assert words and words.startswith("the queue grows: of 100 requests that came")
    assert words in judge(Case(config, late, summarize(late, RATE), found))[1]
    kept = told(late, Slo(ttft_ms=1e6), saturated=found.saturated)["slo_kept"]
    assert kept is False, "a queue that grows keeps nothing"
    told_by = {(True, True, False): True, (False, None, True): None, (False, False, True): False}
    for windows, row in told_by.items():
        assert combine([{"saturated": one, "slo_requests": None} for one in windows])["saturated"] is row
    assert combine([{"saturated": None}, {"saturated": False}])["saturated"] is False
    assert combine([{"saturated": None}, {"saturated": None}])["saturated"] is None


def test_windows_that_are_of_no_one_service_are_noted() -> None:
    near, far = (
        [{"output_tok_per_s": rate, "slo_requests": None} for rate in rates] for rates in ((9, 11), (9, 10, 17))
    )
    assert not notes(combine(near))
    assert notes(combine(far)) == [
        "output_tok_per_s differs by 89% between the windows: their median is that of no one service"
    ]


def test_no_study_takes_it_for_its_best_trial() -> None:
    rows = {name: {"valid": True, "saturated": name == "fast", "output_tok_per_s": 9.0} for name in ("fast", "steady")}
    outcome = Outcome(("fast", "steady"), rows, worst=-1.0)
    assert (outcome.objective(0), outcome.objective(1)) == (-1.0, 9.0)
