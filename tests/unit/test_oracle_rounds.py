"""A closed loop in windows of few rounds, against a service whose every send time is known."""

from __future__ import annotations

import pytest
from oracle import Answer, Behaviour, measure, steady

TOKENS, GAP_S = 16, 0.8
DECODE_S = (TOKENS - 1) * GAP_S


def lasting(e2el_s: float) -> Behaviour:
    return steady(e2el_s - DECODE_S, GAP_S)


@pytest.mark.parametrize("window_s", [120, 300])
@pytest.mark.parametrize(
    "e2el_s", [30.0, 32.8, 42.8, 62.8, 72.8, 95.8, 100.8, 122.8, 142.8, 147.8, 152.8, 154.8, 160.0]
)
def test_the_rate_of_few_rounds_is_that_of_the_service(e2el_s: float, window_s: int) -> None:
    seen = measure(
        lasting(e2el_s), "bench.concurrency=1", f"bench.output_tokens={TOKENS}", f"bench.window_s={window_s}",
        "bench.slo.ttft_ms=1000000",
    )  # fmt: skip
    assert seen.reason is None
    assert seen.figures["output_tok_per_s"] == pytest.approx(TOKENS / e2el_s, rel=1e-3)
    assert seen.figures["total_tok_per_s"] == pytest.approx((16 + TOKENS) / e2el_s, rel=1e-3)
    for name in ("request_per_s", "goodput_per_s"):
        assert seen.figures[name] == pytest.approx(1 / e2el_s, rel=1e-3)
    few = window_s < 10 * e2el_s
    assert ("requests a slot in the window" in seen.notes) is few
    if few:
        assert f"bench.window_s={int(-(-e2el_s // 1)) * 10}" in seen.notes


def test_an_answer_that_is_longer_than_the_window_is_measured() -> None:
    """By default: 120 s, and one request in flight that takes 150 s."""
    seen = measure(lasting(150.0), "bench.concurrency=1", f"bench.output_tokens={TOKENS}")
    assert (seen.reason, seen.figures["completed"]) == (None, 1)
    assert seen.figures["e2el_ms_p50"] == pytest.approx(150_000, rel=1e-6)


@pytest.mark.parametrize("in_step", [True, False])
def test_every_slot_begins_a_request_in_the_window(in_step: bool) -> None:
    """16 slots, 150 s an answer, in step or each at a time of its own, and a first answer that was fast."""

    async def behave(answer: Answer) -> None:
        first = 3.0 if in_step else 1.0 + answer.number * 9
        await steady(first if answer.number < 16 else 150.0 - DECODE_S, GAP_S)(answer)

    seen = measure(behave, "bench.concurrency=16", f"bench.output_tokens={TOKENS}")
    assert seen.reason is None and seen.figures["completed"] >= 16
    assert seen.window.seconds <= 300.1
    assert seen.figures["output_tok_per_s"] == pytest.approx(16 * TOKENS / 150, rel=0.02)


def test_lengths_that_scatter_bias_nothing() -> None:
    """Answers of 20 to 60 s, 40 on average, in windows of three rounds: the mean of many windows is the truth."""

    async def behave(answer: Answer) -> None:
        await steady(8.0 + 40.0 * ((answer.number * 0.618034) % 1), GAP_S)(answer)

    load = ("bench.concurrency=8", f"bench.output_tokens={TOKENS}", "bench.repeats=8")
    seen = measure(behave, *load)
    rates = [line["output_tok_per_s"] for line in seen.measured.lines]
    assert sum(rates) / len(rates) == pytest.approx(8 * TOKENS / 40, rel=0.03)
