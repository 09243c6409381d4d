"""The sizes of the packaged models against what is published of them, and what others saw on NPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from core_help import config

from jobs.engines.ascend.memory import Sizes, predict, predict_config
from jobs.engines.ascend.weights import kv_bytes_per_token, state_bytes, weights
from jobs.engines.checkpoint import architecture
from jobs.engines.checkpoint.parts import Indexer, stages
from jobs.engines.prediction import GIB, Layout

R1 = architecture.load("deepseek_r1_0528_w8a8", Path("/there/is/no/such/path"))


def loaded(name: str, layout: Layout, *, bits: int = 8, mtp: bool = False, mlapo: bool = False, **sizes: Any) -> float:
    """Return the weights of one NPU of a packaged model, some sizes of it changed, GiB."""
    arch = architecture.packaged(name)
    assert arch is not None
    terms = weights(replace(arch, **sizes), layout, expert_bits=bits, mtp=mtp, mlapo=mlapo)
    return sum(term.bytes for term in terms) / GIB


PUBLISHED = {"deepseek_v3_1_w8a8": 671, "deepseek_v3_1_w4a8": 671, "deepseek_v3_2_w8a8": 672, "glm_5_2_w4a8": 744,
             "kimi_k2_5_w4a8": 1027, "glm_5_3_flash_w8a8": 313}  # fmt: skip
"""Parameters without draft layer and vision tower, 1e9 (GLM-5.3-Flash: 320 with its draft layer)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_of_a_model_add_up_to_its_parameters(name: str) -> None:
    arch, made = architecture.packaged(name), config(f"model={name}", "cluster=slurm")
    assert arch is not None
    sixteen_bits = sum(term.bytes for term in weights(arch, Layout(1, 1), linear_bytes=2))
    assert sixteen_bits / 2e9 == pytest.approx(PUBLISHED[name], rel=0.005)
    shape = made.model.shape
    assert shape.kv_bytes_per_token == kv_bytes_per_token(arch, tp=8)
    assert shape.max_position_embeddings == arch.max_length
    bits = shape.expert_bits or 8
    whole = sum(term.bytes for term in weights(arch, Layout(1, 1), expert_bits=bits, mtp=arch.mtp_layers > 0)) / GIB
    assert shape.weight_gib == pytest.approx(whole, rel=0.005)
    assert shape.token_ids[1] < arch.vocabulary


def test_indexers_and_linear_layers() -> None:
    v32, glm, flash = (
        architecture.packaged(name) for name in ("deepseek_v3_2_w8a8", "glm_5_2_w4a8", "glm_5_3_flash_w8a8")
    )
    assert v32 and glm and flash and v32.indexer and glm.indexer and flash.indexer and flash.linear
    assert kv_bytes_per_token(v32, tp=8) - kv_bytes_per_token(R1, tp=8) == 61 * 128 * 2
    assert kv_bytes_per_token(v32, tp=8, index_bytes=1, packed=True) == 61 * (512 + 2 * 64 + 4 * 4 + 128 + 2)
    assert glm.indexer.layers[:5] == (0, 1, 2, 6, 10) and len(glm.indexer.layers) == 21
    assert flash.indexer.layers == tuple(range(3, 44, 4)) and len(flash.linear.layers) == 34
    assert kv_bytes_per_token(flash, tp=8) == 11 * (512 * 2 + 128 * 2 / 4)
    assert state_bytes(flash, tp=8) == 34 * (3 * 64 * 128 * 3 * 2 + 64 * 128 * 128 * 4) / 8
    second = flash.part(stages(45, 2)[1])
    assert second.linear and second.indexer and (len(second.linear.layers), len(second.indexer.layers)) == (16, 6)


EVERY_LAYER = Indexer(32, 128, tuple(range(78)))


@pytest.mark.parametrize(
    ("predicted", "observed"),
    [
        (loaded("deepseek_v3_1_w8a8", Layout(4, 4, True)), 44.16),  # vllm-ascend issue 2191, V3
        (loaded("deepseek_v3_1_w8a8", Layout(8, 2, True), mtp=True, mlapo=True), 44.93),  # issue 8568
        # GLM-5 (every layer has an indexer), W8A8: issue 12839, TP16, "49 GB"; issue 9422, DP2 TP16, "25 GB"
        (
            loaded("glm_5_2_w4a8", Layout(16, 1, True), mtp=True, mlapo=True, indexer=EVERY_LAYER),
            49,
        ),
        (loaded("glm_5_2_w4a8", Layout(16, 2, True), indexer=EVERY_LAYER), 25),
    ],
)
def test_weights_against_published_logs(predicted: float, observed: float) -> None:
    assert predicted == pytest.approx(observed, rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        # vllm-ascend issue 10783: two A2 nodes, W4A8, DP2 TP8, five draft tokens
        (("parallel.max_num_seqs=4", "parallel.max_model_len=131072"), 131072),
        # vllm-ascend pull 12920: one A2 node, TP8, three draft tokens
        (("parallel.data_parallel_size=1", "parallel.max_num_seqs=4", "parallel.gpu_memory_utilization=0.96"), 16384),
    ],
)
def test_what_starts_according_to_others_fits(overrides: tuple[str, ...], length: int) -> None:
    made = predict_config(config("experiment=official_glm_5_2", *overrides))
    assert made.largest_max_model_len >= length


def test_caches_by_layer_hold_several_times_the_context() -> None:
    glm = architecture.packaged("glm_5_2_w4a8")
    assert glm
    sizes = Sizes(release="0.30.0", utilization=0.95, expert_bits=4, mtp=True)
    plain, spread = (predict(glm, Layout(8, 1, True), replace(sizes, by_layer=by)) for by in (False, True))
    # vllm-ascend 0.30.0rc2, KVPP: 6.25 times on eight ranks of another NPU
    assert 5.5 < spread.kv_tokens_per_rank / plain.kv_tokens_per_rank < 7.5


def test_caches_of_sparse_attention_in_8_bits() -> None:
    plain, small = (predict_config(config("experiment=official_glm_5_2", *lever)) for lever in ((), ("lever=kv_int8",)))
    assert 1.5 < small.kv_tokens_per_rank / plain.kv_tokens_per_rank < 2
    asked = config("experiment=official_0_23", "lever=kv_int8")  # it has no sparse attention: the keys say nothing
    assert (
        predict_config(asked).kv_tokens_per_rank
        == predict_config(config("experiment=official_0_23")).kv_tokens_per_rank
    )
