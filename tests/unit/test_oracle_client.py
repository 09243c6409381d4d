"""The window client against a service whose every send time is known: what the row says is what was sent."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from oracle import Answer, Engine, Seen, Stub, measure, page_of, queue, steady

CLOSE = {"rel": 1e-6, "abs": 1e-3}
"""Latencies in ms: a look at the clock moves it by 0.1 us."""


def true_latencies(seen: Seen) -> dict[str, list[float]]:
    """Return TTFT, TPOT and E2EL in ms of the answers to the requests of the window, by the service's own record."""
    window = seen.window
    whole = [one for one in seen.answers if window.opened_s <= one.came_s < window.closed_s]
    assert all(one.ended_s for one in whole)
    return {
        "ttft": [(one.sent_s[0] - one.came_s) * 1e3 for one in whole],
        "tpot": [(one.sent_s[-1] - one.sent_s[0]) / (sum(one.tokens) - 1) * 1e3 for one in whole],
        "e2el": [(one.sent_s[-1] - one.came_s) * 1e3 for one in whole],
    }


@pytest.mark.parametrize(
    "load", ["bench.concurrency=1", "bench.concurrency=16", "bench.request_rate=3"], ids=["one", "closed", "open"]
)
def test_figures_are_those_of_the_service(load: str) -> None:
    async def behave(answer: Answer) -> None:
        await steady(0.3 + 0.01 * (answer.number % 7), 0.08 + 0.004 * (answer.number % 5))(answer)

    seen = measure(behave, "bench.output_tokens=8", load)
    assert seen.reason is None and seen.figures["completed"] == len(seen.of_window()) > 100
    for name, values in true_latencies(seen).items():
        assert seen.figures[f"{name}_ms_mean"] == pytest.approx(np.mean(values), **CLOSE)
        for p in (50, 90, 99):
            assert seen.figures[f"{name}_ms_p{p}"] == pytest.approx(np.percentile(values, p), **CLOSE)
    tokens = seen.sent_between(seen.window.opened_s, seen.window.closed_s)
    assert seen.window.seconds == pytest.approx(120)
    assert seen.figures["output_tok_per_s"] == pytest.approx(tokens / 120, rel=0.003)


def test_chunks_of_several_tokens_count_by_their_tokens() -> None:
    seen = measure(steady(0.5, 0.05, tokens_a_chunk=3), "bench.concurrency=4", "bench.output_tokens=30")
    assert seen.figures["tpot_ms_mean"] == pytest.approx(9 * 50 / 29, **CLOSE)
    assert seen.figures["itl_ms_mean"] == pytest.approx(50, **CLOSE)


def test_the_counters_of_the_engines_are_on_the_page() -> None:
    seen = measure(queue(2, 0.5, 0.5), "bench.concurrency=8", "bench.output_tokens=4", "bench.window_s=20")
    assert seen.figures["waiting_mean"] == pytest.approx(6, abs=0.2)
    assert sum(seen.window.engine_tokens.values()) == pytest.approx(
        seen.sent_between(seen.window.opened_s, seen.window.closed_s), abs=2
    )


def test_a_page_may_say_anything_and_may_be_missing() -> None:
    def doubled(engines: list[Engine]) -> str:
        return page_of([Engine(one.number, generated=2 * one.generated) for one in engines])

    short = ("bench.concurrency=4", "bench.output_tokens=4", "bench.window_s=20")
    lied = measure(steady(0.5, 0.25), *short, page=doubled)
    assert lied.reason and "for us" in lied.reason
    assert measure(steady(0.5, 0.25), *short, engines=0).window.engine_tokens == {}


def test_a_client_that_stood_still_hears_late_of_what_was_sent_in_time() -> None:
    async def beside(stub: Stub) -> None:
        while stub.opened is None or stub.now < stub.opened + 6:
            await asyncio.sleep(0.1)
        stub.stall(2.0)

    seen = measure(steady(0.1, 0.1), "bench.concurrency=4", "bench.output_tokens=8", "bench.window_s=20", beside=beside)
    assert max(np.diff(record.chunk_times).max() for record in seen.of_window() if record.status == "ok") > 1.8
    assert max(np.diff(one.sent_s).max() for one in seen.answers if one.ended_s) < 0.11


def test_faults_of_a_service() -> None:
    async def behave(answer: Answer) -> None:
        if answer.number == 30:
            answer.refuse(503, "busy")
        elif answer.number == 31:
            answer.reset()
        else:
            await steady(0.5, 0.25)(answer)

    seen = measure(behave, "bench.concurrency=8", "bench.output_tokens=8", "bench.warmup_s=1", "bench.min_success=0")
    assert seen.figures["failed"] == 2
    assert {record.error for record in seen.of_window() if record.error} > {"HTTP 503: busy"}


def test_a_connection_that_was_closed_after_an_answer_is_not_used_again() -> None:
    async def behave(answer: Answer) -> None:
        await steady(0.5, 0.25)(answer)
        if answer.number % 3 == 0:
            answer.connection.transport.close()  # without a word of it in the answer

    seen = measure(behave, "bench.concurrency=8", "bench.output_tokens=8", "bench.window_s=30", "bench.warmup_s=3")
    assert seen.reason is None and seen.figures["failed"] == 0
    assert seen.figures["ttft_ms_p99"] == pytest.approx(500, rel=1e-4)


def test_hidden_ends_of_sequences_are_the_last_tokens_of_drafted_answers() -> None:
    """Two tokens a step, and the last step gives one that nobody sees."""

    async def behave(answer: Answer) -> None:
        for number in range(8):
            await answer.at(answer.came_s + 0.5 + 0.1 * number)
            answer.chunk(*((1, "") if number == 7 else (2, "ab")))
        answer.end()

    seen = measure(behave, "bench.concurrency=8", "bench.output_tokens=15", "bench.window_s=30", "bench.warmup_s=3")
    assert seen.reason is None
    assert seen.figures["e2el_ms_p50"] == pytest.approx(1200, rel=1e-5)
    assert seen.figures["tpot_ms_mean"] == pytest.approx(50, rel=1e-5)
