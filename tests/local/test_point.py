"""One point on a rehearsed service of two ranks: what the gate sees, what repeats and a search leave behind."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import pyarrow.parquet as pq
import pytest
from simulator_help import LIMIT_S, Service, service

from jobs.core.config import Bench, Config, Model
from jobs.core.files import read_json, read_lines
from jobs.core.load import Slo
from jobs.core.rundir import PointDir
from jobs.core.service_config import Parallel, Shape
from jobs.core.sweep_settings import Limits
from jobs.measure import bound
from jobs.measure.gate import client as gate
from jobs.measure.point import Measured, OfService, PointRun
from jobs.measure.records import Target
from jobs.measure.saved import save
from jobs.results.row import make_row

# So many requests and not so many seconds: on a busy machine a service may be still for a second.
BENCH = Bench(
    concurrency=4, input_tokens=64, output_tokens=8, warmup_s=0.2, num_requests=40, repeats=1, canary="answer"
)
CONFIG = Config(
    bench=BENCH,
    parallel=Parallel(data_parallel_size=2, max_model_len=4096, enable_prefix_caching=False, block_size=16),
    model=Model(path="/models/tiny", served_model_name="tiny", shape=Shape(token_ids=(100, 1000))),
    limits=Limits(drain_s=10.0),
)
FLAGS = ("--block-size", "16", "--no-enable-prefix-caching")


@pytest.fixture(autouse=True)
def _on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is the subject here: a busy machine starves its client (test_client_late)."""
    for limit in ("STARVED_S", "STOOD_S", "CPU_LIMIT"):
        monkeypatch.setattr(gate, limit, math.inf)


def asked(**bench: Any) -> Config:
    return replace(CONFIG, bench=replace(BENCH, **bench))


def caching(config: Config) -> Config:
    return replace(config, parallel=replace(config.parallel, enable_prefix_caching=True))


async def measured(
    made: Service, config: Config, shared: OfService | None = None, phases: list[str] | None = None
) -> Measured:
    say = (phases if phases is not None else []).append
    run = PointRun(config, Target(made.url, "tiny"), shared or OfService(), None, asyncio.Event(), say)
    await asyncio.wait_for(run.run(), 3 * LIMIT_S)
    return run.result()


async def test_repeats_are_one_row_and_every_window_is_kept(tmp_path: Any) -> None:
    phases: list[str] = []
    async with service(*FLAGS) as made:
        await made.both()
        point = await measured(made, asked(repeats=2), phases=phases)
    assert point.reason is None and not point.truncated
    assert phases == ["canary", *["warm", "measuring", "drain"] * 2, "canary"]
    assert point.figures["windows"] == 2
    rates = [line["output_tok_per_s"] for line in point.lines]
    assert point.figures["output_tok_per_s_min"] == min(rates) and point.figures["output_tok_per_s_max"] == max(rates)
    for window in point.windows:  # what was cut off at the end may be in both counts, in part or not
        whole = [record for record in window.records if record.status == "ok"]
        assert len(whole) <= (window.finished or 0) <= len(window.records)
        most = sum(16 if record.check else 8 for record in window.records)
        assert 8 * len(whole) <= (window.generated or 0) <= most
    assert point.measured_s == pytest.approx(sum(window.seconds + window.drain_s for window in point.windows))
    make_row("p", "s", CONFIG, **point.figures)  # every figure has its column
    folder = PointDir(tmp_path)
    save(folder, point)
    assert [line["number"] for line in read_lines(folder.windows)] == [1, 2]
    assert set(pq.read_table(folder.requests)["window"].to_pylist()) == {1, 2}
    assert {"0", "1"} == set(pq.read_table(folder.series)["engine"].to_pylist())
    answers = read_json(folder.canary)
    assert answers["before"]["fault"] is None is answers["after"]["fault"]
    assert answers["before"]["tokens"] == 16


async def test_a_search_finds_the_load_that_keeps_the_objective(tmp_path: Any, monkeypatch: Any) -> None:
    """One engine step takes 2 ms and holds 2 sequences of each of 2 ranks: beyond 4 requests the rest wait.

    Windows of tenths of a second hold few requests, so half of them are to keep it: 5 tell that.
    """
    monkeypatch.setattr(bound, "SHARE", 0.5)
    monkeypatch.setattr(bound, "_needed", bound._needed.__wrapped__)
    slo = Slo(ttft_ms=14.0)
    config = asked(
        search="concurrency", slo=slo, concurrency=1, search_most=64.0, search_precision=0.25,
        num_requests=None, window_s=0.4,
    )  # fmt: skip
    async with service(*FLAGS, "--max-num-seqs", "2", overhead_ms=20.0) as made:
        await made.both()
        none = await measured(made, config)
        some = await measured(made, replace(config, bench=replace(config.bench, slo=Slo(ttft_ms=150.0))))
    assert none.figures["found_concurrency"] == 0, "one step takes longer than the limit"
    assert any("no load down to 1 is known to keep bench.slo" in note for note in none.notes), none.notes
    found = some.figures["found_concurrency"]
    assert 1 <= found < 64 and some.figures["probes"] <= len(some.lines)
    assert all(line["kind"] == "probe" for line in some.lines)
    kept = [line["load"] for line in some.lines if line["objective_broken"] is None]
    assert found in kept and (some.figures["ttft_ms_p50"] or 0) <= 150.0


async def test_a_rate_beyond_what_the_service_can_do_is_flagged() -> None:
    """One sequence a rank and 20 ms a step: 8 tokens take 160 ms, so two ranks answer about 12 a second."""
    async with service(*FLAGS, "--max-num-seqs", "1", overhead_ms=20.0) as made:
        await made.both()
        calm = await measured(made, asked(num_requests=8))
        hot = await measured(made, asked(concurrency=None, request_rate=200.0, num_requests=60))
    assert calm.reason is None is hot.reason, "what it can do at most is a figure"
    assert (calm.figures["saturated"], hot.figures["saturated"]) == (False, True)
    assert any(note.startswith("the queue grows") for note in hot.notes)
    assert [line["saturated"] for line in hot.lines] == [True]


async def test_requests_of_others_make_a_row_invalid() -> None:
    async with service(*FLAGS) as made, aiohttp.ClientSession(made.url) as other:
        await made.both()
        going = asyncio.create_task(measured(made, asked(num_requests=None, window_s=1.0)))
        await asyncio.sleep(0.5)
        body = {"model": "tiny", "prompt": [5, 6], "max_tokens": 1}
        for _ in range(8):  # those of ours that are cut off at the end may hide as many as there are slots
            async with other.post("/v1/completions", json=body) as response:
                assert response.status == 200
        point = await going
    assert "requests that were not ours ran on the service" in (point.reason or "")


async def test_outputs_that_are_too_short_make_a_row_invalid() -> None:
    faults = [{"rank": rank, "kind": "short_output", "when": "start", "tokens": 5} for rank in (0, 1)]
    async with service(*FLAGS, faults=faults) as made:
        await made.both()
        point = await measured(made, asked(num_requests=8))
    assert point.reason is not None and "5 tokens instead of 8" in point.reason


async def test_what_a_window_leaves_in_a_prefix_cache_helps_no_other() -> None:
    async with service("--block-size", "16", "--enable-prefix-caching") as made:
        await made.both()
        # Each rank has its own cache: among few requests all may meet the other one again.
        shared, config = OfService(), caching(asked(num_requests=200))
        first, second = [await measured(made, config, shared) for _ in range(2)]
        assert first.reason is None is second.reason
        assert first.figures["prefix_hit_share"] == 0.0 == second.figures["prefix_hit_share"]
        # The same salts again: now every prompt is found, and the gate says so.
        again = await measured(made, config, OfService())
        assert (again.reason or "").startswith("prefix cache hits")
        prefixed = asked(workload="shared_prefix", prefix_share=0.5, input_tokens=128, num_requests=200)
        wanted = await measured(made, caching(prefixed), shared)
    assert wanted.reason is None
    assert wanted.figures["prefix_hit_share"] == pytest.approx(0.5, abs=0.05)


async def test_preemptions_are_counted() -> None:
    """640 tokens of KV cache a rank do not hold 12 sequences of up to 96 tokens."""
    gib = 640 * 1024 / 2**30
    small = {"npu_memory_gib": (0.01 + gib) / 0.9 + 1e-9, "allowance_gib": 0.0}
    async with service(*FLAGS, "--max-model-len", "128", **small) as made:
        await made.both()
        point = await measured(made, asked(concurrency=24, input_tokens=32, output_tokens=64, num_requests=96))
    assert (point.figures["preemptions"] or 0) > 0
    assert any("preemptions: the KV cache was full" in note for note in point.notes)
    assert point.figures["kv_use_max"] > 0.5


@pytest.mark.parametrize(("recall_tokens", "score"), [(8192, 1.0), (1000, 0.0)])
async def test_questions_on_long_texts_are_asked_once_a_service(recall_tokens: int, score: float) -> None:
    config = asked(quality="needle", canary="off", num_requests=60)
    shared, phases = OfService(), []  # type: ignore[var-annotated]
    async with service(*FLAGS, recall_tokens=recall_tokens, overhead_ms=2.0) as made:
        await made.both()
        first, second = [await measured(made, config, shared, phases) for _ in range(2)]
    assert phases.count("quality") == 1 and phases[0] == "quality"
    assert first.figures["needle_score"] == second.figures["needle_score"] == score
    assert first.quality is not None and first.canary is None
    lengths = [line["prompt_tokens"] for line in first.quality.lines]
    assert len(lengths) == 8 and min(lengths) > 0.9 * (4096 - 1024) and max(lengths) <= 4096 - 1024
    wrong = "0% of the quality questions were answered right, less than bench.min_quality=0.5"
    judged = [one.reason for one in (first, second)]
    assert (wrong in judged) is (score == 0), "a machine that stands still may come first in one of them"


async def test_a_service_that_answers_nonsense_is_not_valid() -> None:
    async with service(*FLAGS) as made:
        await made.both()
        point = await measured(made, asked(canary="sane"))
    assert point.reason == "canary before the window: 0% of its words are Chinese, as the question is"


async def test_a_point_that_needs_no_further_window_is_whole_with_those_that_it_has() -> None:
    asked_for: list[int] = []

    def enough(figures: Mapping[str, Any], windows: int) -> bool:
        asked_for.append(windows)
        return bool(figures["output_tok_per_s"] > 0)

    async with service(*FLAGS) as made:
        await made.both()
        config, target = asked(repeats=3, num_requests=64, canary="off"), Target(made.url, "tiny")
        run = PointRun(config, target, OfService(), None, asyncio.Event(), lambda _: None, enough=enough)
        await asyncio.wait_for(run.run(), LIMIT_S)
    point = run.result()
    assert (point.reason, point.truncated, point.figures["windows"], asked_for) == (None, False, 1, [1])
    assert any("1 of 3 windows" in note for note in point.notes)


async def test_stop_ends_a_point_before_its_first_window() -> None:
    stop = asyncio.Event()
    stop.set()
    run = PointRun(CONFIG, Target("http://127.0.0.1:9", "m"), OfService(), None, stop, lambda _: None)
    await run.run()
    point = run.result()
    assert point.truncated and point.reason == "the window was cut short" and point.figures["completed"] == 0


async def test_a_data_set_that_cannot_be_read_is_the_points_reason() -> None:
    async with service(*FLAGS) as made:
        await made.both()
        point = await measured(made, asked(workload="trace", dataset="/nowhere/trace.jsonl", canary="off"))
    assert point.reason is not None and point.reason.startswith("bench.dataset = /nowhere/trace.jsonl")
