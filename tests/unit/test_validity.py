"""Whether a row may be believed: each check has its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jobs.core.config import Bench, Config
from jobs.core.service_config import Parallel
from jobs.measure.gate.case import Case
from jobs.measure.gate.counters import intended_hits
from jobs.measure.queueing import trend
from jobs.measure.records import Answer, Checked, Growth, RequestRecord, Sample, Window
from jobs.measure.statistics import summarize
from jobs.measure.validity import judge

CONFIG = Config(bench=Bench(concurrency=2, window_s=10.0), parallel=Parallel(data_parallel_size=2))


def request(**changed: Any) -> RequestRecord:
    made = RequestRecord(
        index=0,
        start_s=1.0,
        first_token_s=1.5,
        end_s=2.0,
        chunk_times=np.array([1.5, 2.0]),
        prompt_tokens=8,
        output_tokens=2,
        status="ok",
        error=None,
        in_window=True,
    )
    return replace(made, **changed)


def window(*records: RequestRecord, **changed: Any) -> Window:
    made = Window(0.0, 10.0, 1.0, 0.5, tuple(records), {"0": 2, "1": 2}, 0.1, truncated=False)
    return replace(made, **changed)


def reason(measured: Window, config: Config = CONFIG, probes: int = 0) -> str | None:
    return judge(case(measured, config, probes))[0]


def noted(measured: Window, config: Config = CONFIG) -> list[str]:
    return list(judge(case(measured, config))[1])


def case(measured: Window, config: Config, probes: int = 0) -> Case:
    bench = config.bench
    return Case(config, measured, summarize(measured, bench), trend(measured, bench), probes)


def many(count: int, **changed: Any) -> list[RequestRecord]:
    return [request(index=i, **changed) for i in range(count)]


def cached(config: Config = CONFIG, **bench: Any) -> Config:
    caching = replace(config.parallel, enable_prefix_caching=True, block_size=16)
    return replace(config, bench=replace(config.bench, **bench), parallel=caching)


def test_a_whole_window_is_valid() -> None:
    assert reason(window(request())) is None


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (window(), "no request of the window was completed"),
        (window(request(status="failed", error="HTTP 500: dead")), "HTTP 500: dead"),
        (
            window(closed_s=0.0, truncated=True),
            "the window never opened: no answer within bench.warmup_s and limits.wa",
        ),
        (window(request(), request(status="failed", error="reset")), "1 requests failed: reset"),
        (window(request(), request(status="truncated", output_tokens=None)), "1 requests had no whole answer"),
        (window(request(), truncated=True), "the window was cut short"),
        (window(*[request(end_s=5.5)] * 10, engine_tokens={"0": 10, "1": 0}), "data-parallel rank 1 served no token"),
        (window(*[request(end_s=5.5)] * 10, engine_tokens={"0": 10}), "data-parallel rank 1 served no token"),
    ],
)
def test_reasons(measured: Window, words: str) -> None:
    found = reason(measured)
    assert found is not None
    assert words in found


def test_an_engine_that_a_low_load_did_not_need_is_a_note() -> None:
    idle = window(*[request(end_s=9.0)] * 4, engine_tokens={"0": 8, "1": 0})
    assert reason(idle) is None
    assert "data-parallel rank 1 served no token in the window: 3.2 requests in flight did not need it" in noted(idle)


def test_an_engine_that_is_silent_in_hardly_more_than_a_round_of_requests_is_a_note() -> None:
    step = window(*[request(end_s=9.0)] * 8, engine_tokens={"0": 16, "1": 0})
    assert reason(step) is None
    words = "data-parallel rank 1 served no token in the window: it is too short to tell whether that is chance"
    assert words in noted(step)


def test_a_service_that_tells_no_counters_is_not_checked_and_the_row_says_so() -> None:
    words = "requests of others, idle engines and cache hits are not checked"
    assert f"the service tells no counters: {words}" in noted(window(request(), engine_tokens={}))
    assert "requests of others by their number are not checked" in str(noted(window(request(), finished=None)))


def test_requests_around_the_window_that_died_count_as_failures() -> None:
    died = request(status="failed", error="reset", in_window=False, start_s=-1.0, end_s=0.5)
    words = "2 requests that started before or after the window died beside it: reset"
    assert reason(window(*many(98), died, died)) == words
    assert words in noted(window(*many(198), died, died))
    assert reason(window(*many(98), *[replace(died, end_s=-0.5)] * 2)) is None, "in the warm-up"


@pytest.mark.parametrize(("made", "words"), [(192, None), (180, "usage says 200 tokens in the window")])
def test_usage_may_not_say_more_than_the_engines_made(made: int, words: str | None) -> None:
    measured = window(*many(100), growth=Growth({"0": made // 2, "1": made // 2}))
    assert (reason(measured) or "").startswith(words or "")
    assert (words is None) == (reason(measured) is None)
    assert reason(replace(measured, growth=Growth({"1": made // 2}))) is None, "one rank shows no counters"


def test_usage_is_held_against_the_whole_run_as_well() -> None:
    early = request(in_window=False, start_s=-9.0, end_s=-1.0, chunk_times=np.array([-2.0, -1.0]), output_tokens=100)
    measured = window(*many(100), *[early] * 10, growth=Growth({"0": 100, "1": 100}), generated=1190)
    assert reason(measured) is None
    assert reason(replace(measured, generated=1000)) == "usage says 1200 tokens in all, and the engines made 1000"


def test_strangers_that_break_off_their_requests_are_seen() -> None:
    measured = window(*many(100), aborted=0, prompted=800)
    assert reason(measured) is None
    assert reason(replace(measured, aborted=1)) == "1 requests that were not ours were broken off"
    assert reason(replace(measured, prompted=850)) == "the engines read 850 tokens of prompts, 800 of them ours"
    preempted = replace(measured, prompted=850, growth=Growth({}, preemptions=4))
    assert reason(preempted) is None, "they may be read again"


def test_known_questions_without_an_answer_are_told() -> None:
    idle, refused = Answer("量子纠缠是一种关联。", 8, None), Answer("", None, "HTTP 429: busy")
    never = window(request(), checked=Checked(idle, ()))
    assert reason(never) is None and "accuracy under load is not checked" in str(noted(never))
    some = window(request(), checked=Checked(idle, (idle, refused)))
    assert reason(some) is None and "1 known questions among the load had no answer: HTTP 429: busy" in noted(some)


def test_requests_that_were_sent_late_are_the_clients_fault() -> None:
    config = replace(CONFIG, bench=replace(CONFIG.bench, concurrency=None, request_rate=10.0))
    late = window(*many(97), *many(3, wait_s=0.3), lags=np.zeros(200))
    assert "it sent requests up to 300 ms late (p99)" in (reason(late, config) or "")
    assert "it sent" not in (reason(late) or ""), "under a cap they may have to wait for a slot"


def held(count: float, readings: int) -> tuple[Sample, ...]:
    samples = [
        Sample(float(i), e, count if i < readings else 0.0, 0.0, None, None, None) for i in range(10) for e in "01"
    ]
    return tuple(samples)


def test_engines_that_hold_more_requests_than_ours_have_strangers() -> None:
    ours = [request(index=i, start_s=0.0, end_s=10.0) for i in range(3)]
    one_more = window(*ours, series=held(2.0, 10))
    assert reason(one_more, probes=1) is None, "one more is our watch"
    assert reason(one_more) == "the engines held up to 1 requests more than ours in flight"
    assert reason(window(*ours, series=held(3.0, 2))) is None, "twice is a moment of change"
    assert reason(window(*ours, series=held(3.0, 3))) == "the engines held up to 3 requests more than ours in flight"


@pytest.mark.parametrize("told", [0, 12])
def test_prompts_of_another_length_by_usage_are_other_work(told: int) -> None:
    found = reason(window(*many(3, prompt_tokens=told, asked_input=16)))
    assert found == f"prompts had {told} tokens on average instead of 16"


@pytest.mark.parametrize(("tokens", "words"), [(16, None), (15, "answers had 15 tokens on average instead of 16")])
@pytest.mark.parametrize("ignore_eos", [True, False])
def test_answers_of_another_length_are_other_work(tokens: int, words: str | None, ignore_eos: bool) -> None:
    config = replace(CONFIG, bench=replace(CONFIG.bench, ignore_eos=ignore_eos))
    measured = window(*many(3, output_tokens=tokens, asked_output=16), engine_tokens={})
    found = reason(measured, config)
    assert (found or "").startswith(words or "") and (words is None) == (found is None)
    texts = replace(config, bench=replace(config.bench, workload="sharegpt"))
    assert (reason(measured, texts) is None) == (words is None or not ignore_eos), "a text may end where it ends"


def test_answers_that_no_engine_made_are_named() -> None:
    cached = request(start_s=1.0, first_token_s=1.0005, chunk_times=np.linspace(1.0005, 1.001, 16), output_tokens=16)
    words = "answers came faster than any engine makes them"
    assert words in (reason(window(*many(10), cached, engine_tokens={})) or "")
    assert f"1 of 101 {words} (0.062 ms a token, at least 0.2): a cache of answers?" in noted(
        window(*many(100), cached, engine_tokens={})
    )


def test_a_client_that_was_late_was_measured_itself() -> None:
    def kept(*late: float) -> Window:
        return window(request(chunk_times=np.linspace(1.5, 1.9, 5)), lags=np.array([0.0] * 2000 + list(late)))

    assert reason(kept(0.9)) is None
    assert "the client stood still for 1.1 s" in (reason(kept(1.1)) or "")
    assert "the client was starved of its processor: it was up to 60 ms late" in (reason(kept(*[0.06] * 30)) or "")
    assert "the client was up to 30 ms late (p99)" in str(noted(kept(*[0.03] * 30)))
    assert summarize(kept(*[0.06] * 30), CONFIG.bench)["client_lag_ms_p99"] == pytest.approx(60)
    assert summarize(window(), CONFIG.bench)["client_lag_ms_p99"] is None


def test_one_failure_in_a_hundred_is_a_note_and_two_are_too_many() -> None:
    failed = request(status="failed", error="reset")
    assert reason(window(*many(99), failed)) is None
    assert "1 requests failed: reset" in noted(window(*many(99), failed))
    assert reason(window(*many(98), failed, failed)) == "2 requests failed: reset"
    strict = replace(CONFIG, bench=replace(CONFIG.bench, min_success=1.0))
    assert reason(window(*many(99), failed), strict) == "1 requests failed: reset"


@pytest.mark.parametrize(("real", "bad"), [(1000, False), (1009, False), (1011, True), (989, True)])
def test_real_prompt_lengths_are_within_a_hundredth(real: int, bad: bool) -> None:
    found = reason(window(*many(3, prompt_tokens=real, asked_input=1000)))
    assert found == (f"prompts had {real} tokens on average instead of 1000" if bad else None)
    assert reason(window(*many(3, prompt_tokens=real, asked_input=None))) is None, "the length of a text is not asked"


def test_an_engine_that_hardly_served_is_a_reason_where_chance_cannot_explain_it() -> None:
    tokens = {"0": 190, "1": 10}
    assert reason(window(*many(100), engine_tokens=tokens)) == "data-parallel rank 1 served 10% of an even share"
    assert reason(window(*many(99), engine_tokens=tokens)) is None
    assert "data-parallel rank 1 served 10% of an even share" in noted(window(*many(99), engine_tokens=tokens))
    assert "data-parallel rank 1 served 70% of an even share" in noted(
        window(*many(100), engine_tokens={"0": 130, "1": 70})
    )
    assert not [n for n in noted(window(*many(100), engine_tokens={"0": 110, "1": 90})) if "share" in n]


def test_a_request_that_was_not_ours_is_seen_in_the_engines_counters() -> None:
    ten = many(10)
    assert reason(window(*ten, finished=10, generated=20)) is None
    assert reason(window(*ten, finished=12, generated=22), probes=2) is None
    found = reason(window(*ten, finished=12, generated=22), probes=1)
    assert found == "1 requests that were not ours ran on the service"
    assert reason(window(*ten, finished=11)) is not None, "it tells no tokens"


def test_a_request_that_we_cut_off_may_have_been_finished_all_the_same() -> None:
    def cut(chunks: int) -> RequestRecord:
        return request(status="truncated", output_tokens=None, chunk_times=np.full(chunks, 11.0), in_window=False)

    # Forty tokens are asked for: one lacks 3 of them, the other 39. Four for each of them and four more may be late.
    ten = many(10, chunk_times=np.linspace(1.5, 2.0, 40), output_tokens=40)
    measured = window(*ten, cut(37), cut(1), finished=11, generated=438)
    assert reason(measured) is None
    assert reason(replace(measured, generated=428)) == "1 requests that were not ours ran on the service"
    assert reason(replace(measured, generated=429)) is None
    assert reason(replace(measured, finished=12, generated=467)) == "1 requests that were not ours ran on the service"
    assert reason(replace(measured, finished=12, generated=468)) is None
    assert reason(replace(measured, finished=13, generated=9999)) is not None, "only two were cut off"
    # One whose usage has come lacks its end alone: in few pieces, as under load, it would seem to lack most.
    told = replace(cut(4), output_tokens=40)
    assert reason(window(*ten, told, finished=11, generated=440)) is None
    assert reason(window(*ten, told, finished=12, generated=440)) is not None
    assert reason(replace(measured, finished=12, generated=None)) is None, "it tells no tokens"
    pieces = [replace(record, chunk_times=record.chunk_times[::2]) for record in ten]
    assert reason(replace(measured, records=(*pieces, cut(10)), generated=431)) is not None, "two tokens a chunk"
    assert reason(replace(measured, records=(*pieces, cut(10)), generated=432)) is None


def test_tokens_that_were_not_ours_are_seen_too() -> None:
    assert reason(window(*many(100), engine_tokens={"0": 105, "1": 105})) is None, "200 of them arrived here"
    found = reason(window(*many(100), engine_tokens={"0": 150, "1": 150}))
    assert found == "the engines made 300 tokens in the window, 200 of them for us"


def test_what_came_until_a_busy_service_gave_its_counters_is_ours() -> None:
    times = np.array([9.95, *[10.3] * 12])
    later = [request(index=i, start_s=9.9, chunk_times=times, output_tokens=13, end_s=10.3) for i in range(5)]
    measured = window(*many(40), *later, engine_tokens={"0": 75, "1": 70})
    assert reason(measured) == "the engines made 145 tokens in the window, 85 of them for us"
    assert reason(replace(measured, growth=Growth({}, last_s=(10.0, 10.2)))) is not None, (
        "the page came before they did"
    )
    assert reason(replace(measured, growth=Growth({}, last_s=(10.0, 10.4)))) is None
    foreign = replace(measured, engine_tokens={"0": 100, "1": 100}, growth=Growth({}, last_s=(10.0, 10.4)))
    assert reason(foreign) == "the engines made 200 tokens in the window, 145 of them for us"


@pytest.mark.parametrize(
    ("bench", "hits", "words"),
    [
        ({}, 10, None),
        ({}, 30, "prefix cache hits 3% of the prompt tokens, at most 2% were intended"),
        ({"workload": "shared_prefix", "prefix_share": 0.5}, 480, None),
        ({"workload": "shared_prefix", "prefix_share": 0.5}, 700, "prefix cache hits 70%"),
        ({"workload": "sharegpt"}, 900, None),
    ],
)
def test_prefix_cache_hits_are_those_intended(bench: dict[str, Any], hits: int, words: str | None) -> None:
    measured = window(request(), growth=Growth({}, prefix_queries=1000, prefix_hits=hits))
    found = reason(measured, cached(**bench))
    assert (found is None) if words is None else (found or "").startswith(words)
    preempted = replace(measured, growth=replace(measured.growth, preemptions=1))
    longest = replace(measured, records=(request(prompt_tokens=180, output_tokens=20),))
    if hits == 700:
        assert reason(preempted, cached(**bench)) == found, "it found less than that of itself"
    again = replace(longest, growth=preempted.growth)
    assert reason(again, cached(**bench)) is None, "it may have found its own blocks again"


def test_fewer_hits_than_intended_are_a_note() -> None:
    config = cached(workload="shared_prefix", prefix_share=0.5)
    measured = window(request(), growth=Growth({}, prefix_queries=1000, prefix_hits=100))
    assert reason(measured, config) is None
    assert "prefix cache hits 10%, at least 38% were intended" in noted(measured, config)


def test_intended_hits_of_conversations() -> None:
    low, high = intended_hits(cached(workload="multi_turn", turns=3, input_tokens=160, output_tokens=32)) or (0, 0)
    # Prompts of 160, 352 and 544 tokens; the second finds 160 of them, the third 352.
    assert high == pytest.approx((160 + 352) / (160 + 352 + 544) + 0.02)
    assert low == pytest.approx(0.75 * (160 + 352) / (160 + 352 + 544))


def test_a_client_without_time_measured_itself() -> None:
    assert reason(window(request(), cpu_s=9.6)) == (
        "the client used 96% of its processor: it was measured, not the service"
    )
    assert "the client used 80% of one processor" in noted(window(request(), cpu_s=8.0))


def test_short_windows_and_few_requests_are_notes() -> None:
    slow = request(first_token_s=6.0, chunk_times=np.array([6.0, 6.5]), end_s=6.5)
    found = noted(window(slow))
    assert "the window is shorter than 3 x TTFT p99 (5 s)" in found
    assert "1 requests: too few for a p99" in found
    enough = window(*many(300), engine_tokens={"0": 300, "1": 300}, finished=300)
    assert noted(enough) == ["the window is too short to tell whether the service was steady"]


def test_preemptions_are_counted_and_noted() -> None:
    measured = window(request(), growth=Growth({}, preemptions=7))
    assert reason(measured) is None
    assert "7 preemptions: the KV cache was full" in noted(measured)


def test_a_long_silence_in_a_busy_window_is_noted() -> None:
    stalled = request(chunk_times=np.array([1.5, 1.6, 1.7, 13.7]), end_s=13.7)
    found = noted(window(stalled, closed_s=60.0))
    assert "no token came for 12 s of the window" in found
    again = [replace(stalled, index=i, chunk_times=stalled.chunk_times + 20 * i, end_s=13.7 + 20 * i) for i in range(3)]
    assert reason(window(*again, closed_s=60.0)) == "no token came for 36 s of the window, in 3 pauses"
    assert reason(window(*again, closed_s=130.0)) is None
    slow = request(chunk_times=np.arange(1.5, 60.0, 9.0), end_s=60.0)
    assert not [n for n in noted(window(slow, closed_s=60.0)) if "no token" in n], "each of its tokens takes so long"
    idle = [request(), request(start_s=30.0, chunk_times=np.array([30.5]), first_token_s=30.5, end_s=30.5)]
    assert not [n for n in noted(window(*idle, closed_s=60.0)) if "no token" in n], "nothing was asked for meanwhile"


def test_answers_in_few_pieces_are_noted() -> None:
    at_once = request(chunk_times=np.array([2.0]), output_tokens=64)
    assert "1 of 3 answers came in one piece: they have no TPOT and no ITL" in noted(
        window(at_once, request(), request())
    )
    pieces = request(output_tokens=9)
    assert "4.5 tokens at a time: TPOT and ITL are those of pieces of an answer" in noted(window(pieces, pieces))
    assert not [note for note in noted(window(request(output_tokens=8))) if "ITL" in note]
