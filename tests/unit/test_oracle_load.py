"""The load against a service whose every send time is known: what waits for a slot, and what was really offered."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from oracle import Answer, Seen, measure, queue, steady

from jobs.core.config import Bench
from jobs.measure.arrivals import poisson

QUEUE = ("bench.output_tokens=8",)
"""Of `eight()`: 8 slots, 4 s a request, so 2 requests a second; the first token after 0.5 s."""

CLOSE = {"rel": 1e-6, "abs": 1e-3}


def eight():  # type: ignore[no-untyped-def]
    return queue(slots=8, first_s=0.5, gap_s=0.5)


def from_arrival(seen: Seen) -> tuple[list[float], list[float]]:
    """Return TTFT and wait in ms of the window, from the intended arrivals, by the service's own record."""
    pairs = [(record, seen.answer_to(record)) for record in seen.of_window()]
    return (
        [(answer.sent_s[0] - record.came_s) * 1e3 for record, answer in pairs],
        [(answer.came_s - record.came_s) * 1e3 for record, answer in pairs],
    )


@pytest.mark.parametrize("rate", [1.8, 2.1, 2.4])
def test_a_cap_hides_no_queue(rate: float) -> None:
    asked = (*QUEUE, f"bench.request_rate={rate}", "bench.slo.ttft_ms=2000")
    capped, free = measure(eight(), *asked, "bench.concurrency=8"), measure(eight(), *asked)
    assert capped.reason is None is free.reason
    for seen in (capped, free):
        ttft, waits = from_arrival(seen)
        assert seen.figures["ttft_ms_p50"] == pytest.approx(np.median(ttft), **CLOSE)
        assert seen.figures["ttft_ms_p99"] == pytest.approx(np.percentile(ttft, 99), **CLOSE)
        assert seen.figures["wait_ms_p99"] == pytest.approx(np.percentile(waits, 99), **CLOSE)
    # Where a request waits makes no difference: same arrivals, same queue.
    assert capped.figures["ttft_ms_p99"] == pytest.approx(free.figures["ttft_ms_p99"], rel=1e-3)
    assert capped.figures["saturated"] is free.figures["saturated"] is (rate > 2.3)
    assert capped.figures["slo_kept"] is free.figures["slo_kept"] is False
    assert "bench.concurrency=8 caps the open loop" in capped.notes and "caps" not in free.notes
    assert free.figures["wait_ms_p99"] < 1 < capped.figures["wait_ms_p99"]
    assert capped.figures["goodput_per_s"] == pytest.approx(free.figures["goodput_per_s"], abs=0.02)


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0, 4.0])
def test_as_many_come_as_were_asked_for(rate: float) -> None:
    seen = measure(steady(0.5, 0.5), *QUEUE, f"bench.request_rate={rate}")
    assert seen.reason is None and len(seen.of_window()) == round(rate * 120)
    assert seen.figures["offered_per_s"] == pytest.approx(rate)


def test_a_rate_has_no_limit_and_half_a_load_is_not_called_an_overload() -> None:
    """64 slots, 8 s a request: 4 a second are half of what it can do, and 32 of them are in flight."""
    seen = measure(queue(64, 0.5, 7.5), "bench.output_tokens=2", "bench.request_rate=4")
    assert seen.figures["saturated"] is False and seen.reason is None
    assert seen.figures["e2el_ms_p99"] == pytest.approx(8000, **CLOSE)


def arrivals(seen: Seen) -> list[list[float]]:
    return [
        [round(record.came_s - window.opened_s, 3) for record in seen.of_window(window)]
        for window in seen.measured.windows
    ]


def test_each_window_has_arrivals_of_its_own_and_each_setting_the_same() -> None:
    asked = (*QUEUE, "bench.request_rate=1", "bench.repeats=3", "bench.window_s=60")
    one, other = measure(steady(0.5, 0.5), *asked), measure(steady(1.3, 0.7), *asked)
    first, second, third = map(sorted, arrivals(one))
    assert first != second != third != first
    assert [sorted(times) for times in arrivals(other)] == [first, second, third]


def test_what_still_waits_for_a_slot_when_the_load_ends_is_counted() -> None:
    async def behave(answer: Answer) -> None:
        if answer.number < 12:
            await steady(1.0, 1.0)(answer)
        else:  # it hangs
            await answer.at(answer.came_s + 10_000)

    asked = ("bench.output_tokens=2", "bench.request_rate=1", "bench.concurrency=2", "bench.window_s=30")
    seen = measure(behave, *asked, "bench.warmup_s=5", "limits.drain_s=20")
    assert seen.reason and "no whole answer" in seen.reason
    assert seen.figures["completed"] + seen.figures["failed"] + seen.figures["truncated_requests"] == 30
    assert seen.figures["truncated_requests"] >= 18
    assert len(seen.answers) < 16, "the others were never sent"


def test_a_load_that_is_not_held_still_sends_what_has_come() -> None:
    asked = (*QUEUE, "bench.request_rate=2.4", "bench.concurrency=8", "bench.hold_load=false")
    seen = measure(eight(), *asked)
    assert seen.reason is None and seen.figures["completed"] == 288


@pytest.mark.parametrize("cap", [(), ("bench.concurrency=8",)], ids=["free", "capped"])
@pytest.mark.parametrize(("of_capacity", "saturated"), [(0.8, False), (1.2, True)])
def test_a_trace_is_judged_too(tmp_path: Path, of_capacity: float, saturated: bool, cap: tuple[str, ...]) -> None:
    times = islice(poisson(Bench(request_rate=2 * of_capacity, num_requests=400), 1), 400)
    lines = [{"timestamp": 1e3 * at, "input_length": 16, "output_length": 8} for at in times]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    seen = measure(eight(), "bench.workload=trace", f"bench.dataset={path}", "bench.slo.ttft_ms=5000", *cap)
    assert seen.reason is None and seen.figures["completed"] == 400
    assert seen.figures["saturated"] is saturated and seen.figures["slo_kept"] is not saturated
    ttft, _ = from_arrival(seen)
    assert seen.figures["ttft_ms_p99"] == pytest.approx(np.percentile(ttft, 99), **CLOSE)
    assert seen.figures["offered_per_s"] == pytest.approx(2 * of_capacity, rel=0.02)


def test_a_trace_of_longer_and_longer_answers_is_no_overload(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lengths = (4 if number < 100 else 40 for number in range(200))
    lines = [{"timestamp": 500 * i, "input_length": 16, "output_length": n} for i, n in enumerate(lengths)]
    path.write_text("\n".join(map(json.dumps, lines)))
    seen = measure(steady(0.2, 0.05), "bench.workload=trace", f"bench.dataset={path}")
    assert seen.reason is None and seen.figures["saturated"] is False


def test_a_load_of_five_times_the_capacity_opens_its_window_soon() -> None:
    """Each answer takes longer than the one before: the load is never older than twice the longest of them."""
    seen = measure(eight(), *QUEUE, "bench.request_rate=10", "bench.warmup_s=5", "bench.window_s=20")
    assert seen.window.warmup_s < 20
    assert seen.figures["saturated"] is True
