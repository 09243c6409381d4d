"""The gate on external clients: the same checks as for our own, without records of single requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from core_help import ROOT, config

from jobs.core.config import Config
from jobs.measure.clients import judge
from jobs.measure.clients.ais_bench import AisBench
from jobs.measure.clients.result import Result, figures, single
from jobs.measure.records import Growth, RequestRecord, Sample, Window
from jobs.measure.series import traffic

KNOWN = {"completed": 100, "failed": 0, "input_tokens_mean": 256.0, "tpot_ms_mean": 2.0}
RESULT = Result(100, 100, 0, 5.0, 3200, [32] * 100, [], figures(KNOWN))
WINDOW = Window(
    10.0, 20.0, 2.0, 0.0, (), {"0": 1616, "1": 1616}, 0.0, truncated=False,
    growth=Growth({}, preemptions=0, prefix_queries=25600, prefix_hits=256), finished=101,
)  # fmt: skip


def point(*overrides: str) -> Config:
    words = ("cluster=local", "engine=vllm_cpu", "model=tiny_llama", "parallel=dp2_tp1", "model.path=/models/tiny")
    asked = ("bench.output_tokens=32", "bench.input_tokens=256", "bench.client=ais_bench", "bench.concurrency=8")
    return config(*words, *asked, *overrides)


def reason(result: Result = RESULT, window: Window = WINDOW, *overrides: str, probes: int = 0) -> str | None:
    one = point(*overrides)
    return judge.reason(one, result, window, probes, judge.figures(one, result, window))


def known(**changed: Any) -> Result:
    return replace(RESULT, figures=figures(KNOWN | changed))


def grown(**changed: Any) -> Window:
    return replace(WINDOW, growth=replace(WINDOW.growth, **changed))


def test_a_run_that_is_what_was_asked_is_valid() -> None:
    assert reason() is None
    row = judge.figures(point(), RESULT, WINDOW)
    assert (row["prefix_hit_share"], row["preemptions"], row["saturated"]) == (0.01, 0, False)


@pytest.mark.parametrize(
    ("result", "window", "words"),
    [
        (known(input_tokens_mean=258.5), WINDOW, None),
        (known(input_tokens_mean=258.7), WINDOW, "prompts had 258.7 tokens on average instead of 256"),
        (RESULT, replace(WINDOW, finished=102), "1 requests that were not ours ran on the service"),
        (RESULT, replace(WINDOW, engine_tokens={"0": 1800, "1": 1800}), "the engines made 3600 tokens in the window"),
        (RESULT, replace(WINDOW, engine_tokens={"0": 3200, "1": 0}), "data-parallel rank 1 served no token"),
        (RESULT, replace(WINDOW, engine_tokens={"1": 1600}), None),  # 0.9.1 shows one engine's counter only
        (replace(RESULT, output_lengths=[31] * 100), WINDOW, "answers had 31 tokens on average instead of 32"),
        (RESULT, replace(WINDOW, engine_tokens={"0": 3000, "1": 200}), "data-parallel rank 1 served 12% of an even"),
        (RESULT, grown(prefix_hits=800), "prefix cache hits 3% of the prompt tokens, at most 3% were intended"),
    ],
)
def test_reasons(result: Result, window: Window, words: str | None) -> None:
    found = reason(result, window)
    assert (found or "").startswith(words or "") and (found is None) == (words is None)


def test_a_client_without_a_free_moment_was_measured_itself() -> None:
    row = judge.figures(point(), RESULT, WINDOW, cpu_share=0.97)
    assert (judge.reason(point(), RESULT, WINDOW, 0, row) or "").startswith("the client used 97% of its processor")
    busy = judge.figures(point(), RESULT, WINDOW, cpu_share=0.8)
    assert judge.reason(point(), RESULT, WINDOW, 0, busy) is None
    assert "the client used 80% of one processor" in judge.notes(point(), RESULT, WINDOW, busy)


def test_an_engine_that_a_low_rate_did_not_need_is_a_note() -> None:
    one = point("bench.concurrency=null", "bench.request_rate=0.5")
    idle, slow = replace(WINDOW, engine_tokens={"0": 3200, "1": 0}), known(e2el_ms_mean=6000.0)
    row = judge.figures(one, slow, idle)
    assert judge.reason(one, slow, idle, 0, row) is None
    assert "3 requests in flight did not need it" in str(judge.notes(one, slow, idle, row))
    busy = judge.figures(one, known(e2el_ms_mean=9000.0), idle)
    assert judge.reason(one, slow, idle, 0, busy) == "data-parallel rank 1 served no token in the window"


def test_our_own_watch_is_not_foreign() -> None:
    assert reason(RESULT, replace(WINDOW, finished=103), probes=2) is None


def test_the_length_of_a_chat_is_not_asked() -> None:
    assert reason(known(input_tokens_mean=300.0), WINDOW, "bench.endpoint=chat") is None


def test_the_words_that_ais_bench_sends_are_more_tokens_than_asked() -> None:
    """A real result: random token ids, decoded to a text and encoded again, are 297 tokens where 256 were asked."""
    found = AisBench().read(ROOT / "tests/fixtures/clients/ais_bench", 200)
    assert found.figures["input_tokens_mean"] == 296.925
    assert found.figures["output_tokens_mean"] == 32.0
    assert (reason(found) or "").startswith("prompts had 296.9")


def test_a_percentile_of_few_requests_is_not_shown() -> None:
    row = figures({"completed": 20, "ttft_ms_p50": 5.0, "ttft_ms_p90": 9.0, "ttft_ms_p99": 12.0, "ttft_ms_mean": 6.0})
    assert [row[f"ttft_ms_{part}"] for part in ("p50", "p90", "p99", "mean")] == [5.0, 9.0, None, 6.0]
    assert figures({"completed": 100, "ttft_ms_p99": 12.0})["ttft_ms_p99"] == 12.0


def test_a_tpot_of_nothing_is_none() -> None:
    row = figures({"completed": 100, "tpot_ms_mean": 0.0, "tpot_ms_p50": 0.0, "tpot_ms_p90": 2.0})
    assert (row["tpot_ms_mean"], row["tpot_ms_p50"], row["tpot_ms_p90"]) == (None, None, 2.0)
    assert row["tok_per_s_per_user"] is None


def test_preemptions_and_few_requests_are_notes() -> None:
    few = known(completed=64)
    row = judge.figures(point(), few, grown(preemptions=3))
    said = judge.notes(point(), few, grown(preemptions=3), row)
    assert said == ["3 preemptions: the KV cache was full", "64 requests: too few for a p99"]


def singles(count: int, *, slow: int = 0, wait_s: float = 0.0) -> list[RequestRecord]:
    """So many answers of 16 tokens that began after 0.1 s; of every hundredth or so the first one took 5 s."""
    late = {round(one * count / max(slow, 1)) for one in range(slow)}
    return [single(at, 5.0 if at in late else 0.1, [0.05] * 15, 16, whole=True, wait_s=wait_s) for at in range(count)]


def objective_of(requests: list[RequestRecord], *overrides: str, waits: bool = False) -> tuple[dict[str, Any], str]:
    """Return the columns of the objective, TTFT of 1 s, and the notes; the client's own p99 says 100 ms."""
    count = max(400, len(requests))
    found = replace(
        known(completed=count, ttft_ms_p99=100.0, e2el_ms_mean=1000.0), requested=count, completed=count,
        requests=requests, tells_waits=waits,
    )  # fmt: skip
    one = point("bench.slo.ttft_ms=1000", *overrides)
    row = judge.figures(one, found, WINDOW)
    return {name: row[name] for name in ("slo_kept", "slo_requests", "slo_misses")}, "; ".join(
        judge.notes(one, found, WINDOW, row)
    )


@pytest.mark.parametrize(("slow", "kept"), [(0, True), (3, None), (40, False)])
def test_an_objective_is_told_by_single_requests(slow: int, kept: bool | None) -> None:
    row, _ = objective_of(singles(400, slow=slow))
    assert row == {"slo_kept": kept, "slo_requests": 400, "slo_misses": slow}


@pytest.mark.parametrize("requests", [[], singles(399)])
def test_a_p99_alone_tells_of_no_objective(requests: list[RequestRecord]) -> None:
    row, notes = objective_of(requests)
    assert row["slo_kept"] is None
    assert not row["slo_requests"]
    assert "whether bench.slo is kept is not known: this client does not tell" in notes


def test_what_a_cap_lets_wait_in_the_client_counts() -> None:
    capped = ("bench.request_rate=40", "bench.concurrency=2", "bench.num_requests=400")
    row, notes = objective_of(singles(400), *capped)
    assert row["slo_kept"] is None
    assert "caps the open loop" in notes
    assert "whether bench.slo is kept is not known" in notes
    assert objective_of(singles(400), *capped, waits=True)[0]["slo_kept"] is True
    assert objective_of(singles(400, wait_s=2.0), *capped, waits=True)[0]["slo_misses"] == 400
    assert "caps" not in objective_of(singles(400))[1]


def test_a_failed_request_is_a_miss() -> None:
    assert single(0.0, 0.0, (), 0, whole=False).status == "failed"
    failed = [single(400.0 + at, 0.0, (), 0, whole=False) for at in range(20)]
    assert objective_of([*singles(400), *failed])[0]["slo_misses"] == 20


def series(*tokens: float) -> tuple[Sample, ...]:
    """One reading a second of two engines, from second 5."""
    each = [(5.0 + i, engine, count) for i, count in enumerate(tokens) for engine in ("0", "1")]
    return tuple(Sample(time, engine, 1.0, 0.0, 0.1, 0.0, count / 2) for time, engine, count in each)


def test_traffic_is_where_tokens_are_made() -> None:
    assert traffic(series(7, 7, 7, 9, 20, 20, 20)) == (7.0, 9.0)
    assert traffic(series(7, 7)) is None
    assert traffic(()) is None


@pytest.mark.parametrize(("lasts", "grows"), [(20, False), (22, None), (40, True)])
def test_a_queue_that_grows_is_seen_in_the_tokens(lasts: int, grows: bool | None) -> None:
    """200 requests of 32 tokens come in 20 s; they are answered at an even pace in `lasts` s."""
    made = [0.0] + [6400 * min(1.0, i / lasts) for i in range(lasts + 3)]
    result = replace(RESULT, requested=200, completed=200, output_tokens=6400)
    window = replace(WINDOW, opened_s=6.0, series=series(*made))
    one = point("bench.concurrency=null", "bench.request_rate=10", "bench.num_requests=200")
    row = judge.figures(one, result, window)
    assert row["saturated"] is grows
    assert any(note.startswith("the queue grows") for note in judge.notes(one, result, window, row)) is bool(grows)
