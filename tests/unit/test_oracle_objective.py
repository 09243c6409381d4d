"""An objective on services of which the share of misses is known: kept, broken or not known; and a search by it."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import Answer, Behaviour, Seen, measure, queue, steady

CLOSED = ("bench.concurrency=8", "bench.output_tokens=16", "bench.slo.ttft_ms=600", "bench.repeats=3")


def told(seen: Seen) -> object:
    assert seen.reason is None, seen.reason
    return seen.figures["slo_kept"]


def now_and_then(share: float, slow: Behaviour, seed: int = 0) -> Behaviour:
    random = np.random.default_rng(seed)

    async def behave(answer: Answer) -> None:
        await (slow if random.random() < share else steady(0.5, 0.25))(answer)

    return behave


async def in_one_piece(answer: Answer) -> None:
    await answer.at(answer.came_s + 0.5)
    for _ in range(answer.output_tokens):
        answer.chunk()
    answer.end()


def refused(every: int) -> Behaviour:
    async def behave(answer: Answer) -> None:
        if answer.number % every:
            await steady(0.5, 0.25)(answer)
        else:
            answer.refuse(503, "busy")

    return behave


async def stalls(answer: Answer) -> None:
    since = answer.stub.now - (answer.stub.opened or 1e9)
    await steady(0.5 + (5.0 if 30 < since < 35 else 0.0), 0.25)(answer)


@pytest.mark.parametrize(
    ("behave", "more", "kept"),
    [
        (steady(0.5, 0.25), (), True),
        (steady(0.5, 0.25), ("bench.repeats=1",), None),
        (now_and_then(0.03, steady(1.0, 0.25)), (), False),
        (now_and_then(0.03, steady(1.0, 0.25)), ("bench.slo.ttft_ms=1100",), True),
        (in_one_piece, ("bench.slo.tpot_ms=300",), None),
        (in_one_piece, (), True),
        (refused(170), (), None),
        (refused(29), ("bench.min_success=0.9",), False),
        (now_and_then(0.04, steady(0.5, 0.75)), ("bench.slo.e2el_ms=5000",), False),
        (now_and_then(0.04, steady(0.5, 0.75)), ("bench.slo.tpot_ms=500",), False),
        (now_and_then(0.04, steady(0.5, 0.75)), ("bench.slo.itl_ms=500",), False),
        (stalls, ("bench.concurrency=null", "bench.request_rate=2"), False),
        (stalls, ("bench.concurrency=null", "bench.request_rate=2", "bench.repeats=1"), None),
    ],
)
def test_what_is_said_of_an_objective(behave: Behaviour, more: tuple[str, ...], kept: bool | None) -> None:
    assert told(measure(behave, *CLOSED, *more)) is kept


def test_misses_that_come_together_tell_as_much_as_one() -> None:
    """Before 8 slots of 4 s that are half busy, waits come in spells: 450 requests are no 450 that are independent."""
    load = ("bench.output_tokens=8", "bench.request_rate=1.25", "bench.slo.ttft_ms=2000", "bench.repeats=3")
    seen = measure(queue(8, 0.5, 0.5), *load)
    assert seen.figures["slo_together"] > 2
    assert told(seen) is None and "slow ones come" in seen.notes


# --- the search

SEARCH = (
    "bench.search=concurrency", "bench.concurrency=4", "bench.search_most=64", "bench.output_tokens=16",
    "bench.warmup_s=6", "bench.window_s=60",
)  # fmt: skip


def batch(base_s: float, more_s: float, power: int = 1) -> Behaviour:
    async def behave(answer: Answer) -> None:
        moment = answer.stub.now
        for _ in range(answer.output_tokens):
            moment += base_s + more_s * sum(engine.running for engine in answer.stub.engines) ** power
            await answer.at(moment)
            answer.chunk()
        answer.end()

    return behave


def disturbed(first: int) -> Behaviour:
    """Return a service that stands still for 4 s in its window of this number (from 1), and is else the same."""
    opened: list[float] = []

    async def behave(answer: Answer) -> None:
        if answer.stub.opened and answer.stub.opened not in opened:
            opened.append(answer.stub.opened)
        since = answer.stub.now - (answer.stub.opened or 1e9)
        await steady(0.5 + (4.0 if len(opened) == first and 20 < since < 24 else 0.0), 0.25)(answer)

    return behave


async def refuses_many(answer: Answer) -> None:
    if sum(engine.running for engine in answer.stub.engines) > 20:
        answer.refuse(503, "too many")
    else:
        await steady(0.5, 0.25)(answer)


@pytest.mark.parametrize(
    ("behave", "more", "found", "note"),
    [
        (batch(0.02, 0.005), ("bench.slo.tpot_ms=121",), 20, "kept at 20 and broken at 21"),
        (steady(0.5, 0.25), ("bench.slo.ttft_ms=600",), 64, "ended at bench.search_most"),
        (steady(0.5, 0.25), ("bench.slo.ttft_ms=400",), 0, "no load down to 1"),
        (refuses_many, ("bench.slo.ttft_ms=600",), 20, "not by the objective"),
        (in_one_piece, ("bench.slo.tpot_ms=300",), None, "came in one piece"),
    ],
)
def test_what_a_search_finds(behave: Behaviour, more: tuple[str, ...], found: int | None, note: str) -> None:
    seen = measure(behave, *SEARCH, *more)
    assert seen.reason is None and seen.figures["found_concurrency"] == found
    assert note in seen.notes


def test_where_more_requests_are_answered_more_slowly_it_ends_and_is_confirmed() -> None:
    """From 8 on a window holds too few answers to tell; that load was once tried for as long as a search may last."""
    seen = measure(batch(0.02, 0.0005, power=3), *SEARCH, "bench.slo.ttft_ms=10000", "bench.output_tokens=64")
    assert seen.figures["found_concurrency"] >= 4 and seen.figures["slo_kept"] is True
    assert seen.figures["probes"] < 8 and "not confirmed" not in seen.notes


def test_a_pause_in_one_window_is_not_the_edge() -> None:
    """The ninth window is the first of 8 requests in flight; 64 keep the objective."""
    seen = measure(disturbed(7), *SEARCH, "bench.slo.ttft_ms=600")
    assert seen.reason is None and seen.figures["found_concurrency"] == 64
    assert "the edge lies between" not in seen.notes
    assert any(line["objective_broken"] for line in seen.measured.lines)
