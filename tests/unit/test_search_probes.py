"""A search on windows that cannot be believed: they are measured again, and what limits the search is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jobs.core.config import Bench, Config
from jobs.core.load import Slo
from jobs.measure import objective
from jobs.measure.point import Measured, OfService, Outcome, PointRun
from jobs.measure.queueing import trend
from jobs.measure.records import RequestRecord, Target, Window
from jobs.measure.statistics import of_series, summarize

BENCH = Bench(
    search="concurrency", concurrency=4, search_most=32.0, search_precision=0.05, slo=Slo(ttft_ms=1000.0),
    canary="off",
)  # fmt: skip
OTHERS = "3 requests that were not ours ran on the service"


async def searched(
    monkeypatch: pytest.MonkeyPatch, invalid: Callable[[float, int], bool], bench: Bench = BENCH
) -> Measured:
    """Search on a service that keeps the objective up to 20; `invalid(load, time)` tells which are not valid."""
    times: dict[float, int] = {}

    async def window(self: PointRun, probe: Bench, **about: Any) -> Outcome:
        load = about["load"]
        times[load] = times.get(load, 0) + 1
        ttft = 0.5 if load <= 20 else 2.0
        one = RequestRecord(0, 1.0, 1.0 + ttft, 4.0, np.array([1.0 + ttft, 4.0]), 8, 2)
        answered = 400 if probe.request_rate is None else int(min(load, 20.0) * 10)
        asked = 400 if probe.request_rate is None else int(load * 10)
        late = [RequestRecord(0, 1.0, None, 99.0, np.empty(0), 8, 2, status="truncated")] * (asked - answered)
        made = Window(0.0, 10.0, 1.0, 0.5, (*[one] * answered, *late), {}, 0.1, truncated=False)
        reason = OTHERS if invalid(load, times[load]) else None
        self._windows.append(made)
        self.lines.append({**about, "valid": reason is None})
        grows = trend(made, probe).grows
        told = objective.told(made, probe.slo, saturated=bool(grows))
        figures = summarize(made, probe) | of_series(made) | {"saturated": False} | told
        return Outcome(made, figures, reason, (), grows)

    monkeypatch.setattr(PointRun, "_window", window)
    target = Target("http://127.0.0.1:9", "m")
    run = PointRun(Config(bench=bench), target, OfService(), None, asyncio.Event(), lambda _: None)
    await run.run()
    return run.result()


async def test_one_disturbed_window_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    point = await searched(monkeypatch, lambda load, time: load == 8 and time == 1)
    assert (point.figures["found_concurrency"], point.reason) == (20, None)
    assert not [note for note in point.notes if "limited" in note]
    assert [line["kind"] for line in point.lines if line["load"] == 8] == ["probe", "probe again"]
    assert [line["valid"] for line in point.lines if line["load"] == 8] == [False, True]


async def test_what_limits_the_search_is_said_where_it_is_not_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    point = await searched(monkeypatch, lambda load, _: load >= 14)
    assert (point.figures["found_concurrency"], point.reason) == (13, None)
    assert f"limited by: {OTHERS} (at 14), not by the objective" in point.notes
    assert all(line["objective_broken"] is None for line in point.lines if not line["valid"])


async def test_where_no_window_is_valid_the_row_is_not_either(monkeypatch: pytest.MonkeyPatch) -> None:
    point = await searched(monkeypatch, lambda *_: True)
    assert (point.figures["found_concurrency"], point.reason) == (None, OTHERS)


async def test_an_overload_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are not answered in time make a window invalid, and more of the same tells nothing new."""
    rates = Bench(
        search="request_rate", request_rate=10.0, concurrency=None, search_most=80.0, search_precision=0.5,
        slo=BENCH.slo, canary="off",
    )  # fmt: skip
    point = await searched(monkeypatch, lambda load, _: load > 30, rates)
    high = [line for line in point.lines if line["load"] > 30]
    assert [line["kind"] for line in high] == ["probe"] * len(high) and high
    assert all(line["objective_broken"].startswith("the queue grows") for line in high)
    assert not [note for note in point.notes if "limited" in note]
