"""What became of flags, keys and variables from release to release: tables for jobs/engines/ascend/migration.py.

Kept by hand. That a name is gone follows from releases/*.yaml; what takes its place does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

V1 = "vllm, V1 engine"
RENAMED = "vllm 0.13.0, engine/arg_utils.py"


@dataclass(frozen=True)
class Move:
    """What takes the place of one name.

    Attributes:
        to: the new place, dotted where it is inside a mapping; None: nothing, it is left out.
        value: the new value; "same": as it was.
        if_not: values (as text) for which the move does not hold: the name then stays, and is refused as unknown.
    """

    to: str | None
    reason: str
    source: str
    value: Any = "same"
    if_not: tuple[str, ...] = ()


def _gone(reason: str, source: str = V1) -> Move:
    return Move(None, reason, source)


FLAGS: dict[str, Move] = {
    "num-scheduler-steps": Move(None, "the V1 engine has no multi-step scheduling: 1 is all it does", V1),
    "multi-step-stream-outputs": _gone("it belonged to multi-step scheduling"),
    "scheduler-delay-factor": _gone("the V1 scheduler has no delay"),
    "max-seq-len-to-capture": _gone("the V1 engine captures by batch size, not by length"),
    "enable-reasoning": _gone("--reasoning-parser alone turns it on", "vllm 0.9.1: argument is deprecated"),
    "device": _gone("the plugin decides the device", "vllm 0.9.1: argument is deprecated"),
    "preemption-mode": _gone("the V1 engine always recomputes"),
    "use-v2-block-manager": _gone("it is the only one", "vllm 0.9.1: argument is deprecated"),
    "disable-async-output-proc": _gone("the V1 engine has no such process"),
    "swap-space": _gone("the V1 engine does not swap", "vllm 0.18.0, engine/arg_utils.py"),
    "disable-log-requests": _gone(
        "requests are not logged unless --enable-log-requests is given", "vllm 0.11.0, engine/arg_utils.py"
    ),
    "task": Move(None, "generation is what a causal model does", RENAMED, if_not=("classify", "embed", "embedding",
                 "score", "reward", "transcription", "draft")),
    "rope-scaling": Move("hf-overrides.rope_scaling", "it is part of the model's own config", RENAMED),
    "rope-theta": Move("hf-overrides.rope_theta", "it is part of the model's own config", RENAMED),
    "cuda-graph-sizes": Move("cudagraph-capture-sizes", "it was renamed", RENAMED),
    "disable-mm-preprocessor-cache": Move("mm-processor-cache-gb", "a size of 0 turns it off", RENAMED, 0, ("False",)),
    "guided-decoding-backend": Move("structured-outputs-config.backend", "it was renamed", RENAMED),
    "guided-decoding-disable-fallback": Move("structured-outputs-config.disable_fallback", "it was renamed", RENAMED),
    "guided-decoding-disable-any-whitespace": Move(
        "structured-outputs-config.disable_any_whitespace", "it was renamed", RENAMED
    ),
    "guided-decoding-disable-additional-properties": Move(
        "structured-outputs-config.disable_additional_properties", "it was renamed", RENAMED
    ),
}  # fmt: skip
"""Flags that went, by name; they move when the release does not have them any more."""

_EPLB = "vllm-ascend v0.18.0, ascend_config.py, EplbConfig"
_TP = "vllm-ascend v0.13.0, ascend_config.py, FinegrainedTPConfig"

KEYS: dict[str, Move] = {
    "lmhead_tp_size": Move("lmhead_tensor_parallel_size", "it was renamed", "vllm-ascend v0.11.0, ascend_config.py"),
    "lmhead_tensor_parallel_size": Move("finegrained_tp_config.lmhead_tensor_parallel_size", "it has a section", _TP),
    "oproj_tensor_parallel_size": Move("finegrained_tp_config.oproj_tensor_parallel_size", "it has a section", _TP),
    "enable_weight_nz_layout": _gone(
        "quantized weights are in NZ format by default (VLLM_ASCEND_ENABLE_NZ=1)", "vllm-ascend v0.11.0, envs.py"
    ),
    "enable_prefill_optimizations": _gone("they are always on", "vllm-ascend v0.11.0, ascend_config.py"),
    "chunked_prefill_for_mla": _gone("it is always on", "vllm-ascend v0.13.0, ascend_config.py"),
    "dynamic_eplb": Move("eplb_config.dynamic_eplb", "it has a section", _EPLB),
    "expert_map_path": Move("eplb_config.expert_map_path", "it has a section", _EPLB),
    "expert_map_record_path": Move("eplb_config.expert_map_record_path", "it has a section", _EPLB),
    "eplb_policy_type": Move("eplb_config.eplb_policy_type", "it has a section", _EPLB),
    "init_redundancy_expert": Move("eplb_config.num_redundant_experts", "it was renamed", _EPLB),
    "num_iterations_eplb_update": Move("eplb_config.expert_heat_collection_interval", "it was renamed", _EPLB),
    "num_wait_worker_iterations": Move("eplb_config.algorithm_execution_interval", "it was renamed", _EPLB),
    "gate_eplb": _gone("the balance always runs periodically", _EPLB),
    "enable_npugraph_ex": Move(
        "ascend_compilation_config.enable_npugraph_ex", "it has a section", "vllm-ascend v0.18.0, ascend_config.py"
    ),
}
"""Keys of additional_config that went, by name; the two old sections are migration.py's own."""

VARIABLES: dict[str, Move] = {
    "VLLM_USE_V1": _gone("the V1 engine is the only one", "vllm 0.13.0, envs.py"),
    "VLLM_ASCEND_ENABLE_FLASHCOMM": Move("VLLM_ASCEND_ENABLE_FLASHCOMM1", "renamed", "vllm-ascend v0.11.0, envs.py"),
    "VLLM_LLMDD_RPC_PORT": Move("VLLM_ASCEND_LLMDD_RPC_PORT", "renamed", "vllm-ascend v0.11.0, envs.py"),
    "VLLM_ASCEND_ENABLE_TOPK_OPTIMIZE": Move(
        "VLLM_ASCEND_ENABLE_TOPK_TOPP_OPTIMIZATION", "renamed", "vllm-ascend v0.11.0, envs.py"
    ),
}
"""Variables that went and of which more is to be said than that nobody reads them."""

BECAME_NUMBERS = ("weight_nz_mode", "enable_fused_mc2")
"""Keys that took a number over from their variable; the others are switches (vllm-ascend v0.23.0, envs.py)."""
