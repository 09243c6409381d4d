"""Feasibility: the plan refuses what cannot start, agrees with the rehearsal engine, and says what it does not know."""

from __future__ import annotations

import json
import shlex
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from core_help import change, composer, config
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator_help import settled

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines import ascend
from jobs.engines.base import engine_of
from jobs.engines.checkpoint import architecture
from jobs.engines.prediction import Allowance
from jobs.engines.simulator.engine import EngineFailed, kv_blocks
from jobs.engines.simulator.settings import RehearsalSpec, hardware, parse
from jobs.forecast import memory as fit
from jobs.forecast.memory import DOES_NOT_FIT, Fit, judge
from jobs.sweep import compose, plan, road
from jobs.sweep.record import as_json

QUICK = settings(max_examples=30, deadline=None)


def load(config: Config) -> architecture.Architecture:
    return architecture.load(config.model.name, Path("/there/is/no/such/path"))


def judged(*overrides: str) -> Fit:
    return judge(config(*overrides), load)


def planned(*overrides: str) -> plan.Plan:
    return road.plan(compose.expand([*overrides, "results.root=/there/are/no/runs"]), composer)


# --- what the project itself asks for must never be refused


@pytest.mark.parametrize(
    "overrides",
    [
        ["parallel.max_model_len=8192"],
        ["parallel.max_model_len=32768"],
        ["experiment=article"],
        ["parallel=dp4_tp4"],
        # The official two-node recipe of 0.9.1 starts: TP4 DP4, HCCL_BUFFSIZE=1024, utilization 0.9, 32768 tokens.
        ["parallel=dp4_tp4", "parallel.max_model_len=32768", "parallel.max_num_batched_tokens=4096"],
        ["experiment=expert_parallel", "parallel=dp4_tp4"],
    ],
)
def test_what_is_known_to_start_is_not_refused(overrides: list[str]) -> None:
    assert judged(*overrides).refusal is None


def test_what_lacks_less_than_the_sum_is_uncertain_by_is_a_warning() -> None:
    doubtful = judged("parallel.max_model_len=65536")
    assert doubtful.refusal is None
    assert str(doubtful.doubt).startswith("may not start: one request of 65,536 tokens needs 4.29 GiB of KV cache")
    assert "2.08 GiB are left (0.9 x 60.96 - 41.84 weights - 10.94 HCCL buffers and activations)" in doubtful.doubt
    assert doubtful.doubt.endswith("uncertain by 4.22 GiB")
    [warning] = planned("parallel.max_model_len=65536").warnings
    assert warning == f"max_model_len 65536 {doubtful.doubt}"
    assert planned("parallel.max_model_len=8192").warnings == ()


@pytest.mark.parametrize(("release", "share"), [("0.18.0", 0.9), ("0.23.0", 0.92)])
@pytest.mark.parametrize("engine", ["vllm_ascend", "simulator"])
def test_what_the_engine_takes_of_an_npu_is_the_releases_own_default(engine: str, release: str, share: float) -> None:
    plain, named = (
        config(f"engine={engine}", f"engine.release={release}", f"parallel.gpu_memory_utilization={word}")
        for word in ("null", share)
    )
    assert plain.parallel.gpu_memory_utilization is None
    assert judge(plain, load) == judge(named, load)
    assert judge(plain, load).utilization == share
    assert parse(["serve", "m"], ascend.release(release)).args.gpu_memory_utilization == share


def test_a_measured_allowance_decides_what_was_doubtful() -> None:
    made = config("parallel.max_model_len=65536")
    small = judge(made, load, allowance=Allowance(4.5 - 3.2, "a log", measured=True))
    large = judge(made, load, allowance=Allowance(4.5, "a log", measured=True))
    assert (small.refusal, small.doubt) == (None, None)
    assert large.refusal is not None
    assert "HCCL buffers and activations, a log)" in large.refusal, "a bad measurement must be found"


def test_weights_that_do_not_fit_are_refused() -> None:
    refusal = judged("parallel.enable_expert_parallel=false").refusal
    assert refusal is not None
    assert refusal.endswith("by this sum no length fits")


CPU = ("model=tiny_llama", "engine=vllm_cpu", "parallel=dp2_tp1")


def test_nothing_known_is_no_refusal(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": "large"}))
    for overrides, word in (
        (["model.name=other", "model.path=/there/is/none"], "its config.json is not visible here"),
        (["model.name=other", f"model.path={tmp_path}"], "a whole number of at least 1 is needed"),
        (["engine.env.VLLM_PP_LAYER_PARTITION=60"], "add up to 61 are needed"),
        ([*CPU, "engine.env.VLLM_CPU_KVCACHE_SPACE=null"], "has no size"),
    ):
        made = planned("parallel.max_model_len=131072", *overrides)
        [service] = made.services
        assert service.forecast is not None
        found = service.forecast.fit
        assert (found.prediction, found.refusal, found.doubt) == (None, None, None)
        assert word in found.unknown
        assert as_json(made)["services"][0]["memory"] == {"unknown": found.unknown}


# --- the rehearsal engine and the plan are of one mind

REHEARSED = st.fixed_dictionaries(
    {
        "max_model_len": st.integers(1, 163_840),
        "gpu_memory_utilization": st.sampled_from([0.5, 0.7, 0.85, 0.9, 1.0]),
        "block_size": st.sampled_from([16, 128]),
        "enable_expert_parallel": st.booleans(),
    }
)


@QUICK
@given(REHEARSED, st.sampled_from([41.0, 61.2, 128.0]), st.floats(0, 20), st.sampled_from([(2, 8), (4, 4), (2, 1)]))
def test_the_plan_refuses_what_the_rehearsal_engine_refuses_and_nothing_else(
    parallel: dict[str, object], memory: float, allowance: float, layout: tuple[int, int]
) -> None:
    made = config("engine=simulator")
    made = change(made, **{f"parallel__{key}": value for key, value in parallel.items()})
    made = change(made, parallel__data_parallel_size=layout[0], parallel__tensor_parallel_size=layout[1])
    npu = replace(hardware(), npu_memory_gib=memory, allowance_gib=allowance)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(asdict(npu), file)  # as JSON, 1e-05 would be a text
        file.flush()
        made = change(made, engine__rehearsal__hardware=file.name)
        verdict, predicted = judge(made, load), engine_of(made).memory(made, load)
    spec = RehearsalSpec(shape=made.model.shape, hardware=npu)
    flags = (
        f"-tp {layout[1]} -dp {layout[0]} -dpl 1 --max-model-len {parallel['max_model_len']}"
        f" --gpu-memory-utilization {parallel['gpu_memory_utilization']} --block-size {parallel['block_size']}"
        f" --max-num-batched-tokens 8192 {'--enable-expert-parallel' if parallel['enable_expert_parallel'] else ''}"
    )
    try:
        blocks = kv_blocks(replace(settled(*shlex.split(flags)), spec=spec))
    except EngineFailed:
        assert verdict.refusal is not None
    else:
        assert verdict.refusal is None
        assert predicted.kv_tokens_per_rank == blocks * made.parallel.block_size
    assert verdict.doubt is None, "the plan adds up what the engine adds up"


# --- launch.infeasible

GRID = ["engine=simulator", "parallel.max_model_len=8192,131072", "parallel.gpu_memory_utilization=0.85"]


def test_fail_refuses_the_sweep_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError) as caught:
        planned(*GRID)
    key, value, reason, remedy = caught.value.args
    assert (key, value) == ("parallel.max_model_len", 131072)
    assert "needs 8.58 GiB of KV cache" in reason
    assert "5.47 GiB are left (0.85 x 60.96 - 41.85 weights - 4.50 HCCL buffers and activations)" in reason
    assert "launch.infeasible=drop" in remedy


def test_drop_keeps_the_row_and_runs_the_rest() -> None:
    made = planned(*GRID, "bench.concurrency=1,4", "launch.infeasible=drop")
    assert (len(made.points), len(made.services)) == (4, 1)
    assert made.services[0].config.parallel.max_model_len == 8192
    refused = [point.point for point in made.points if point.config.parallel.max_model_len == 131072]
    assert list(made.refused) == refused
    assert all(reason.startswith(DOES_NOT_FIT + "one request of 131,072 tokens") for reason in made.refused.values())
    assert [item["point"] for item in as_json(made)["refused"]] == refused


def test_keep_runs_it_with_a_warning() -> None:
    made = planned(*GRID, "launch.infeasible=keep")
    assert [service.config.parallel.max_model_len for service in made.services] == [131072, 8192]
    assert made.refused == {}
    assert [text for text in made.warnings if "max_model_len=131072: max_model_len 131072 will not start: " in text]


# --- queueing


@pytest.mark.parametrize(
    ("overrides", "capacity", "cause"),
    [
        (["bench.concurrency=128", "parallel.max_num_seqs=64"], None, ""),
        (["bench.concurrency=129", "parallel.max_num_seqs=64"], 128, "max_num_seqs x data-parallel ranks = 64 x 2"),
        # 148,000 tokens a rank hold four requests of 32768 tokens.
        (["bench.concurrency=8", "bench.input_tokens=32640"], None, ""),
        (["bench.concurrency=9", "bench.input_tokens=32640"], 8, "tokens a rank, 32,768 a request"),
        (["bench.concurrency=null", "bench.request_rate=100"], None, ""),
    ],
)
def test_concurrency_beyond_the_service_is_named(overrides: list[str], capacity: int | None, cause: str) -> None:
    made = config(
        "parallel.max_model_len=32768", "hccl.buffsize=200", "parallel.gpu_memory_utilization=0.92", *overrides
    )
    found = fit.queueing(made, judge(made, load))
    assert (found.capacity if found else None) == capacity
    assert cause in (found.cause if found else "")


def test_queueing_is_one_warning_for_all_loads() -> None:
    made = planned("bench.concurrency=1,64,128,256", "parallel.max_num_seqs=16")
    [warning] = made.warnings
    assert warning.startswith("only 32 requests run at once (max_num_seqs x data-parallel ranks = 16 x 2): the rest")
    assert warning.endswith("(bench.concurrency=64,128,256)")


def test_the_memory_verb_looks_at_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.__main__ import main

    root = "results.root=/there/are/no/runs"
    assert main(["memory", "--json", "parallel.max_model_len=131072", root, "launch.budget_node_hours=0.001"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"weights_gib", "kv_bytes_per_token", "kv_tokens_per_rank", "largest_max_model_len", "terms"} <= set(found)
    assert found["calibration"] is None
    assert found["lacks_gib"] == pytest.approx(6.49, abs=0.01)
    assert main(["memory", "parallel.max_model_len=131072,8192", root]) == 0
    text = capsys.readouterr().out
    assert "max_model_len=131,072: one request of 131,072 tokens needs 8.58 GiB" in text
    assert "max_model_len=8,192: fits" in text
    assert "full-length sequences at once: 0 in each data-parallel rank" in text  # of 131,072 tokens
    assert found["full_length_sequences"] == 0
    assert main(["memory", "--json", "parallel.max_model_len=8192", root]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["full_length_sequences"] == found["kv_tokens_per_rank"] // 8192 > 0
    assert main(["memory", "parallel=pp2_tp8", "engine.release=0.23.0", root]) == 0
    text = capsys.readouterr().out
    assert "pipeline stage 1: layers 0 to 30, weights" in text and "pipeline stage 2: layers 31 to 60, weights" in text
    assert main(["memory", "engine.env.VLLM_PP_LAYER_PARTITION=60", root]) == 0
    assert "no prediction: engine.env.VLLM_PP_LAYER_PARTITION=60" in capsys.readouterr().out


def test_the_fixed_cache_of_the_cpu_engine_is_certain() -> None:
    made = config("model=tiny_llama", "engine=vllm_cpu", "parallel=dp2_tp1", "parallel.max_model_len=131072")
    small = change(made, engine__env={**made.engine.env, "VLLM_CPU_KVCACHE_SPACE": 1})
    assert judge(small, load).refusal is None
    large = replace(load(made), layers=200)
    refusal = judge(small, lambda _: large).refusal
    assert refusal is not None
    assert "1.00 GiB are set aside" in refusal
