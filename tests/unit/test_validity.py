"""Whether a row may be believed: each check has its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jobs.core.config import Bench, Config
from jobs.core.service_config import Parallel
from jobs.measure.records import Growth, RequestRecord, Window
from jobs.measure.statistics import summarize
from jobs.measure.validity import intended_hits, invalid_reason, notes

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
    return invalid_reason(config, measured, summarize(measured, config.bench), probes)


def noted(measured: Window, config: Config = CONFIG) -> list[str]:
    return notes(config, measured, summarize(measured, config.bench))


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
        (window(request(), engine_tokens={"0": 4, "1": 0}), "data-parallel rank 1 served no token"),
        (window(request(), engine_tokens={"0": 4}), "data-parallel rank 1 served no token"),
    ],
)
def test_reasons(measured: Window, words: str) -> None:
    found = reason(measured)
    assert found is not None
    assert words in found


def test_a_load_below_the_number_of_engines_may_leave_one_idle() -> None:
    one_user = replace(CONFIG, bench=replace(CONFIG.bench, concurrency=1))
    assert reason(window(request(), engine_tokens={"0": 4, "1": 0}), one_user) is None


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
    assert reason(replace(measured, growth=Growth({}, until_s=10.2))) is not None, "the page came before they did"
    assert reason(replace(measured, growth=Growth({}, until_s=10.4))) is None
    foreign = replace(measured, engine_tokens={"0": 100, "1": 100}, growth=Growth({}, until_s=10.4))
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
    assert reason(preempted, cached(**bench)) is None, "it may have found its own blocks again"


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
    assert noted(window(*many(100), engine_tokens={"0": 100, "1": 100})) == []


def test_preemptions_are_counted_and_noted() -> None:
    measured = window(request(), growth=Growth({}, preemptions=7))
    assert reason(measured) is None
    assert "7 preemptions: the KV cache was full" in noted(measured)


def test_a_long_silence_in_a_busy_window_is_noted() -> None:
    times = np.array([1.5, 30.0])
    stalled = request(chunk_times=times, end_s=30.0)
    found = noted(window(stalled, closed_s=60.0))
    assert "no token came for 28 s of the window" in found
    idle = [request(), request(start_s=30.0, chunk_times=np.array([30.5]), first_token_s=30.5, end_s=30.5)]
    assert not [n for n in noted(window(*idle, closed_s=60.0)) if "no token" in n], "nothing was asked for meanwhile"


def test_answers_in_few_pieces_are_noted() -> None:
    at_once = request(chunk_times=np.array([2.0]), output_tokens=64)
    assert "1 of 3 answers came in one piece: they have no TPOT and no ITL" in noted(
        window(at_once, request(), request())
    )
    pieces = request(output_tokens=9)
    assert "4.5 tokens a chunk: TPOT and ITL are those of pieces of an answer" in noted(window(pieces, pieces))
    assert not [note for note in noted(window(request(output_tokens=8))) if "ITL" in note]
