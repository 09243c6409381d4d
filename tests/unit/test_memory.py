"""What fits on one NPU: published figures, and what an engine printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from core_help import change, config

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.log import read_all
from jobs.engines.ascend import memory
from jobs.engines.ascend.memory import Sizes, predict, predict_config
from jobs.engines.ascend.weights import kv_bytes_per_token, weights
from jobs.engines.base import engine_of
from jobs.engines.checkpoint import architecture
from jobs.engines.checkpoint.architecture import from_hf_config, required
from jobs.engines.checkpoint.parts import stages
from jobs.engines.prediction import GIB, Layout, Prediction
from jobs.engines.vllm.serve import VllmServe

R1 = architecture.load("deepseek_r1_0528_w8a8", Path("/there/is/no/such/path"))
LOGS = Path(__file__).resolve().parents[1] / "fixtures/logs"
K = 1024

TINY = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "max_position_embeddings": 131072,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
}
LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "vocab_size": 128256,
}
QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
}


def gib(tp: int, dp: int, *, mtp: bool = False, mlapo: bool = False) -> float:
    return sum(term.gib for term in weights(R1, Layout(tp, dp, True), mtp=mtp, mlapo=mlapo))


@pytest.mark.parametrize(
    ("tp", "dp", "columns", "total", "with_mtp"),
    [
        (8, 2, [38.14, 0.86, 1.10, 0.48, 0.30, 0.14, 0.40, 0.43], 41.8, 43.4),
        (4, 4, [38.14, 0.86, 2.20, 0.95, 0.59, 0.28, 0.40, 0.86], 44.3, 45.9),
        (16, 1, [38.14, 0.86, 0.55, 0.24, 0.15, 0.07, 0.40, 0.22], 40.6, 42.2),
    ],
)
def test_weights_of_deepseek_r1_line_by_line(
    tp: int, dp: int, columns: list[float], total: float, with_mtp: float
) -> None:
    terms = weights(R1, Layout(tp, dp, True))
    assert [round(term.gib, 2) for term in terms] == columns
    assert round(gib(tp, dp), 1) == total
    assert round(gib(tp, dp, mtp=True), 1) == with_mtp


def test_weights_agree_with_engine_logs() -> None:
    assert gib(4, 4) == pytest.approx(44.1591, rel=0.02)  # vllm-ascend issue 2191
    assert gib(8, 2, mtp=True, mlapo=True) == pytest.approx(44.9320, rel=0.02)  # issue 8568


@pytest.mark.parametrize(("hf", "size"), [(LLAMA_8B, 16_060_522_496), (QWEN3_30B_A3B, 61_064_245_248)])
def test_whole_model_has_the_size_of_its_published_checkpoint(hf: dict[str, object], size: int) -> None:
    terms = weights(from_hf_config(hf), Layout(1, 1), linear_bytes=2)
    assert sum(term.bytes for term in terms) == pytest.approx(size, rel=1e-3)


def test_experts_without_expert_parallelism_are_repeated_in_each_data_parallel_rank() -> None:
    arch = from_hf_config(QWEN3_30B_A3B)
    together = weights(arch, Layout(2, 4, True))[0].bytes
    apart = weights(arch, Layout(2, 4))[0].bytes
    assert apart == 4 * together


def test_a_visible_checkpoint_corrects_the_sum_and_the_line_says_so(tmp_path: Path) -> None:
    made = config("cluster=slurm", f"model.path={tmp_path}")
    unseen = predict_config(config("cluster=slurm"), arch=R1)
    whole = weights(R1, Layout(1, 1), mtp=True)
    size = sum(t.bytes / 2 if t.name.startswith("kv_b") else t.bytes for t in whole)  # a checkpoint has kv_b once
    index = {"metadata": {"total_size": int(size * 1.05)}, "weight_map": {"model.layers.61.eh_proj.weight": "a"}}
    (tmp_path / "quant_model_weights.safetensors.index.json").write_text(json.dumps(index))
    seen = predict_config(made)
    assert seen.weights_bytes == pytest.approx(1.05 * unseen.weights_bytes, rel=1e-6)
    [line] = [term for term in seen.terms if "checkpoint" in term.name]
    assert "total_size in quant_model_weights.safetensors.index.json" in line.source
    assert "+5.00%" in line.source
    assert seen.kv_tokens_per_rank < unseen.kv_tokens_per_rank
    # Made-up weights have no checkpoint.
    assert predict_config(change(made, model__load_format="dummy")).weights_bytes == unseen.weights_bytes


def test_the_lengths_of_the_shards_are_better_than_what_the_index_says(tmp_path: Path) -> None:
    made = config("experiment=demo", f"model.path={tmp_path}", "model.load_format=null")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    size = int(sum(t.bytes for t in weights(from_hf_config(TINY), Layout(1, 1), linear_bytes=2)))
    names = {"model.layers.0.a": "a.safetensors", "model.layers.1.a": "b.safetensors"}
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names.values():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    seen = engine_of(made).memory(made, required)
    assert seen.weights_bytes == pytest.approx(2 * size)
    assert "lengths of 2 weight files" in seen.terms[-1].source


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', '{"metadata": {"total_size": "x"}}', "{}"])
def test_an_index_that_says_nothing_changes_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    made = predict_config(config("cluster=slurm", f"model.path={tmp_path}"))
    assert made.weights_bytes == predict_config(config("cluster=slurm"), arch=R1).weights_bytes


def test_an_unquantized_model_has_no_second_copy_for_mlapo() -> None:
    plain = weights(R1, Layout(8, 2, True), linear_bytes=2)
    assert weights(R1, Layout(8, 2, True), linear_bytes=2, mlapo=True) == plain


def test_kv_bytes_of_a_token() -> None:
    assert {kv_bytes_per_token(R1, tp=tp) for tp in (1, 8, 16)} == {70_272}
    assert kv_bytes_per_token(R1, tp=8, mtp=True) == 71_424
    assert predict(R1, Layout(8, 1, dcp=8), Sizes(release="0.13.0")).kv_bytes_per_token == 8_784
    tiny = from_hf_config(TINY)
    assert [kv_bytes_per_token(tiny, tp=tp) for tp in (1, 2, 4)] == [1024, 512, 512]


TABLE = [
    (8, 2, False, 0.85, 1, 5.7, 86_656, [10, 5, 2, 1, 0], 0.897),
    (8, 2, False, 0.90, 1, 8.7, 133_376, [16, 8, 4, 2, 1], 0.897),
    (8, 2, False, 0.92, 1, 10.0, 152_192, [18, 9, 4, 2, 1], 0.897),
    (8, 2, True, 0.90, 1, 7.1, 107_392, [13, 6, 3, 1, 0], 0.926),
    (8, 2, True, 0.92, 1, 8.4, 125_824, [15, 7, 3, 1, 0], 0.926),
    (4, 4, True, 0.92, 1, 5.9, 88_320, [10, 5, 2, 1, 0], 0.966),
    (16, 1, False, 0.92, 1, 11.2, 170_880, [20, 10, 5, 2, 1], 0.877),
    (8, 2, False, 0.90, 8, 8.7, 1_067_008, [130, 65, 32, 16, 8], 0.775),
]


def utilization_for(made: Prediction, length: int) -> float:
    """Return the utilization at which one request of `length` tokens fits."""
    return (sum(term.bytes for term in made.terms) + made.needed_bytes(length)) / made.device_bytes


@pytest.mark.parametrize(("tp", "dp", "mtp", "u", "dcp", "kv", "tokens", "sequences", "needed"), TABLE)
@pytest.mark.parametrize("release", ["0.9.1", "0.13.0"])
def test_capacity_of_deepseek_r1(
    tp: int,
    dp: int,
    mtp: bool,
    u: float,
    dcp: int,
    kv: float,
    tokens: int,
    sequences: list[int],
    needed: float,
    release: str,
) -> None:
    made = predict(R1, Layout(tp, dp, True, dcp), Sizes(release=release, utilization=u, mtp=mtp, device_gib=61.2))
    assert round(made.kv_bytes / GIB, 1) == kv
    # The table's own rounding of the prediction layer moves TP4 DP4 by one block; every other row is exact.
    assert abs(made.kv_tokens_per_rank - tokens) <= (128 if tp == 4 else 0)
    assert [made.sequences(length * K) for length in (8, 16, 32, 64, 128)] == sequences
    assert utilization_for(made, 128 * K) == pytest.approx(needed, abs=6e-4)
    assert made.largest_max_model_len == min(made.kv_tokens_per_rank, 163_840)


def test_the_utilization_that_is_named_is_just_enough() -> None:
    layout = Layout(8, 2, True)
    needed = utilization_for(predict(R1, layout, Sizes(release="0.13.0")), 128 * K)
    assert predict(R1, layout, Sizes(release="0.13.0", utilization=needed + 1e-6)).sequences(128 * K) == 1
    assert predict(R1, layout, Sizes(release="0.13.0", utilization=needed - 1e-6)).sequences(128 * K) == 0


def test_hccl_buffers_by_release() -> None:
    layout = Layout(8, 2, True)
    megabytes = {
        release: {t.name: t.bytes / 2**20 for t in memory.hccl(layout, moe=True, release=release, buffsize=1024)}
        for release in ("0.9.1", "0.11.0", "0.23.0")
    }
    assert megabytes["0.9.1"] == dict.fromkeys(("HCCL tp", "HCCL dp", "HCCL ep", "HCCL mc2"), 2048)
    assert megabytes["0.11.0"] == {"HCCL tp": 400, "HCCL dp": 100, "HCCL ep": 400, "HCCL mc2": 2048}
    assert megabytes["0.23.0"] == megabytes["0.11.0"]
    assert memory.hccl(Layout(1, 1), moe=False, release="0.9.1") == ()


def test_a_large_buffer_costs_0_9_1_four_times_what_it_costs_later() -> None:
    layout = Layout(8, 2, True)
    lost = {
        release: predict(R1, layout, Sizes(release=release)).kv_bytes
        - predict(R1, layout, Sizes(release=release, buffsize=1024)).kv_bytes
        for release in ("0.9.1", "0.13.0")
    }
    assert lost["0.13.0"] == 2 * 824 * 2**20
    assert lost["0.9.1"] == 4 * lost["0.13.0"]


def test_batched_tokens_cost_only_beyond_what_the_allowance_covers() -> None:
    kv = [predict(R1, Layout(8, 2, True), Sizes(release="0.13.0", tokens=n)).kv_bytes for n in (4096, 8192, 16384)]
    assert kv[0] == kv[1] > kv[2]


def test_weights_that_do_not_fit_start_no_engine() -> None:
    made = predict(R1, Layout(8, 2, False), Sizes(release="0.13.0"))
    assert made.kv_bytes < 0
    assert (made.kv_tokens_per_rank, made.largest_max_model_len, made.sequences(1)) == (0, 0, 0)


def test_the_sum_is_complete() -> None:
    made = predict(R1, Layout(8, 2, True), Sizes(release="0.9.1", buffsize=512))
    assert sum(term.bytes for term in made.terms) + made.kv_bytes == pytest.approx(made.budget_bytes)


def test_a_log_corrects_the_allowance() -> None:
    first = predict(R1, Layout(8, 2, True, 8), Sizes(release="0.13.0", buffsize=512))
    allowance = first.calibrated(900_096, "a log")
    again = predict(R1, Layout(8, 2, True, 8), Sizes(release="0.13.0", buffsize=512, allowance=allowance))
    assert again.kv_tokens_per_rank == pytest.approx(900_096, abs=again.block)
    assert allowance.gib > first.allowance.gib


def of_the_cpu(made: Config) -> Prediction:
    return engine_of(made).memory(made, lambda _: from_hf_config(TINY))


@pytest.mark.parametrize("log", ["healthy-rank0.log", "moe-rank0.log"])
def test_capacity_of_the_cpu_engine_is_the_one_it_prints(log: str) -> None:
    made = of_the_cpu(config("engine=vllm_cpu", "model=tiny_llama", "parallel=dp2_tp1"))
    assert made.kv_bytes_per_token == 1024
    assert made.kv_tokens_per_rank == VllmServe().read_log(read_all(LOGS / log)).kv_tokens == 1_048_576
    assert made.largest_max_model_len == 131_072
    assert made.device_bytes == 0


def test_the_cpu_engine_must_say_how_large_its_cache_is() -> None:
    made = config("engine=vllm_cpu", "model=tiny_llama", "engine.env.VLLM_CPU_KVCACHE_SPACE=null")
    with pytest.raises(ConfigError) as error:
        of_the_cpu(made)
    assert error.value.key == "engine.env.VLLM_CPU_KVCACHE_SPACE"


def test_settings_reach_the_sum() -> None:
    base = config("parallel=dp2_tp8", "hccl.buffsize=200")
    assert predict_config(base).kv_tokens_per_rank == 130_176
    for value in ({"method": "deepseek_mtp"}, '{"method": "mtp", "num_speculative_tokens": 1}'):
        assert predict_config(change(base, engine__args={"speculative-config": value})).kv_tokens_per_rank == 104_192
    assert predict_config(change(base, engine__args={"speculative_config": {"method": "ngram"}})) == predict_config(
        base
    )
    wide = predict_config(change(base, parallel__decode_context_parallel_size=8, engine__release="0.13.0"))
    assert wide.block == 1024
    assert predict_config(change(base, engine__env={"HCCL_BUFFSIZE": 1024})).kv_bytes == pytest.approx(
        predict_config(change(base, hccl__buffsize=1024)).kv_bytes
    )
    fixed = predict_config(change(base, engine__args={"kv-cache-memory-bytes": 70_272 * 1280}))
    assert fixed.kv_tokens_per_rank == 1280


def test_mlapo_is_on_by_default_from_0_18() -> None:
    def has(release: str, env: dict[str, object], additional: dict[str, object]) -> bool:
        made = config("parallel=dp2_tp8")
        made = change(made, engine__release=release, engine__env=env, engine__additional_config=additional)
        return any(term.name == "MLAPO" for term in predict_config(made).terms)

    assert [has(release, {}, {}) for release in ("0.9.1", "0.13.0", "0.18.0", "0.23.0")] == [False, False, True, True]
    assert has("0.13.0", {"VLLM_ASCEND_ENABLE_MLAPO": 1}, {})
    assert not has("0.23.0", {}, {"enable_mlapo": False})


def test_mlapo_copies_what_the_checkpoint_and_the_release_let_it(tmp_path: Path) -> None:
    """The description of a checkpoint names a type for each tensor (vllm-ascend, attention/mla_v1.py)."""

    def sum_at(release: str, kind: str | None) -> Prediction:
        if kind:
            names = {f"model.layers.{layer}.self_attn.q_a_proj.weight": kind for layer in range(2)}
            path = tmp_path / kind
            path.mkdir(exist_ok=True)
            (path / "quant_model_description.json").write_text(json.dumps(names | {"model_quant_type": "W8A8_DYNAMIC"}))
        made = config("parallel=dp4_tp4", f"model.path={tmp_path / (kind or 'nowhere')}", f"engine.release={release}")
        return predict_config(change(made, engine__additional_config={"enable_mlapo": True}), arch=R1)

    def copies(release: str, kind: str | None) -> bool:
        return any(term.name == "MLAPO" for term in sum_at(release, kind).terms)

    for release in ("0.13.0", "0.18.0", "0.23.0", "0.26.0rc1"):
        assert [copies(release, kind) for kind in ("W8A8", "W8A8_DYNAMIC", None)] == [True, False, True], release
    assert [copies("0.30.0rc2", kind) for kind in ("W8A8", "W8A8_DYNAMIC", None)] == [True] * 3
    seen, unseen = sum_at("0.23.0", "W8A8"), sum_at("0.23.0", None)
    [copy] = [term.bytes for term in seen.terms if term.name == "MLAPO"]
    assert unseen.uncertainty_bytes - seen.uncertainty_bytes == pytest.approx(copy), "nobody can tell from here"


def test_graphs_come_beyond_the_utilization_from_0_23_on() -> None:
    def graphs(release: str, **arguments: object) -> tuple[float, float] | None:
        made = config("parallel=dp2_tp8", f"engine.release={release}")
        return predict_config(change(made, engine__args=arguments)).graphs_gib

    assert [graphs(release) for release in ("0.13.0", "0.18.0")] == [None, None], "they count in the profile"
    least, most = graphs("0.23.0") or (0.0, 0.0)
    assert 0 < least < most
    assert graphs("0.23.0", **{"enforce-eager": True}) is None
    assert graphs("0.30.0rc2", **{"compilation-config": {"cudagraph_mode": "NONE"}}) is None


def test_json_form() -> None:
    made = predict_config(config("parallel=dp2_tp8"))
    data = json.loads(json.dumps(made.as_json()))
    assert data["weights_gib"] == pytest.approx(41.84, abs=0.01)
    assert data["kv_bytes_per_token"] == 70_272
    assert data["largest_max_model_len"] == data["kv_tokens_per_rank"] == made.kv_tokens_per_rank
    assert sum(term["gib"] for term in data["terms"]) + data["kv_gib"] == pytest.approx(data["budget_gib"])


def test_lengths_as_vllm_derives_them() -> None:
    assert R1.max_length == 163_840
    assert from_hf_config(LLAMA_8B).max_length == 131_072
    scaled = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}
    assert from_hf_config(QWEN3_30B_A3B | scaled).max_length == 131_072


def test_layers_with_experts() -> None:
    assert (R1.moe_layers, R1.layers) == (58, 61)
    assert from_hf_config(QWEN3_30B_A3B | {"decoder_sparse_step": 2, "mlp_only_layers": [1]}).moe_layers == 23
    assert from_hf_config(TINY).moe_layers == 0


def test_config_json_of_the_checkpoint_comes_before_the_packaged_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert architecture.load("deepseek_r1_0528_w8a8", tmp_path) == from_hf_config(TINY)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        architecture.load("deepseek_r1_0528_w8a8", tmp_path)
    with pytest.raises(ConfigError, match="not visible"):
        architecture.load("unknown", tmp_path / "none")
    with pytest.raises(ConfigError, match="vocab_size"):
        from_hf_config({key: value for key, value in TINY.items() if key != "vocab_size"})


@pytest.mark.parametrize(
    ("layers", "count", "partition", "sizes"),
    [
        (61, 2, None, [31, 30]),
        (61, 4, None, [15, 15, 16, 15]),
        (61, 2, "32,29", [32, 29]),
        (4, 1, None, [4]),
        (78, 2, None, [39, 39]),
    ],
)
def test_layers_of_the_pipeline_stages(layers: int, count: int, partition: str | None, sizes: list[int]) -> None:
    made = stages(layers, count, partition)
    assert [stage.size for stage in made] == sizes
    assert (made[0].first, made[-1].last, made[-1].end) == (True, True, layers)


def test_two_stages_hold_what_one_holds() -> None:
    """But the embedding, which the draft model on the last stage needs once more."""
    whole, half = Layout(8, 1, True), Layout(8, 1, True, pp=2)
    both = [weights(R1, half, mtp=True, mlapo=True, stage=stage) for stage in stages(R1.layers, 2)]
    total = sum(term.bytes for term in weights(R1, whole, mtp=True, mlapo=True))
    embedding = 2 * R1.vocabulary * R1.hidden / 8
    assert sum(term.bytes for terms in both for term in terms) == pytest.approx(total + embedding)
    dense = [
        next(term.bytes for term in terms if term.name.startswith("dense")) if n == 0 else 0.0
        for n, terms in enumerate(both)
    ]
    assert dense[0] > 0 and not any(term.name == "dense layers" for term in both[1])


def test_the_scarcest_stage_decides() -> None:
    layout, sizes = Layout(8, 1, True, pp=2), Sizes(release="0.23.0", utilization=0.92, mtp=True)
    even, moved = predict(R1, layout, sizes), predict(R1, layout, replace(sizes, partition="33,28"))
    assert len(even.stages) == 2 and f"{even.kv_tokens_per_rank:,} tokens" in even.stages[1]
    assert moved.kv_tokens_per_rank > even.kv_tokens_per_rank  # the draft model is on the last stage
    one_node = predict(R1, Layout(8, 2, True), sizes)
    assert moved.kv_tokens_per_rank > 2 * one_node.kv_tokens_per_rank  # half of the layers: half of a token's cache
    for partition in ("31,31", "61", "0,61", "a,b"):
        with pytest.raises(ConfigError, match="VLLM_PP_LAYER_PARTITION"):
            predict(R1, layout, replace(sizes, partition=partition))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"num_hidden_layers": 10**9},
            {"num_attention_heads": 10**30},
            {"num_attention_heads": 10**6, "head_dim": None},
        ),
        *({"hidden_size": 10**12}, {"head_dim": -1}, {"num_key_value_heads": 0.5}, {"n_routed_experts": "x"}),
        *({"num_experts": 8, "moe_intermediate_size": float("inf")}, {"rope_scaling": 5}),
    ],
)
def test_sizes_that_no_model_has_are_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        from_hf_config(TINY | wrong)
