"""Memory against every public figure: weights within 2 %, KV tokens within 5 %, or what is known to start does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from core_help import config

from jobs.engines.ascend.memory import Sizes, predict, predict_config
from jobs.engines.ascend.weights import weights
from jobs.engines.checkpoint import architecture
from jobs.engines.checkpoint.parts import Indexer
from jobs.engines.prediction import GIB, Layout

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/releases.md"
EVERY_LAYER = Indexer(32, 128, tuple(range(78)))
"""GLM-5 has an indexer in each of its layers, GLM-5.2 in some."""


def held(name: str, tp: int, dp: int, **how: bool) -> float:
    """Return the weights of one NPU, GiB."""
    arch = architecture.packaged(name)
    assert arch
    arch = replace(arch, indexer=EVERY_LAYER) if name.startswith("glm") else arch
    return sum(term.bytes for term in weights(arch, Layout(tp, dp, True), **how)) / GIB


WEIGHTS = {
    "#2191": (held("deepseek_v3_1_w8a8", 4, 4), 44.16),
    "#5629": (held("deepseek_v3_1_w8a8", 4, 4, mtp=True), 45.66),  # without MLAPO's copy: see weights.py
    "#8568": (held("deepseek_v3_1_w8a8", 8, 2, mtp=True, mlapo=True), 44.93),
    "#12839": (held("glm_5_2_w4a8", 16, 1, mtp=True, mlapo=True), 49.0),
    "#9422": (held("glm_5_2_w4a8", 16, 2), 25.0),
}


@pytest.mark.parametrize("source", WEIGHTS)
def test_weights_are_within_2_percent_and_stand_in_the_table(source: str) -> None:
    predicted, observed = WEIGHTS[source]
    assert predicted == pytest.approx(observed, rel=0.02)
    assert _row(source) == (f"{predicted:.2f}", f"{observed:g}", f"{predicted / observed - 1:+.1%}")


def test_the_kv_cache_of_the_faq_is_within_5_percent() -> None:
    """Entry 24 of the FAQ of 0.18.0: 66,340 tokens, as the two-node recipe has them. Its hardware is not stated."""
    arch = architecture.packaged("deepseek_r1_0528_w8a8")
    assert arch
    made = predict(arch, Layout(4, 4, True), Sizes(release="0.18.0", utilization=0.92, mtp=True, mlapo=True))
    assert made.kv_tokens_per_rank == pytest.approx(66_340, rel=0.05)
    error = made.kv_tokens_per_rank / 66_340 - 1
    assert _row("FAQ of 0.18.0") == (f"{made.kv_tokens_per_rank:,}", "66,340", f"{error:+.1%}")


def test_activations_and_buffers_of_a_log_are_within_the_uncertainty() -> None:
    """An issue of Mooncake, 2026-07: DeepSeek-V4-Flash on two A2 nodes, DP2 TP8, 1.52 + 3.15 GiB."""
    allowance = predict_config(config("parallel=dp2_tp8")).allowance
    assert abs(allowance.gib - 4.67) < allowance.uncertainty_gib
    assert _row("Mooncake") == (f"{allowance.gib:.2f}", "4.67", f"{allowance.gib / 4.67 - 1:+.1%}")


STARTS = {
    "CI, R1-0528": ("experiment=official_0_23", "parallel=dp2_tp8", "parallel.max_model_len=36864",
                    "parallel.gpu_memory_utilization=0.9", "parallel.max_num_batched_tokens=4096"),
    "CI, R1 EPLB": ("experiment=official_0_23", "parallel=dp2_tp8", "parallel.max_model_len=36864",
                    "parallel.gpu_memory_utilization=0.9", "parallel.max_num_batched_tokens=16384"),
    "#10783": ("experiment=official_glm_5_2", "parallel.max_num_seqs=4", "parallel.max_model_len=131072"),
    "pull 12920": ("experiment=official_glm_5_2", "parallel.data_parallel_size=1", "parallel.max_num_seqs=4",
                   "parallel.gpu_memory_utilization=0.96", "parallel.max_model_len=16384"),
}  # fmt: skip


@pytest.mark.parametrize("source", STARTS)
def test_what_starts_according_to_others_fits(source: str) -> None:
    made = config(*STARTS[source])
    assert predict_config(made).largest_max_model_len >= made.parallel.max_model_len
    assert _row(source)[:2] == ("fits", "starts")


RECIPES = (
    "official_0_23",
    "official_deepseek_v3_2",
    "official_glm_5_2",
    "official_glm_5_3_flash",
    "official_kimi_k2_5",
)


def test_every_prediction_says_what_stands_behind_it() -> None:
    said = {name: " ".join(predict_config(config(f"experiment={name}")).anchors) for name in RECIPES}
    assert all("#2191" in one and "FAQ" in one for one in said.values())
    assert {name for name, one in said.items() if "#12839" in one} == {
        "official_deepseek_v3_2", "official_glm_5_2", "official_glm_5_3_flash"}  # fmt: skip
    assert {name for name, one in said.items() if "4 bits" in one} == {"official_glm_5_2", "official_kimi_k2_5"}
    assert "linear attention: no log" in said["official_glm_5_3_flash"]


def _row(source: str) -> tuple[str, ...]:
    """Return predicted, observed and error as the table of docs/releases.md has them."""
    [line] = [one for one in DOCUMENT.read_text("utf-8").splitlines() if re.match(rf"\| {re.escape(source)}\b", one)]
    return tuple(cell.strip() for cell in line.split("|")[3:6])
