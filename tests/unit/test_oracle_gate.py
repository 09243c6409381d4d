"""Valid means true: what is done to a service or a client whose every send time is known, and what the row says of it.

Each case stands beside the right rows: `test_right_rows_stay_valid`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from oracle import SANE, Answer, Behaviour, Engine, Seen, Stub, measure, page_of, queue, steady

from jobs.measure.statistics import arrived_tokens

SIXTEEN = ("bench.concurrency=8", "bench.output_tokens=16", "bench.window_s=60", "bench.warmup_s=6")
OPEN = ("bench.concurrency=null", "bench.request_rate=1.5", *SIXTEEN[1:])


def timed(
    scale: Callable[[float], float], first_s: float = 0.5, gap_s: float = 0.25, *, prefill_alone: bool = False
) -> Behaviour:
    """Return a service whose times (or those of its prefills alone) are scaled by the time since the opening, s."""

    async def behave(answer: Answer) -> None:
        moment = answer.stub.now
        for number in range(answer.output_tokens):
            since = moment - (answer.stub.opened or moment)
            moment += (gap_s if number else first_s) * (1.0 if number and prefill_alone else scale(since))
            await answer.at(moment)
            answer.chunk()
        answer.end()

    return behave


def changed(**more: float) -> Callable[[Sequence[Engine]], str]:
    """Return a page on which the counters of engine 1 are further by so much a second."""
    began: list[float] = []

    def page(engines: Sequence[Engine]) -> str:
        now = asyncio.get_running_loop().time()
        began.append(now)
        first, second = engines
        grown = {name: round(getattr(second, name) + rate * (now - began[0])) for name, rate in more.items()}
        return page_of([first, replace(second, **grown)])

    return page


CHANGES: dict[str, tuple[Callable[[float], float], str]] = {
    "heat": (lambda since: 1 + 2 * max(0.0, since) / 60, "not steady"),
    "warm-up": (lambda since: 3.0 if since < 25 else 1.0, "not steady"),
    "throttled": (lambda since: 4.0 if since > 30 else 1.0, "not steady"),
    "for a while": (lambda since: 3.0 if 20 < since < 40 else 1.0, "not steady"),
    "a third more": (lambda since: 1.4 if since > 30 else 1.0, "not steady"),
}


@pytest.mark.parametrize(
    ("kind", "load"),
    [*((kind, SIXTEEN) for kind in CHANGES), *((kind, OPEN) for kind in CHANGES if kind != "for a while")],
)
def test_a_service_that_changes_is_measured_by_no_one_figure(kind: str, load: tuple[str, ...]) -> None:
    scale, words = CHANGES[kind]
    assert words in (measure(timed(scale), *load).reason or "")


@pytest.mark.parametrize("load", [SIXTEEN, OPEN], ids=["closed", "open"])
def test_prefills_that_get_slower_are_seen_where_a_token_takes_as_long(load: tuple[str, ...]) -> None:
    seen = measure(timed(lambda since: 1 + max(0.0, since) / 30, gap_s=0.3, prefill_alone=True), *load)
    assert "the time to the first token changed by" in (seen.reason or "")


def test_a_service_that_comes_and_goes_is_not_steady() -> None:
    seen = measure(timed(lambda since: 3.0 if since % 20 < 10 else 1.0), *SIXTEEN[:2])
    assert "times as long" in (seen.reason or "")


BRIEF: dict[str, Callable[[float], float]] = {
    "at the end": lambda since: 4.0 if since > 110 else 1.0,
    "at the begin": lambda since: 4.0 if 0 <= since < 10 else 1.0,
    "amid": lambda since: 4.0 if 57 < since < 67 else 1.0,
    "twice": lambda since: 4.0 if 30 < since < 37 or 80 < since < 87 else 1.0,
}


@pytest.mark.parametrize("kind", BRIEF)
def test_a_service_that_was_slow_for_a_moment_is_noted(kind: str) -> None:
    """10 of 120 s at a quarter of the speed move the mean latency by a tenth."""
    seen = measure(timed(BRIEF[kind]), *SIXTEEN, "bench.window_s=120")
    assert "times as long as usual" in seen.notes or "changed by" in (seen.reason or "")


@pytest.mark.parametrize("slow", [lambda since: since % 40 < 20, lambda since: 50 < since < 70], ids=["goes", "once"])
def test_an_open_loop_that_comes_and_goes_is_noted(slow: Callable[[float], bool]) -> None:
    seen = measure(timed(lambda since: 4.0 if slow(since) else 1.0), *OPEN, "bench.window_s=120")
    assert "not steady" in f"{seen.reason}\n{seen.notes}"


@pytest.mark.parametrize("load", [SIXTEEN, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize(("times", "noted"), [(3.0, True), (1.2, False)])
def test_an_engine_that_is_slower_and_makes_its_share_is_noted(
    load: tuple[str, ...], times: float, noted: bool
) -> None:
    async def behave(answer: Answer) -> None:
        slow = times if answer.engine.number else 1.0
        await steady(0.5 * slow, 0.25 * slow)(answer)

    seen = measure(behave, *load, "bench.window_s=120", "bench.output_tokens=12")
    assert seen.reason is None
    assert ("data-parallel rank 1 held a request for a token" in seen.notes) is noted


def test_a_service_that_swings_by_half_is_noted() -> None:
    seen = measure(timed(lambda since: 1.6 if since % 60 < 30 else 1.0), *SIXTEEN, "bench.window_s=120")
    assert seen.reason is None and "in the slowest quarter" in seen.notes


@pytest.mark.parametrize("load", [SIXTEEN, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize(("lasts_s", "words"), [(15.0, "engine 1 made no token for"), (5.0, "")])
def test_an_engine_that_stands_still_beside_another_is_named(load: tuple[str, ...], lasts_s: float, words: str) -> None:
    """Half of the answers stop, and none of the others: no silence of the whole service."""

    async def behave(answer: Answer) -> None:
        moment, ends = answer.stub.now, 20 + lasts_s
        for number in range(answer.output_tokens):
            moment += 0.25 if number else 0.5
            since = moment - (answer.stub.opened or 1e9)
            if answer.engine.number and 20 < since < ends:
                moment += ends - since
            await answer.at(moment)
            answer.chunk()
        answer.end()

    seen = measure(behave, *load)
    assert words in f"{seen.reason}\n{seen.notes}"
    assert ("made no token" in f"{seen.reason}\n{seen.notes}") is bool(words)


def test_a_change_of_a_sixth_is_a_note() -> None:
    seen = measure(timed(lambda since: 1.17 if since > 30 else 1.0), *SIXTEEN)
    assert seen.reason is None and "changed by 17% over the window" in seen.notes


def test_pauses_add_up() -> None:
    def paused(every_s: float, lasts_s: float, first_s: float = 0.0) -> Seen:
        async def behave(answer: Answer) -> None:
            moment = answer.stub.now
            for number in range(answer.output_tokens):
                moment += 0.25 if number else 0.5
                since = (moment - (answer.stub.opened or moment) - first_s) % every_s
                moment += lasts_s - since if since < lasts_s else 0.0
                await answer.at(moment)
                answer.chunk()
            answer.end()

        return measure(behave, *SIXTEEN)

    assert "no token came for" in (paused(10.0, 4.0).reason or "")
    at_the_edge = paused(1000.0, 15.0, first_s=59.0)
    assert at_the_edge.reason is None and "no token came for 15 s" in at_the_edge.notes
    few = paused(15.0, 2.0)
    assert few.reason is None and "no token came for" in few.notes


@pytest.mark.parametrize("load", [SIXTEEN, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize(("seconds", "invalid"), [(2.0, True), (0.58, False)])
def test_a_client_that_stood_still_was_measured_itself(load: tuple[str, ...], seconds: float, invalid: bool) -> None:
    async def beside(stub: Stub) -> None:
        while stub.opened is None or stub.now < stub.opened + 6:
            await asyncio.sleep(0.1)
        stub.stall(seconds)

    seen = measure(steady(0.12, 0.03), *load, beside=beside)
    assert "the client stood still for" in ((seen.reason or "") if invalid else seen.notes)
    assert (seen.reason is not None) is invalid


def test_a_client_that_is_often_late_was_starved() -> None:
    async def beside(stub: Stub) -> None:
        while True:
            await asyncio.sleep(0.5)
            stub.stall(0.1)

    seen = measure(steady(0.12, 0.03), *SIXTEEN, beside=beside)
    assert "the client was starved" in (seen.reason or "")
    assert 80 < seen.figures["client_lag_ms_p99"] < 110


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (changed(generated=8.0), "for us"),
        (changed(finished=0.5), "requests that were not ours ran"),
        (changed(running=0.1), "requests more than ours in flight"),
    ],
    ids=["tokens", "requests", "held"],
)
def test_strangers_are_seen(page: Callable[[Sequence[Engine]], str], words: str) -> None:
    assert words in (measure(steady(0.5, 0.25), *SIXTEEN, page=page).reason or "")


def test_one_stranger_whose_requests_never_end_is_seen() -> None:
    async def beside(stub: Stub) -> None:
        stub.engines[0].running += 1
        while True:
            await asyncio.sleep(1.0)
            stub.engines[0].generated += 1  # 3 % of the tokens

    assert "more than ours in flight" in (measure(steady(0.5, 0.25), *SIXTEEN, beside=beside).reason or "")


def test_strangers_that_break_off_are_seen() -> None:
    async def beside(stub: Stub) -> None:
        while True:
            await asyncio.sleep(10.0)
            stub.engines[0].running += 2
            await asyncio.sleep(4.0)
            stub.engines[0].running -= 2

    assert "more than ours in flight" in (measure(steady(0.5, 0.25), *SIXTEEN, beside=beside).reason or "")


@pytest.mark.parametrize("usage", [32, 18])
def test_usage_that_is_too_high_is_seen(usage: int) -> None:
    async def behave(answer: Answer) -> None:
        for number in range(16):
            await answer.at(answer.came_s + 0.5 + 0.25 * number)
            answer.chunk()
        answer.end(usage)

    seen = measure(behave, "bench.concurrency=8", f"bench.output_tokens={usage}", *SIXTEEN[2:])
    assert "usage says" in (seen.reason or "")


def test_requests_under_way_at_the_opening_that_die_are_failures() -> None:
    async def behave(answer: Answer) -> None:
        if 8 <= answer.number < 16:
            await answer.at(answer.came_s + 4.0)
            answer.reset()
        else:
            await steady(0.5, 0.25)(answer)

    assert "died beside it" in (measure(behave, *SIXTEEN).reason or "")


def test_cache_hits_are_judged_where_a_request_was_preempted() -> None:
    def page(engines: Sequence[Engine]) -> str:
        return page_of(
            [replace(e, prefix_hits=round(0.9 * e.prefix_queries), preemptions=e.finished > 20) for e in engines]
        )

    reason = measure(steady(0.05, 0.25), *SIXTEEN, page=page).reason
    assert reason == "prefix cache hits 90% of the prompt tokens, at most 2% were intended"


def test_a_service_without_counters_is_not_checked() -> None:
    seen = measure(steady(0.5, 0.25), *SIXTEEN, engines=0)
    assert seen.reason is None and "the service tells no counters" in seen.notes


def test_shorter_answers_are_other_work() -> None:
    async def behave(answer: Answer) -> None:
        for number in range(3):
            await answer.at(answer.came_s + 0.5 + 0.25 * number)
            answer.chunk()
        answer.end()

    seen = measure(behave, *SIXTEEN, "bench.ignore_eos=false")
    assert (seen.reason or "").startswith("answers had 3 tokens on average instead of 16")


def test_answers_of_the_right_mean_length_may_be_other_work_each() -> None:
    async def behave(answer: Answer) -> None:
        for number in range(8 if answer.number % 2 else 24):
            await answer.at(answer.came_s + 0.5 + 0.25 * number)
            answer.chunk()
        answer.end()

    seen = measure(behave, *SIXTEEN, "bench.ignore_eos=false")
    assert "but each 50% more or less: other work than was asked for" in (seen.reason or "")


def test_a_fixed_number_of_few_rounds_is_mostly_ramps() -> None:
    seen = measure(steady(0.5, 0.25), "bench.concurrency=16", "bench.num_requests=20", "bench.output_tokens=16")
    assert seen.reason is None and "20 requests are 1.2 rounds" in seen.notes


def test_an_engine_whose_counters_began_anew_was_restarted() -> None:
    def page(engines: Sequence[Engine]) -> str:
        first, second = engines
        return page_of([first, replace(second, generated=second.generated - 640) if second.finished > 40 else second])

    assert "counters of engine 1 began anew" in (measure(steady(0.5, 0.25), *SIXTEEN, page=page).reason or "")


def test_tokens_that_a_gateway_kept_back_are_pieces() -> None:
    async def behave(answer: Answer) -> None:
        for number in range(16):
            if number % 8 == 0:
                await answer.at(answer.came_s + 2.5 + 0.25 * number)
            answer.chunk()
        answer.end()

    assert "8 tokens at a time" in measure(behave, *SIXTEEN).notes


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (lambda engines: page_of(engines).replace('engine="0",', "").replace('engine="1",', ""), "engines apart"),
        (lambda engines: page_of(engines[: 1 if engines[1].finished > 40 else 2]), "counters of engine 1 were gone"),
        (lambda engines: page_of([replace(one, preemptions=float("nan")) for one in engines]), ""),  # type: ignore[arg-type]
    ],
    ids=["no labels", "gone", "no number"],
)
def test_pages_that_tell_less_make_no_row_invalid(page: Callable[[Sequence[Engine]], str], words: str) -> None:
    seen = measure(steady(0.5, 0.25), *SIXTEEN, page=page)
    assert seen.reason is None and words in seen.notes


def test_answers_from_a_cache_are_named() -> None:
    seen = measure(
        steady(0.0002, 0.00005), *SIXTEEN[1:2], "bench.concurrency=1", "bench.window_s=1", "bench.warmup_s=0"
    )
    assert "answers came faster than any engine makes them" in (seen.reason or "")


def one_of_two(number: int) -> int:
    return 0


def test_an_engine_that_was_not_needed_is_no_failure_and_one_that_was_is() -> None:
    low = measure(steady(0.5, 0.25), "bench.concurrency=null", "bench.request_rate=0.3", *SIXTEEN[1:], route=one_of_two)
    assert low.reason is None and "did not need it" in low.notes
    high = measure(steady(0.5, 0.25), *SIXTEEN, route=one_of_two)
    assert high.reason == "data-parallel rank 1 served no token in the window"


RIGHT: dict[str, tuple[Behaviour, tuple[str, ...]]] = {
    "closed": (steady(0.5, 0.25), SIXTEEN),
    "open": (steady(0.5, 0.25), OPEN),
    "in step": (steady(3.0, 0.1), SIXTEEN),
    "more than its slots": (queue(4, 0.5, 0.25), SIXTEEN),
    "a busy queue": (queue(8, 0.5, 0.25), OPEN),
    "few requests": (steady(1.0, 0.6), ("bench.concurrency=1", *SIXTEEN[1:])),
    "one slow answer at a time": (steady(1.0, 2.5), ("bench.concurrency=1", *SIXTEEN[1:])),
    "a long prompt": (steady(8.0, 0.05), ("bench.concurrency=2", *SIXTEEN[1:])),
    "chunks of three": (steady(0.5, 0.25, tokens_a_chunk=3), SIXTEEN),
    "a little slower": (timed(lambda since: 1.05 if since > 30 else 1.0), SIXTEEN),
    "fixed number": (steady(0.5, 0.25), ("bench.num_requests=60", *SIXTEEN)),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_right_rows_stay_valid(kind: str) -> None:
    behave, load = RIGHT[kind]
    seen = measure(behave, *load)
    assert seen.reason is None
    assert not [word for word in ("not steady", "no token", "checked", "the client", "faster") if word in seen.notes], (
        seen.notes
    )


ASKED = (*SIXTEEN, "bench.canary=sane")


@pytest.mark.parametrize(
    ("canary", "wrong", "words"),
    [
        ("sane", "的" * 40, "known questions were answered wrong under load, right when idle: "),
        ("sane", "今天天气很好,我们去公园散步,然后回家吃饭吧。", "unlike the idle answer"),
        ("answer", "so it goes", "repeatable answers under load differ from the idle one, 3 from their beginning"),
    ],
    ids=["nonsense", "another", "random weights"],
)
def test_a_service_that_is_right_when_idle_and_wrong_under_load_is_invalid(canary: str, wrong: str, words: str) -> None:
    seen = measure(steady(0.5, 0.25), *SIXTEEN, f"bench.canary={canary}", says=lambda busy: wrong if busy > 1 else SANE)
    assert words in (seen.reason or "")
    assert seen.figures["checks"] == 3 and seen.figures["checks_wrong_share"] == 1.0


def test_known_questions_are_in_no_latency_and_their_tokens_are_ours() -> None:
    seen = measure(steady(0.5, 0.25), *ASKED)
    assert seen.reason is None and seen.figures["checks_wrong_share"] == 0.0 and seen.figures["checks"] == 3
    assert seen.figures["e2el_ms_p99"] == pytest.approx(4250, abs=0.1)
    assert seen.figures["completed"] == len(seen.of_window()) and not any(one.check for one in seen.of_window())
    inside = sum(one.check and 0 <= one.end_s - seen.window.opened_s < 60 for one in seen.window.records)
    sent = seen.sent_between(seen.window.opened_s, seen.window.closed_s) + 40 * inside
    assert arrived_tokens(seen.window) == pytest.approx(sent, rel=0.003)
    assert seen.figures["output_tok_per_s"] == pytest.approx(8 * 16 / 4.25, rel=0.003), (
        "a slot that asks is one of load"
    )


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize(
    "load", [("bench.request_rate=3",), ("bench.request_rate=3", "bench.num_requests=300"), ("bench.concurrency=8",)]
)
def test_known_questions_are_in_no_rate(load: tuple[str, ...], tokens: int) -> None:
    """A question has an answer of 40 tokens."""
    asked = ("bench.canary=sane", "bench.check_share=0.1", f"bench.output_tokens={tokens}", "bench.window_s=100")
    seen = measure(steady(0.5, 0.1), *load, *asked)
    assert seen.figures["checks"] > 20
    rate = seen.figures["request_per_s"]
    assert seen.figures["output_tok_per_s"] == pytest.approx(rate * tokens, rel=0.02)
    assert seen.figures["total_tok_per_s"] == pytest.approx(rate * (16 + tokens), rel=0.02)


def test_answers_that_part_ways_late_are_stated() -> None:
    other = SANE[:-4] + "也许吧。"
    seen = measure(steady(0.5, 0.25), *SIXTEEN, "bench.canary=answer", says=lambda busy: other if busy > 1 else SANE)
    assert seen.reason is None and "3 of 3 repeatable answers under load differ from the idle one" in seen.notes
    assert measure(steady(0.5, 0.25), *ASKED, says=lambda busy: other if busy > 1 else SANE).reason is None
    early = SANE[:4] + "好比一双手套分装进不同盒子,打开左边便晓得右边装着什么;爱因斯坦称其为鬼魅般的超距作用。"
    seen = measure(steady(0.5, 0.25), *ASKED, says=lambda busy: early if busy > 1 else SANE)
    assert seen.reason is None and seen.figures["checks_wrong_share"] == 0


@pytest.mark.parametrize("off", ["bench.check_share=0", "bench.canary=off"])
def test_known_questions_can_be_switched_off(off: str) -> None:
    seen = measure(steady(0.5, 0.25), *ASKED, off, says=lambda busy: "" if busy > 1 else SANE)
    assert seen.reason is None and seen.figures["checks"] is None


def after(seconds: float, other: Callable[[str], str], *, before: bool = False) -> Callable[[Sequence[Engine]], str]:
    """Return a page that is written otherwise after so many seconds (or before)."""
    began: list[float] = []

    def page(engines: Sequence[Engine]) -> str:
        now = asyncio.get_running_loop().time()
        began.append(now)
        more = [replace(one, generated=one.generated + 90_000, finished=one.finished + 5_000) for one in engines]
        text = page_of(more)
        return other(text) if (now - began[0] > seconds) is not before else text

    return page


def unlabelled(text: str) -> str:
    """Return a page whose engines are one."""
    return text.replace('engine="0",', "").replace('engine="1",', "")


@pytest.mark.parametrize(
    "page",
    [
        after(40, lambda text: text.replace('engine="1"', 'engine="7"')),
        after(40, unlabelled),
        after(40, unlabelled, before=True),
    ],
    ids=["renumbered", "labels go", "labels come"],
)
def test_engines_that_get_other_numbers_are_no_strangers(page: Callable[[Sequence[Engine]], str]) -> None:
    """The service has run for long; its counters go on, under other labels."""
    seen = measure(steady(0.5, 0.25), *SIXTEEN, page=page)
    assert seen.reason is None and "does not tell its engines apart" in seen.notes
