"""Kinds of services that once passed for others, beside right ones that must stay valid: a row tells of each."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from oracle import Answer, Behaviour, measure, steady

CLOSED = ("bench.concurrency=8", "bench.output_tokens=16", "bench.warmup_s=6")
OPEN = ("bench.concurrency=null", "bench.request_rate=1.5", *CLOSED[1:])
FOUR = ("parallel.data_parallel_size=4", *CLOSED)


def paced(pace: Callable[[Answer, float], float], first_s: float = 0.5, gap_s: float = 0.25) -> Behaviour:
    """Return a service whose times are multiplied by `pace` of the request and the time since the opening, s."""

    async def behave(answer: Answer) -> None:
        moment = answer.stub.now
        for number in range(answer.output_tokens):
            since = moment - (answer.stub.opened or math.inf)
            moment += (gap_s if number else first_s) * pace(answer, since)
            await answer.at(moment)
            answer.chunk()
        answer.end()

    return behave


@pytest.mark.parametrize("load", [CLOSED, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize("up", [1.0, -0.5], ids=["slower", "faster"])
def test_a_drift_that_is_taken_back_is_told(load: tuple[str, ...], up: float) -> None:
    seen = measure(paced(lambda _, since: 1 + up * max(0.0, 1 - abs(since - 60) / 60)), *load)
    assert "not steady" in f"{seen.reason}\n{seen.notes}"


@pytest.mark.parametrize("period_s", [20, 30, 40])
@pytest.mark.parametrize(("height", "told"), [(0.8, True), (0.05, False)])
def test_a_sawtooth_is_told(period_s: int, height: float, told: bool) -> None:
    seen = measure(paced(lambda _, since: 1 + height * (since % period_s) / period_s if since > 0 else 1.0), *CLOSED)
    assert ("not steady" in f"{seen.reason}\n{seen.notes}") is told


@pytest.mark.parametrize(("every_s", "lasts_s", "told"), [(3.0, 1.0, True), (4.0, 0.6, True), (4.0, 0.1, False)])
def test_short_pauses_of_everybody_add_up(every_s: float, lasts_s: float, told: bool) -> None:
    """None is longer than a second; no prompt is read in them."""

    async def behave(answer: Answer) -> None:
        moment = answer.stub.now
        for number in range(answer.output_tokens):
            moment += 0.05 if number else 0.1
            since = (moment - (answer.stub.opened or math.inf)) % every_s
            moment += lasts_s - since if since < lasts_s else 0.0
            await answer.at(moment)
            answer.chunk()
        answer.end()

    seen = measure(behave, "bench.concurrency=4", "bench.output_tokens=64", "bench.window_s=60", CLOSED[2])
    assert ("no token came for" in f"{seen.reason}\n{seen.notes}") is told


def test_pieces_of_streams_in_step_are_no_pauses() -> None:
    async def behave(answer: Answer) -> None:
        for number in range(16):
            if number % 4 == 0:
                await answer.at(answer.came_s + 1.25 + 0.25 * number)
            answer.chunk()
        answer.end()

    seen = measure(behave, *CLOSED, "bench.window_s=30")
    assert seen.reason is None and "no token came" not in seen.notes


@pytest.mark.parametrize(("times", "told"), [(1.0, False), (1.2, False), (2.0, True), (5.0, True)])
def test_one_slow_engine_of_four_is_told(times: float, told: bool) -> None:
    seen = measure(paced(lambda answer, _: times if answer.engine.number == 3 else 1.0), *FOUR, engines=4)
    assert seen.reason is None and ("data-parallel rank 3 held a request" in seen.notes) is told


def test_a_silent_engine_of_four_is_no_chance_at_two_requests_each() -> None:
    seen = measure(steady(0.5, 0.25), *FOUR, engines=4, route=lambda number: number % 3)
    assert seen.reason == "data-parallel rank 3 served no token in the window"


@pytest.mark.parametrize(("until", "told"), [(180, True), (10_000, False)])
def test_an_engine_that_gets_no_more_requests_is_told(until: int, told: bool) -> None:
    seen = measure(steady(0.5, 0.25), *FOUR, engines=4, route=lambda n: n % (4 if n < until else 3))
    assert seen.reason is None and ("engine 3 had no request for" in seen.notes) is told


@pytest.mark.parametrize("usage", [97, 100, 103])
def test_usage_that_is_off_by_a_few_percent_is_told(usage: int) -> None:
    async def behave(answer: Answer) -> None:
        for number in range(100):
            await answer.at(answer.came_s + 0.1 + 0.03 * number)
            answer.chunk()
        answer.end(usage)

    seen = measure(behave, "bench.concurrency=8", f"bench.output_tokens={usage}", *CLOSED[2:])

    assert (seen.reason or "").startswith("usage says") is (usage != 100)


def test_chunks_that_are_sent_twice_are_pieces_without_a_token() -> None:
    async def behave(answer: Answer) -> None:
        for number in range(16):
            await answer.at(answer.came_s + 0.5 + 0.25 * number)
            answer.chunk()
            answer.chunk(0)
        answer.end()

    seen = measure(behave, *CLOSED, "bench.window_s=30")
    assert seen.reason is None and "more pieces than they have tokens" in seen.notes


def test_signs_of_life_between_tokens_are_in_no_gap() -> None:
    async def behave(answer: Answer) -> None:
        for number in range(16):
            await answer.at(answer.came_s + 0.5 + 0.25 * number)
            answer.chunk()
            await answer.at(answer.came_s + 0.6 + 0.25 * number)
            answer.event({"choices": [{"index": 0, "text": "", "finish_reason": None}]})
        answer.end()

    seen = measure(behave, *CLOSED, "bench.window_s=30")
    assert seen.reason is None and "pieces" not in seen.notes
    assert seen.figures["itl_ms_mean"] == pytest.approx(250, abs=0.1)


@pytest.mark.parametrize("share", [0.0, 0.2], ids=["level", "noise of a fifth"])
def test_answers_that_scatter_by_a_fifth_are_steady(share: float) -> None:
    """One slot: nothing but noise is between one answer and the next."""
    factors = np.exp(share * np.random.default_rng(7).standard_normal(1000))
    seen = measure(paced(lambda answer, _: float(factors[answer.number]), 1.0, 0.4), "bench.concurrency=1", *CLOSED[1:])
    assert seen.reason is None and "not steady" not in seen.notes
