"""What vLLM's own CPU build makes of the new models' architectures, their published sizes made tiny."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs.engines.ascend.real.ask import HERE
from jobs.engines.checkpoint import architecture

MODELS = Path(architecture.__file__).with_name("models")
TINY = {
    "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 64, "q_lora_rank": 64, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2,
    "first_k_dense_replace": 1, "vocab_size": 512, "num_nextn_predict_layers": 0, "max_position_embeddings": 512,
    "index_n_heads": 4, "index_topk": 64, "layer_types": ["linear_attention", "full_attention"],
    "mlp_layer_types": ["dense", "sparse"],
}  # fmt: skip
"""What an architecture is known by stays: MLA's own ranks and head sizes, the indexer, the kinds of layers."""

MORE = {
    "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "norm_topk_prob": True, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip
GLM_5_3 = {
    "mhc": False, "mla_use_nope": True, "indexer_rope_interleave": False, "swiglu_limit": 7.0,
    "index_kpool_always_select_tail": True, "linear_conv_kernel_dim": 4, "linear_head_dim": 32, "linear_num_heads": 4,
}  # fmt: skip
"""What no size depends on, so that the packaged configurations leave it out."""

SPARSE = {"error": "NotImplementedError: Sparse Attention is not supported on CPU."}
SAID = {
    "deepseek_v3_1_w8a8": {"tokens": 4},
    "kimi_k2_5_w4a8": {"tokens": 4},
    "deepseek_v3_2_w8a8": SPARSE,
    "glm_5_2_w4a8": SPARSE,
    "glm_5_3_flash_w8a8": SPARSE,
}
"""docs/releases.md says the same. Of Kimi-K2.5 it is the text part."""


def tiny(name: str) -> dict[str, Any]:
    """Return a model's configuration with all that only makes it large made small."""
    whole = json.loads((MODELS / f"{name}.json").read_text())
    text = whole.get("text_config", whole)
    small = {**text, **{key: value for key, value in TINY.items() if key in text}, **MORE}
    if name == "glm_5_3_flash_w8a8":
        return {**whole, "text_config": small | GLM_5_3}
    # The text part of Kimi-K2.5 is DeepSeek-V3 with other sizes, which is how its own configuration calls it.
    return small | (
        {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"} if text is not whole else {}
    )


@pytest.mark.vllm
def test_tiny_shapes_start_and_generate_or_are_refused_as_the_documentation_says(
    real_vllm: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in SAID]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(tiny(folder.name)))
    argv = [real_vllm.with_name("python"), Path(__file__).with_name("tiny_models.py"), HERE / "stubs", *folders]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=290, cwd=tmp_path)
    found = dict(zip(SAID, map(json.loads, done.stdout.splitlines()), strict=True))
    assert found == SAID, done.stderr[-3000:]
