"""Two replicas, each with what it can take of the load: one slow, dead, or cached; and two that are right."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from oracle import Answer, Behaviour, Engine, measure, page_of, steady

LOAD = ("bench.concurrency=16", "bench.output_tokens=16", "bench.warmup_s=6", "bench.window_s=60")
TWO = ("parallel=replicas2_tp8", *LOAD)
FOUR = (
    "parallel=replicas2_tp8", "parallel.data_parallel_size=2", "parallel.tensor_parallel_size=4",
    "parallel.data_parallel_size_local=[2,2]", *LOAD,
)  # fmt: skip


def slower(times: float, first: int, prefill: float = 1.0) -> Behaviour:
    """Return a service whose engines from this one on take so many times longer, and their prefills."""

    async def behave(answer: Answer) -> None:
        slow = answer.engine.number >= first
        await steady(0.5 * (times * prefill if slow else 1.0), 0.25 * (times if slow else 1.0))(answer)

    return behave


@pytest.mark.parametrize(
    ("load", "engines", "first"), [(TWO, 2, 1), (FOUR, 4, 3), (FOUR, 4, 2)], ids=["of two", "of four", "both of one"]
)
@pytest.mark.parametrize(("times", "told"), [(1.0, False), (1.2, False), (1.7, True), (2.0, True), (5.0, True)])
def test_a_slow_replica_is_named(load: tuple[str, ...], engines: int, first: int, times: float, told: bool) -> None:
    seen = measure(slower(times, first), *load, engines=engines, replicas=2)
    named = "is it slower?" in seen.notes or (times == 5.0 and "of an even share" in seen.notes)
    assert seen.reason is None and named is told


async def refuses(answer: Answer) -> None:
    if answer.engine.number:
        answer.refuse(502, "bad gateway")
    else:
        await steady(0.5, 0.25)(answer)


async def hangs(answer: Answer) -> None:
    if answer.engine.number and answer.number > 100:
        await answer.at(answer.came_s + 1e5)
    await steady(0.5, 0.25)(answer)


async def cached(answer: Answer) -> None:
    if answer.engine.number:
        answer.engine.prefix_hits += answer.prompt_tokens
    await steady(0.5, 0.25)(answer)


@pytest.mark.parametrize(
    ("behave", "reason"),
    [(refuses, "requests failed: HTTP 502"), (hangs, "no whole answer"), (cached, "prefix cache hits")],
)
def test_a_replica_that_does_not_do_its_part_makes_the_row_invalid(behave: Behaviour, reason: str) -> None:
    seen = measure(behave, *TWO, "limits.drain_s=20", replicas=2)
    assert reason in (seen.reason or "")


def test_a_replica_that_tells_no_counters_is_said() -> None:
    asked: list[int] = []

    def page(engines: object) -> str | None:
        asked.append(1)
        return None if len(asked) % 2 else ""

    seen = measure(steady(0.5, 0.25), *TWO, replicas=2, page=page)
    assert seen.reason is None and "the service tells no counters" in seen.notes


@pytest.mark.parametrize("load", [("bench.concurrency=1",), ("bench.concurrency=null", "bench.request_rate=0.5")])
def test_a_load_that_one_could_take_is_spread_over_both(load: tuple[str, ...]) -> None:
    seen = measure(steady(0.5, 0.25), *TWO, *load, replicas=2)
    assert seen.reason is None and "rank" not in seen.notes
    assert min(seen.measured.engine_tokens.values()) > 0.4 * sum(seen.measured.engine_tokens.values())


@pytest.mark.parametrize("load", [TWO, ("bench.request_rate=3", "parallel=replicas2_tp8", *LOAD[1:])])
@pytest.mark.parametrize(("prefill", "told"), [(1.0, False), (1.7, False), (2.3, True), (4.0, True)])
def test_a_replica_that_is_slow_in_prefills_alone_is_named(load: tuple[str, ...], prefill: float, told: bool) -> None:
    """Long answers hide it: a token takes about as long on both."""
    seen = measure(slower(1.0, 1, prefill), *load, "bench.output_tokens=32", "bench.concurrency=16", replicas=2)
    assert seen.reason is None
    assert ("data-parallel rank 1 took" in seen.notes and "to read a prompt as rank 0" in seen.notes) is told


def test_an_engine_that_reads_more_prompts_at_a_time_is_no_slower_one() -> None:
    """Three slots in step over two engines: two prompts that come together are read together."""

    async def behave(answer: Answer) -> None:
        await steady(1.0 if answer.engine.number == 0 else 0.5, 0.05)(answer)

    seen = measure(
        behave, "bench.concurrency=3", "bench.output_tokens=16", "bench.window_s=60", "parallel=dp2_tp1",
        route=lambda number: int(number % 3 == 2),
    )  # fmt: skip
    assert "to read a prompt" not in seen.notes


def test_a_service_that_tells_no_prefills_is_not_judged_by_them() -> None:
    def page(engines: Sequence[Engine]) -> str:
        return "\n".join(line for line in page_of(engines).split("\n") if "prefill" not in line)

    assert "to read a prompt" not in measure(slower(1.0, 1, 4.0), *TWO, replicas=2, page=page).notes
