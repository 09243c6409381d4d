"""Whether a row may be believed: each check has its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jobs.config import Bench, Config, Parallel
from jobs.measure.records import RequestRecord, Window
from jobs.measure.statistics import summarize
from jobs.measure.validity import invalid_reason

CONFIG = Config(bench=Bench(concurrency=2, window_s=10.0), parallel=Parallel(data_parallel_size=2))


def request(**changed: Any) -> RequestRecord:
    made = RequestRecord(
        index=0,
        start_s=1.0,
        first_token_s=1.5,
        end_s=2.0,
        chunk_times=np.array([1.5, 2.0]),
        prompt_tokens=8,
        output_tokens=2,
        status="ok",
        error=None,
        in_window=True,
    )
    return replace(made, **changed)


def window(*records: RequestRecord, **changed: Any) -> Window:
    made = Window(0.0, 10.0, 1.0, 0.5, tuple(records), {"0": 2, "1": 2}, 0.1, truncated=False)
    return replace(made, **changed)


def reason(measured: Window, config: Config = CONFIG) -> str | None:
    return invalid_reason(config, measured, summarize(measured, config.bench))


def test_a_whole_window_is_valid() -> None:
    assert reason(window(request())) is None


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (window(), "no request of the window was completed"),
        (window(request(status="failed", error="HTTP 500: dead")), "HTTP 500: dead"),
        (
            window(closed_s=0.0, truncated=True),
            "the window never opened: no answer within bench.warmup_s and limits.dr",
        ),
        (window(request(), request(status="failed", error="reset")), "1 requests failed: reset"),
        (window(request(), request(status="truncated", output_tokens=None)), "1 requests had no whole answer"),
        (window(request(), truncated=True), "the window was cut short"),
        (window(request(), engine_tokens={"0": 4, "1": 0}), "data-parallel rank 1 served no token"),
        (window(request(), engine_tokens={"0": 4}), "data-parallel rank 1 served no token"),
    ],
)
def test_reasons(measured: Window, words: str) -> None:
    found = reason(measured)
    assert found is not None
    assert words in found


def test_a_load_below_the_number_of_engines_may_leave_one_idle() -> None:
    one_user = replace(CONFIG, bench=replace(CONFIG.bench, concurrency=1))
    assert reason(window(request(), engine_tokens={"0": 4, "1": 0}), one_user) is None
