"""Traces as people bring them: unsorted, with equal stamps, holes, bursts and ramps; and lines that are none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import Answer, Behaviour, Seen, measure, queue, steady

QUICK = steady(0.2, 0.05)


def line(at_s: float, output: int = 8, prompt: int = 16, **more: Any) -> dict[str, Any]:
    return {"timestamp": 1e3 * at_s, "input_length": prompt, "output_length": output, **more}


def replay(folder: Path, behave: Behaviour, lines: Sequence[Any], *more: str) -> Seen:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return measure(behave, "bench.workload=trace", f"bench.dataset={path}", *more)


def batch(base_s: float, more_s: float) -> Behaviour:
    """Return an engine that takes longer for a token the more requests run: it slows down, and keeps up."""

    async def behave(answer: Answer) -> None:
        moment = answer.stub.now
        for _ in range(answer.output_tokens):
            moment += base_s + more_s * sum(engine.running for engine in answer.stub.engines)
            await answer.at(moment)
            answer.chunk()
        answer.end()

    return behave


EVEN = [0.5 * number for number in range(40)]


@pytest.mark.parametrize(
    ("times", "more", "count", "rate"),
    [
        ([float(one) for one in np.random.default_rng(0).permutation(EVEN)], (), 40, 2.0),
        ([at - 10 for at in EVEN], (), 40, 2.0),
        ([1.7e9 + at for at in EVEN], (), 40, 2.0),
        (EVEN, ("bench.trace_speed=2",), 40, 4.0),
        (EVEN, ("bench.num_requests=10",), 10, 2.0),
        ([2.0 * (number // 4) for number in range(40)], (), 40, 39 / 18),
        ([3.0] * 40, (), 40, None),
        ([5.0], (), 1, None),
    ],
    ids=["unsorted", "negative", "of the epoch", "twice as fast", "cut", "by four", "all at once", "one"],
)
def test_what_was_offered_is_told(
    tmp_path: Path, times: Sequence[float], more: tuple[str, ...], count: int, rate: float | None
) -> None:
    seen = replay(tmp_path, QUICK, list(map(line, times)), *more)
    assert seen.reason is None and seen.figures["completed"] == count
    assert seen.figures["offered_per_s"] == (rate if rate is None else pytest.approx(rate, rel=1e-3))
    assert seen.figures["ttft_ms_p50"] == pytest.approx(200, abs=0.1)


def test_fewer_requests_than_were_asked_for_are_told(tmp_path: Path) -> None:
    seen = replay(tmp_path, QUICK, list(map(line, EVEN)), "bench.num_requests=100")
    assert seen.reason is None and "the trace holds 40 requests, and bench.num_requests=100" in seen.notes


@pytest.mark.parametrize(
    "odd",
    [
        '{"timestamp": NaN, "input_length": 16, "output_length": 8}',
        '{"timestamp": Infinity, "input_length": 16, "output_length": 8}',
        '{"timestamp": 1e400, "input_length": 16, "output_length": 8}',
        '{"timestamp": 1, "input_length": 16.5, "output_length": 8}',
        '{"timestamp": 1, "input_length": 16, "output_length": 0.9}',
        '{"timestamp": null, "input_length": 16, "output_length": 8}',
    ],
)
def test_a_line_that_is_no_request_is_refused_and_never_waited_for(tmp_path: Path, odd: str) -> None:
    seen = replay(tmp_path, QUICK, [line(0), odd, line(1)])
    assert "no trace: line 2" in (seen.reason or "")


RAMPS = {
    "four times as many in the end": np.cumsum([1.0] * 60 + [0.25] * 120),
    "six times as many in the last fifth": np.cumsum([1.0] * 120 + [0.16] * 120),
    "more and more": np.cumsum(1 / np.linspace(0.5, 6.0, 240)),
    "up and down": np.cumsum(1 / (2.5 + 2 * np.sin(np.linspace(0, 4 * np.pi, 300)))),
    "a hole": np.concatenate([np.arange(60) * 0.5, 130 + np.arange(60) * 0.5]),
    "bursts": np.repeat(np.arange(20) * 6.0, 10) + np.tile(np.arange(10) * 0.05, 20),
}


@pytest.mark.parametrize("times", RAMPS.values(), ids=RAMPS.keys())
def test_an_engine_that_takes_longer_where_more_come_keeps_up(tmp_path: Path, times: Sequence[float]) -> None:
    """At 6 requests a second 64 tokens take five seconds instead of one and a half, and no longer."""
    seen = replay(tmp_path, batch(0.02, 0.002), [line(float(at), 64) for at in times])
    assert seen.reason is None and seen.figures["saturated"] is not True


@pytest.mark.parametrize("rate", [2.5, 4.0, 20.0, 1000.0])
def test_one_that_does_not_keep_up_is_told_however_fast_they_come(tmp_path: Path, rate: float) -> None:
    seen = replay(tmp_path, queue(8, 0.5, 0.5), [line(number / rate) for number in range(300)])
    assert seen.reason is None and seen.figures["saturated"] is True


async def cut(answer: Answer) -> None:
    for number in range(min(answer.output_tokens, 16)):
        await answer.at(answer.came_s + 0.2 + 0.05 * number)
        answer.chunk()
    answer.end()


def test_a_few_long_answers_that_are_cut_are_other_work(tmp_path: Path) -> None:
    lines = [line(0.5 * number, 160 if number % 50 == 7 else 16) for number in range(200)]
    assert "16 tokens instead of 160" in (replay(tmp_path, cut, lines).reason or "")


def test_a_burst_that_is_worked_off_is_no_overload(tmp_path: Path) -> None:
    times = sorted([*np.arange(0, 120, 1.0), *(60 + np.arange(40) * 0.05)])
    seen = replay(tmp_path, queue(8, 0.5, 0.5), [line(float(at)) for at in times])
    assert seen.reason is None and seen.figures["saturated"] is False
    assert seen.figures["ttft_ms_p99"] > 15_000, "its latencies are told"
