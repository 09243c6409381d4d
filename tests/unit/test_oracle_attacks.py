"""Kinds of services that once passed for others, beside right ones that must stay valid: a row tells of each."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

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


def in_a_trace(path: Path, times: Sequence[float]) -> tuple[str, ...]:
    """Write a trace of equal requests at these times, s."""
    lines = [json.dumps({"timestamp": 1e3 * at, "input_length": 16, "output_length": 16}) for at in times]
    path.write_text("\n".join(lines))
    return ("bench.workload=trace", f"bench.dataset={path}")


EVEN = tuple(0.5 * number for number in range(240))
FIVES = tuple(4.0 * (number // 5) for number in range(150))


@pytest.mark.parametrize("times", [EVEN, FIVES], ids=["even", "by five"])
@pytest.mark.parametrize(("slower", "told"), [(1.0, False), (1.6, True)])
def test_a_trace_on_a_service_that_is_throttled_has_a_note(
    tmp_path: Path, times: tuple[float, ...], slower: float, told: bool
) -> None:
    load = in_a_trace(tmp_path / "trace.jsonl", times)
    seen = measure(paced(lambda _, since: slower if since > 60 else 1.0), *load)
    assert seen.reason is None, "its load may be another as well"
    assert ("not steady" in seen.notes) is told


@pytest.mark.parametrize(("page", "told"), [(0, "steady is not known"), (2, "first token changed by 300%")])
def test_answers_of_one_token_tell_by_their_first_alone(page: int, told: str) -> None:
    load = ("bench.request_rate=0.3", "bench.output_tokens=1", CLOSED[2])
    seen = measure(paced(lambda _, since: 4.0 if since > 60 else 1.0), *load, engines=page)
    assert told in f"{seen.reason}\n{seen.notes}"


def stuck(answer: Answer, since: float) -> float:
    return 1.0 + 4.0 * max(0.0, 58 - since) if answer.engine.number and since > 50 else 1.0


def by_turns(answer: Answer, since: float) -> float:
    return 2.5 if since > 0 and int(since // 20) % 2 == answer.engine.number else 1.0


@pytest.mark.parametrize(
    ("pace", "told"),
    [(stuck, "engine 1 was not steady: for"), (by_turns, "engines 0, 1 were not steady: for"), (lambda *_: 1.0, "")],
    ids=["hangs", "by turns", "level"],
)
def test_engines_that_are_slow_for_a_while_are_named(pace: Callable[[Answer, float], float], told: str) -> None:
    """One hangs for 8 of 120 s; two are throttled by turns, so that both together are level."""
    seen = measure(paced(pace), "bench.concurrency=16", *CLOSED[1:])
    assert seen.reason is None and (told in seen.notes if told else "not steady" not in seen.notes)


@pytest.mark.parametrize(("load", "told"), [(OPEN, True), (OPEN, False), (CLOSED, True)])
def test_stalls_of_less_than_a_second_add_up_whoever_comes_in_them(load: tuple[str, ...], told: bool) -> None:
    """0.8 of 4 s, or 0.4 of 2 s in the closed loop."""
    every, lasts = (4.0, 0.8) if load is OPEN else (2.0, 0.4)

    async def behave(answer: Answer) -> None:
        moment = answer.stub.now
        for number in range(answer.output_tokens):
            moment += 0.05 if number else 0.1
            since = (moment - (answer.stub.opened or math.inf)) % every
            moment += lasts - since if told and since < lasts else 0.0
            await answer.at(moment)
            answer.chunk()
        answer.end()

    seen = measure(behave, *load, "bench.output_tokens=64", "bench.window_s=60")
    assert seen.reason is None and ("short pauses without a prompt to read" in seen.notes) is told


@pytest.mark.parametrize(("count", "told"), [(20, True), (240, False)])
def test_a_fixed_number_of_an_open_loop_that_is_mostly_its_end_is_noted(count: int, told: bool) -> None:
    seen = measure(steady(1.0, 0.6), "bench.request_rate=2", "bench.output_tokens=16", f"bench.num_requests={count}")
    assert seen.reason is None and ("after the last request had come" in seen.notes) is told


@pytest.mark.parametrize(("slower", "told"), [(1.0, False), (3.0, True)])
@pytest.mark.parametrize(
    ("load", "every_s", "lasts_s"),
    [((*CLOSED, "bench.workload=multi_turn", "bench.turns=3"), 1000, 20), (OPEN, 40, 10)],
    ids=["conversations", "open"],
)
def test_a_service_that_is_slow_now_and_then_is_told(
    load: tuple[str, ...], every_s: int, lasts_s: int, slower: float, told: bool
) -> None:
    seen = measure(paced(lambda _, since: slower if since > 0 and since % every_s < lasts_s else 1.0), *load)
    assert ("times as long as usual" in f"{seen.reason}\n{seen.notes}") is told


FAST = ("bench.request_rate=1.5", "bench.output_tokens=64", CLOSED[2])
UNEQUAL = ("bench.lengths=lognormal", "bench.concurrency=8", *FAST[1:])


@pytest.mark.parametrize("load", [FAST, UNEQUAL], ids=["open", "unequal"])
@pytest.mark.parametrize(
    ("pace", "told"),
    [
        (lambda since: 3.0 if since % 15 < 5 else 1.0, True),
        (lambda since: 1 + 0.5 * math.sin(2 * math.pi * since / 30), True),
        (lambda since: 1 + math.exp(-max(since, 0.0) / 20), True),
        (lambda since: 1 + 0.04 * math.sin(2 * math.pi * since / 30), False),
    ],
    ids=["5 of 15 s", "a wave", "settles", "a ripple"],
)
def test_what_comes_and_goes_within_a_round_shows_in_the_fast_gaps(
    load: tuple[str, ...], pace: Callable[[float], float], told: bool
) -> None:
    seen = measure(paced(lambda _, since: pace(since) if since > 0 else 1.0, 0.3, 0.05), *load)
    assert ("not steady" in f"{seen.reason}\n{seen.notes}") is told


def test_a_piece_that_no_engine_made_is_told_however_long_the_answer() -> None:
    async def behave(answer: Answer) -> None:
        answer.chunk(0, "<think>")
        for number in range(128):
            await answer.at(answer.came_s + 0.5 + 0.05 * number)
            answer.chunk()
        answer.end()

    seen = measure(behave, "bench.concurrency=8", "bench.output_tokens=128", CLOSED[2], "bench.window_s=60")
    assert "TTFT may be that of a piece that no engine made" in seen.notes


@pytest.mark.parametrize(("slower", "told"), [(0.1, True), (0.02, False)])
def test_windows_of_one_service_that_differ_are_told(slower: float, told: bool) -> None:
    """Each is slower than the one before, and level in itself."""
    began: list[float] = []

    async def behave(answer: Answer) -> None:
        if answer.stub.opened not in began and answer.stub.opened:
            began.append(answer.stub.opened)
        times = 1 + slower * len(began)
        await steady(0.5 * times, 0.25 * times)(answer)

    seen = measure(behave, *CLOSED, "bench.window_s=60", "bench.repeats=3")
    assert ("between the windows: their median" in seen.notes) is told


@pytest.mark.parametrize("seed", [1, 8, 29, 34])
def test_a_queue_that_the_engines_do_not_tell_of_is_no_change(seed: int) -> None:
    """A gateway holds it: 8 slots, 80 % busy, answers that scatter by a tenth."""
    random, free = np.random.default_rng(seed), asyncio.Semaphore(8)

    async def behave(answer: Answer) -> None:
        factor = float(np.exp(0.1 * random.standard_normal()))
        async with free:
            answer.came_s = answer.stub.now
            await steady(0.5 * factor, 0.5 * factor)(answer)

    load = ("bench.request_rate=1.6", "bench.output_tokens=8", "bench.window_s=60", f"bench.seed={seed}", CLOSED[2])
    seen = measure(behave, *load)
    assert seen.reason is None and "not steady" not in seen.notes
