"""Features of the plugin, and roles of a node, that exclude each other or need a layout (R30, R33 to R38, R41)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobs.core.fields import dotted
from jobs.engines.ascend import is_true
from jobs.engines.ascend.rules.base import DCP, PCP, PP, Problem, Question, covers, rule
from jobs.engines.ascend.rules.execution import FINE, recording

KEYS, ENV = "engine.additional_config", "engine.env"
TRANSFER = "engine.args.kv-transfer-config"


def setting(q: Question, variable: str, *keys: str) -> tuple[str, Any]:
    """Return where a feature is set and to what: its key (dotted in a section), else its variable, if it is read."""
    for key in keys:
        if (value := dotted(q.additional, key)) is not None:
            return f"{KEYS}.{key}", value
    return f"{ENV}.{variable}", q.env.get(variable) if variable in q.described.variables else None


def balanced(q: Question) -> tuple[str, bool]:
    """Return where balance scheduling is set, and whether it is on."""
    name = "enable_balance_scheduling"
    key, value = setting(q, "VLLM_ASCEND_BALANCE_SCHEDULING", f"scheduler_config.{name}", name)
    return key, is_true(value)


@rule("R33", "error", "0.13..0.26", "vllm-ascend v0.18.0, platform.py: Flash Comm v1")
def flash_communication(q: Question) -> Iterator[Problem]:
    """FlashComm1 cuts a step over the tensor parallel ranks, and the experts of a model over all NPUs."""
    key, value = setting(q, "VLLM_ASCEND_ENABLE_FLASHCOMM1", "enable_flashcomm1")
    if not is_true(value):
        return
    if q.config.parallel.tensor_parallel_size == 1 and q.described.version >= (0, 18):
        yield Problem(key, value, "it needs parallel.tensor_parallel_size above 1", "Remove it.")
    if q.arch and q.arch.experts and not q.config.parallel.enable_expert_parallel:
        reason = "it needs expert parallel for a model with experts"
        yield Problem(key, value, reason, "Set parallel.enable_expert_parallel=true, or remove it.")


@rule("R34", "error", "0.13..0.23", "vllm-ascend v0.13.0, utils.py, get_flashcomm2_config_and_validate")
def second_flash_communication(q: Question) -> Iterator[Problem]:
    """FlashComm2 cuts the tensor parallel group into smaller ones."""
    key, value = setting(q, "VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE", "enable_flashcomm2_parallel_size")
    tp = q.config.parallel.tensor_parallel_size
    if not str(value).isdecimal() or int(value) == 0:
        return
    if tp <= int(value) or tp % int(value):
        reason = f"it must be a divisor of parallel.tensor_parallel_size = {tp}, and smaller"
        yield Problem(key, value, reason, "Give such a number, or 0.")
    if q.inside("kv-transfer-config").get("kv_role") == "kv_consumer":
        yield Problem(key, value, "it is not for decode nodes (kv_role=kv_consumer)", "Remove it.")


@rule("R35", "error", ">=0.18", "vllm-ascend v0.18.0, platform.py: balance scheduling only supports PD-mixed mode")
def balance_and_roles(q: Question) -> Iterator[Problem]:
    """Balance scheduling is for nodes that both prefill and decode."""
    key, on = balanced(q)
    role = q.inside("kv-transfer-config").get("kv_role")
    if on and role in ("kv_producer", "kv_consumer"):
        yield Problem(key, True, f"it does not work on a node of one role (kv_role={role})", "Remove it.")


@rule("R36", "error", ">=0.23", "vllm-ascend v0.23.0, ascend_config.py: cannot be enabled at the same time")
def balance_and_chunks(q: Question) -> Iterator[Problem]:
    """Chunks that follow a profile, and steps that are balanced, are two schedulers."""
    name = "profiling_chunk_config.enabled"
    where = next((one for one in (f"scheduler_config.{name}", name) if is_true(dotted(q.additional, one))), None)
    key, on = balanced(q)
    if where and on:
        reason = f"{key} is on too: the two exclude each other"
        yield Problem(f"{KEYS}.{where}", True, reason, "Remove one of them.")
    runner = is_true(q.env.get("VLLM_USE_V2_MODEL_RUNNER"))
    if where and q.described.strict and not runner and q.settings.get("async-scheduling") is not False:
        reason = "async scheduling is on, which this release has by itself: chunks need the second model runner then"
        remedy = "Set +engine.args.async-scheduling=false, or +engine.env.VLLM_USE_V2_MODEL_RUNNER=1."
        yield Problem(f"{KEYS}.{where}", True, reason, remedy)


@rule("R37", "error", ">=0.9", "vllm, config/kv_transfer.py: Please specify kv_role")
def roles(q: Question) -> Iterator[Problem]:
    """A connector has a role; with context parallelism it takes whole blocks."""
    transfer, name = q.inside("kv-transfer-config"), "cp-kv-cache-interleave-size"
    if transfer.get("kv_connector") and transfer.get("kv_role") is None:
        reason = "kv_connector is given: it needs a role"
        yield Problem(f"{TRANSFER}.kv_role", None, reason, "Give kv_producer, kv_consumer or kv_both.")
    blocks, cut = q.config.parallel.block_size or 128, q.size(name)
    if transfer and q.size(PCP) * q.size(DCP) > 1 and cut != blocks and name in q.described.flags:
        reason = f"with context parallelism a connector takes whole blocks of {blocks} tokens"
        yield Problem(f"engine.args.{name}", cut, reason, f"Set +engine.args.{name}={blocks}.")


@rule("R38", "error", ">=0.13", "vllm-ascend v0.13.0, ascend_config.py, XliteGraphConfig")
def xlite(q: Question) -> Iterator[Problem]:
    """The xlite graph holds the whole model of one NPU."""
    if is_true(q.section("xlite_graph_config").get("enabled")) and q.size(PP) > 1:
        reason = "it does not work with pipeline stages"
        yield Problem(f"{KEYS}.xlite_graph_config.enabled", True, reason, "Remove it.")


@rule("R41", "error", ">=0.9", "vllm, config classes: LoRAConfig, ParallelConfig, ProfilerConfig, VllmConfig")
def flags_of_vllm(q: Question) -> Iterator[Problem]:
    """Flags of vLLM itself that the engine refuses beside others."""
    cached, most = q.settings.get("max-cpu-loras"), q.settings.get("max-loras", 1)
    rank = q.settings.get("max-lora-rank", 16)
    if q.on("enable-lora") and q.described.version < (0, 13) and rank not in _RANKS:
        yield Problem("engine.args.max-lora-rank", rank, f"valid values are {_RANKS}", "Mend the value.")
    if q.on("enable-lora") and type(most) is int:
        if most < 1:
            yield Problem("engine.args.max-loras", most, "a number from 1 on is needed", "Mend the value.")
        if type(cached) is int and cached < most:
            yield Problem("engine.args.max-cpu-loras", cached, f"it is below max-loras = {most}", "Raise it.")
    spare = q.inside("eplb-config").get("num_redundant_experts", q.settings.get("num-redundant-experts"))
    if type(spare) is int and spare > 0 and not q.on("enable-eplb"):
        reason = "vLLM's own expert load balance is off, and NPUs have it not"
        yield Problem("engine.args.eplb-config.num_redundant_experts", spare, reason, "Remove it.")
    profiler = q.inside("profiler-config")
    if profiler.get("profiler") == "torch" and not profiler.get("torch_profiler_dir"):
        reason = "the profiler torch needs a directory"
        yield Problem("engine.args.profiler-config.torch_profiler_dir", None, reason, "Give torch_profiler_dir.")
    if q.on("kv-sharing-fast-prefill") and q.speculative:
        reason = "it does not work with multi-token prediction"
        yield Problem("engine.args.kv-sharing-fast-prefill", True, reason, "Remove one of them.")


_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters before 0.13, whose parser does not hold them against a list."""


@rule("R30", "error", ">=0.18", "vllm-ascend v0.18.0, ascend_config.py; v0.23.0, ascend_config.py")
def excluding_keys(q: Question) -> Iterator[Problem]:
    """Keys that exclude each other, or need another one."""
    for releases, key, is_wrong, reason in EXCLUDING:
        value = dotted(q.additional, key)
        if covers(releases, q.described.version) and value is not None and is_wrong(q, value):
            yield Problem(f"{KEYS}.{key}", value, reason, "Remove one of them, or mend the value.")


def _shares_experts(q: Question) -> bool:
    """Whether shared experts are data parallel: the key alone does not do it."""
    p = q.config.parallel
    wanted = q.switched(q.additional.get("enable_shared_expert_dp"))
    return wanted and p.enable_expert_parallel and p.tensor_parallel_size > 1


def _is_off(value: Any) -> bool:
    return str(value).lower() in ("false", "0")


_JSON = "its name must end with .json"
EXCLUDING: tuple[tuple[str, str, Callable[[Question, Any], bool], str], ...] = (
    (">=0.18", "ascend_compilation_config.enable_static_kernel",
     lambda q, v: q.switched(v) and _is_off(q.section("ascend_compilation_config").get("enable_npugraph_ex", True)),
     "it needs enable_npugraph_ex"),
    (">=0.18", "eplb_config.expert_map_record_path", lambda q, v: not recording(q),
     "the engine also asks for the variable DYNAMIC_EPLB=true"),
    (">=0.18", "eplb_config.expert_map_record_path", lambda q, v: not str(v).endswith(".json"), _JSON),
    (">=0.18", "eplb_config.expert_map_path", lambda q, v: not str(v).endswith(".json"), _JSON),
    (">=0.23", "mix_placement",
     lambda q, v: q.switched(v) and q.switched(q.additional.get("multistream_overlap_shared_expert")),
     "it does not work with multistream_overlap_shared_expert"),
    (">=0.23", "mix_placement", lambda q, v: q.switched(v) and _shares_experts(q),
     "it does not work with enable_shared_expert_dp"),
    (">=0.23", "dump_config_path", lambda q, v: q.additional.get("dump_config") is not None,
     "dump_config is given too"),
    ("0.23", "enable_reduce_sample",
     lambda q, v: q.switched(v) and bool(q.section(FINE).get("lmhead_tensor_parallel_size")),
     f"it does not work with {FINE}.lmhead_tensor_parallel_size"),
    ("0.23", "enable_reduce_sample",
     lambda q, v: q.switched(v) and q.inside("kv-transfer-config").get("kv_role") == "kv_producer",
     "it does not work on prefill nodes (kv_role=kv_producer)"),
    ("0.23", "hamming_sparse",
     lambda q, v: not isinstance(v, Mapping) or not {"enabled", "sparse_json_location"} <= set(v),
     "it needs enabled and sparse_json_location"),
    ("0.23", "hamming_sparse.enabled",
     lambda q, v: bool(v) and not q.section("hamming_sparse").get("sparse_json_location"),
     "sparse_json_location is empty"),
    ("0.26", "scheduler_config.short_request_first_config",
     lambda q, v: isinstance(v, Mapping) and not set(v) <= {"enabled", "threshold", "long_max_wait_ms"},
     "its names are enabled, threshold and long_max_wait_ms"),
    (">=0.30", "mlapo_keep_prefill_weights",
     lambda q, v: is_true(v) and _is_off(q.additional.get("enable_mlapo", True)), "it needs enable_mlapo"),
    (">=0.30", "sparse_kv_offload_config.enabled",
     lambda q, v: is_true(v) and q.arch is not None and not q.arch.indexer, "it is for models with sparse attention"),
)  # fmt: skip
"""Releases, key, whether its value goes with the rest of the config, and why not."""
