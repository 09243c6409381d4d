"""The rules: each one finds what it is for, and leaves alone what is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from core_help import change, checked, composer, config
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli import check as verb
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines.ascend import releases
from jobs.engines.ascend.mc2 import mc2_buffer_mb, mc2_capacity
from jobs.engines.ascend.migration import migrate
from jobs.engines.ascend.rules import RULES
from jobs.engines.ascend.rules.base import Question, covers
from jobs.engines.base import Finding
from jobs.engines.vllm.findings import question
from jobs.forecast import memory
from jobs.sweep import check

NEW = ("experiment=official_0_23",)
MID = ("experiment=official_0_13",)
OLD = ("engine=vllm_ascend", "cluster=slurm")
NEWEST = (*NEW, "engine.release=0.30.0rc2")
NO_DRAFTS = (*NEW, "engine.args.speculative-config=null")


def torchair(**values: Any) -> dict[str, Any]:
    return {"torchair_graph_config": {"enabled": True, **values}}


def scheduler(**values: Any) -> dict[str, Any]:
    return torchair() | {"ascend_scheduler_config": {"enabled": True, **values}}


def env(**values: Any) -> Callable[[Config], Config]:
    return lambda c: change(c, engine__env=c.engine.env | values)


def args(**values: Any) -> Callable[[Config], Config]:
    return lambda c: change(c, engine__args=dict(c.engine.args) | {k.replace("_", "-"): v for k, v in values.items()})


def keys(**values: Any) -> Callable[[Config], Config]:
    return lambda c: change(c, engine__additional_config=dict(c.engine.additional_config or {}) | values)


def leaf(**values: Any) -> Callable[[Config], Config]:
    return lambda c: change(c, **values)


ONE_RANK = {"parallel__data_parallel_size": 1, "parallel__data_parallel_size_local": 1,
            "parallel__tensor_parallel_size": 8}  # fmt: skip

STAGES = ONE_RANK | {"parallel__pipeline_parallel_size": 2}


def stages(partition: str) -> Callable[[Config], Config]:
    """Two pipeline stages with so many layers each."""
    return leaf(**STAGES, engine__env={"VLLM_PP_LAYER_PARTITION": partition})


Case = tuple[str, tuple[str, ...], Callable[[Config], Config], Callable[[Config], Config] | None, str, str]
"""Rule, preset, what breaks it, a near thing that is right (None: the preset itself), key, severity."""

CASES: list[Case] = [
    ("M1", ("experiment=official_glm_5_2",), leaf(engine__release="0.18.0"), None, "engine.release", "error"),
    ("M1", ("experiment=official_kimi_k2_5",), leaf(engine__release="0.13.0"), None, "engine.release", "error"),
    ("E15", NEW, leaf(hccl__algo="level1:fast"), leaf(hccl__algo="level0:NA;level1:pipeline"), "hccl.algo", "error"),
    ("R24", NEWEST, args(long_prefill_token_threshold=16385), args(long_prefill_token_threshold=16384),
     "engine.args.long-prefill-token-threshold", "error"),
    ("L2", NEW, stages("40,20"), stages("31,30"), "engine.env.VLLM_PP_LAYER_PARTITION", "error"),
    ("L2", NO_DRAFTS, leaf(**STAGES, parallel__prefill_context_parallel_size=2), leaf(**STAGES),
     "parallel.prefill_context_parallel_size", "warning"),
    ("R3", OLD, leaf(engine__additional_config=scheduler(), parallel__max_num_batched_tokens=4096),
     leaf(engine__additional_config=scheduler(enable_chunked_prefill=True), parallel__max_num_batched_tokens=4096),
     "parallel.max_num_batched_tokens", "error"),
    ("R4", NEW, args(enable_chunked_prefill=False),
     lambda c: args(enable_chunked_prefill=False)(leaf(parallel__max_num_batched_tokens=16384)(c)),
     "parallel.max_num_batched_tokens", "error"),
    ("R4", NEW, args(no_enable_chunked_prefill=True), args(no_enable_chunked_prefill=False),
     "parallel.max_num_batched_tokens", "error"),
    ("R5", OLD, leaf(parallel__max_num_batched_tokens=255), leaf(parallel__max_num_batched_tokens=256),
     "parallel.max_num_batched_tokens", "error"),
    ("R6", OLD, leaf(parallel__max_num_seqs=1, parallel__max_num_batched_tokens=8193),
     leaf(parallel__max_num_seqs=1), "parallel.max_num_batched_tokens", "warning"),
    ("R7", OLD, args(enforce_eager=True), args(enforce_eager=False), "engine.args.enforce-eager", "error"),
    ("R8", OLD, leaf(engine__additional_config={}), lambda c: args(enforce_eager=True)(
     leaf(engine__additional_config={})(c)), "engine.additional_config.torchair_graph_config.enabled", "error"),
    ("R9", OLD, leaf(engine__additional_config=torchair(use_cached_kv_cache_bytes=True)),
     leaf(engine__additional_config=torchair(use_cached_kv_cache_bytes=True, use_cached_graph=True)),
     "engine.additional_config.torchair_graph_config.use_cached_kv_cache_bytes", "error"),
    ("R10", OLD, leaf(parallel__max_num_seqs=250, parallel__max_num_batched_tokens=255),
     leaf(parallel__max_num_seqs=250, parallel__max_num_batched_tokens=256), "parallel.max_num_seqs", "error"),
    ("R11", OLD, leaf(), leaf(engine__additional_config=torchair(graph_batch_sizes=[8, 256])),
     "engine.additional_config.torchair_graph_config.graph_batch_sizes", "warning"),
    ("R12", NEW, keys(ascend_scheduler_config={"enabled": False}), None,
     "engine.additional_config.ascend_scheduler_config", "error"),
    ("R13", OLD, leaf(parallel__block_size=64), None, "parallel.block_size", "warning"),
    ("R13", OLD, lambda c: args(no_enable_chunked_prefill=False)(leaf(parallel__block_size=64)(c)),
     lambda c: args(no_enable_chunked_prefill=True)(leaf(parallel__block_size=64)(c)),
     "parallel.block_size", "warning"),
    ("R14", NEW, leaf(parallel__prefill_context_parallel_size=2), leaf(parallel__prefill_context_parallel_size=1),
     "parallel.prefill_context_parallel_size", "error"),
    ("R15", NEW, leaf(parallel__decode_context_parallel_size=3),
     leaf(parallel__decode_context_parallel_size=2),
     "parallel.decode_context_parallel_size", "error"),
    ("R15", ("engine=vllm_ascend", "cluster=slurm", "engine.release=0.11.0"),
     leaf(parallel__decode_context_parallel_size=8), leaf(parallel__decode_context_parallel_size=1),
     "parallel.decode_context_parallel_size", "error"),
    ("R15", ("engine=simulator", "engine.release=0.11.0"), leaf(parallel__decode_context_parallel_size=8), None,
     "parallel.decode_context_parallel_size", "error"),
    ("R15", ("engine=simulator", "engine.release=0.13.0"), leaf(parallel__decode_context_parallel_size=3),
     leaf(parallel__decode_context_parallel_size=8), "parallel.decode_context_parallel_size", "error"),
    ("R16", OLD, lambda c: args(speculative_config={"method": "deepseek_mtp"})(env(VLLM_ASCEND_ENABLE_DBO=1)(c)),
     env(VLLM_ASCEND_ENABLE_DBO=1), "engine.env.VLLM_ASCEND_ENABLE_DBO", "error"),
    ("R17", NEW, keys(enable_fused_mc2=1, enable_mc2_hierarchy_comm=True), keys(enable_fused_mc2=1),
     "engine.additional_config.enable_fused_mc2", "error"),
    ("R18", OLD, leaf(parallel__max_model_len=163841), leaf(parallel__max_model_len=163840),
     "parallel.max_model_len", "error"),
    ("R20", NEW, leaf(bench__concurrency=65), leaf(bench__concurrency=64), "bench.concurrency", "warning"),
    ("R21", NEW, leaf(parallel__gpu_memory_utilization=0.93), None, "parallel.gpu_memory_utilization", "warning"),
    ("R22", NEW, keys(eplb_config={"dynamic_eplb": True}),
     lambda c: env(DYNAMIC_EPLB=True)(keys(eplb_config={"dynamic_eplb": True})(c)),
     "engine.additional_config.eplb_config.dynamic_eplb", "error"),
    ("R23", NEW, leaf(parallel__data_parallel_size=2, parallel__data_parallel_size_local=1), None,
     "parallel.enable_expert_parallel", "warning"),
    ("R23", NEW, leaf(parallel__max_num_seqs=129), leaf(parallel__max_num_seqs=128),
     "parallel.max_num_seqs", "warning"),
    ("R23", MID, leaf(parallel__max_num_seqs=17), None, "parallel.max_num_seqs", "warning"),
    ("R23", MID, leaf(**ONE_RANK, parallel__prefill_context_parallel_size=1),
     leaf(**ONE_RANK, parallel__prefill_context_parallel_size=2), "parallel.enable_expert_parallel", "warning"),
    ("E1", OLD, leaf(hccl__connect_timeout=119), leaf(hccl__connect_timeout=120), "hccl.connect_timeout", "error"),
    ("E1", OLD, env(HCCL_IF_BASE_PORT=65521), env(HCCL_IF_BASE_PORT=65520), "engine.env.HCCL_IF_BASE_PORT", "error"),
    ("E1", OLD, env(HCCL_RDMA_TIMEOUT=21), env(HCCL_RDMA_TIMEOUT=5), "engine.env.HCCL_RDMA_TIMEOUT", "error"),
    ("E1", OLD, leaf(hccl__intra_roce_enable=2), leaf(hccl__intra_roce_enable=0), "hccl.intra_roce_enable", "error"),
    ("E2", OLD, leaf(hccl__connect_timeout=7200), leaf(hccl__connect_timeout=1800), "hccl.connect_timeout", "warning"),
    ("E3", NEW, leaf(parallel__max_num_seqs=256), None, "hccl.buffsize", "warning"),
    ("E4", NEW, leaf(hccl__buffsize=1024), None, "hccl.buffsize", "warning"),
    ("E5", NEW, leaf(hccl__op_expansion_mode="AI_CPU"), leaf(hccl__op_expansion_mode="HOST"),
     "hccl.op_expansion_mode", "error"),
    ("E5", NEW, leaf(hccl__op_expansion_mode="AIV"), None, "hccl.op_expansion_mode", "warning"),
    ("E6", NEW, leaf(hccl__intra_roce_enable=1), None, "hccl.intra_roce_enable", "error"),
    ("E6", NEW, leaf(hccl__intra_pcie_enable=None), None, "hccl.intra_pcie_enable", "warning"),
    ("E6", NEW, leaf(hccl__intra_pcie_enable=None, hccl__intra_roce_enable=None), None,
     "hccl.intra_pcie_enable", "warning"),
    ("E7", NEW, env(HCCL_NPU_SOCKET_PORT_RANGE="17000-17100"), None,
     "engine.env.HCCL_NPU_SOCKET_PORT_RANGE", "error"),
    ("E8", OLD, env(PYTORCH_NPU_ALLOC_CONF="max_split_size_mb:64,expandable_segments:True"),
     env(PYTORCH_NPU_ALLOC_CONF="max_split_size_mb:64"), "engine.env.PYTORCH_NPU_ALLOC_CONF", "error"),
    ("E9", NEW, env(ASCEND_LAUNCH_BLOCKING=1), lambda c: args(enforce_eager=True)(env(ASCEND_LAUNCH_BLOCKING=1)(c)),
     "engine.env.ASCEND_LAUNCH_BLOCKING", "error"),
    ("E11", OLD, env(VLLM_LOGGING_LEVEL="ERROR"), env(VLLM_LOGGING_LEVEL="DEBUG"),
     "engine.env.VLLM_LOGGING_LEVEL", "warning"),
    ("E12", OLD, env(OMP_NUM_THREADS=11), env(OMP_NUM_THREADS=1), "engine.env.OMP_NUM_THREADS", "warning"),
    ("E13", OLD, env(VLLM_USE_V1=0), None, "engine.env.VLLM_USE_V1", "error"),
    ("E14", OLD, leaf(model__served_model_name=None), None, "model.served_model_name", "warning"),
    ("E18", NEW, leaf(engine__api_key=None), None, "engine.api_key", "warning"),
    ("E17", NEW, leaf(engine__release="0.23.0"), leaf(engine__release="0.23.0.post1"), "engine.release", "warning"),
    ("N1", NEW, args(num_scheduler_steps=8), None, "engine.args.num-scheduler-steps", "error"),
    ("N1", NEW, args(enable_sleep_mod=3), args(enable_sleep_mode=True), "engine.args.enable-sleep-mod", "error"),
    ("N1", NEW, args(scheduling_policy="lifo"), args(scheduling_policy="priority"),
     "engine.args.scheduling-policy", "error"),
    ("N1", NEW, args(stream_interval="two"), args(stream_interval=2), "engine.args.stream-interval", "error"),
    ("N1", NEW, args(enable_sleep_mode="yes"), None, "engine.args.enable-sleep-mode", "error"),
    ("N1", NEW, args(no_stream_interval=True), None, "engine.args.no-stream-interval", "error"),
    ("N1", NEW, args(no_enable_chunked_prefill=1), None, "engine.args.no-enable-chunked-prefill", "error"),
    ("N2", OLD, args(device="auto"), None, "engine.args.device", "warning"),
    ("N3", NEW, keys(enable_mlpao=True), keys(enable_mlapo=True), "engine.additional_config.enable_mlpao", "error"),
    ("N3", NEW, keys(weight_prefetch_config={"enable": True}), keys(weight_prefetch_config={"enabled": True}),
     "engine.additional_config.weight_prefetch_config.enable", "error"),
    ("N3", NEW, keys(eplb_config=True), None, "engine.additional_config.eplb_config", "error"),
    ("N4", MID, keys(dynamic_eplb=False), None, "engine.additional_config.dynamic_eplb", "warning"),
    ("N5", NEW, env(VLLM_USE_V1=1), None, "engine.env.VLLM_USE_V1", "warning"),
    ("N5", NEW, lambda c: args(fail_on_environ_validation=True)(env(VLLM_USE_V1=1)(c)), None,
     "engine.env.VLLM_USE_V1", "error"),
    ("N5", NEW, env(HCCL_BUFSIZE=1), env(HCCL_RDMA_TC=132), "engine.env.HCCL_BUFSIZE", "warning"),
    ("N8", NEW, env(USE_MULTI_BLOCK_POOL=1), env(TASK_QUEUE_ENABLE=1), "engine.env.USE_MULTI_BLOCK_POOL", "warning"),
    ("N8", NEW, env(OMPNUM_THREADS=1), env(http_proxy=""), "engine.env.OMPNUM_THREADS", "warning"),
    ("R25", MID, args(dtype="float16"), args(dtype="bfloat16"), "engine.args.dtype", "error"),
    ("E16", NEW, lambda c: keys(enable_mc2_hierarchy_comm=True)(leaf(hccl__buffsize=256)(c)),
     lambda c: keys(enable_mc2_hierarchy_comm=True)(leaf(hccl__buffsize=640)(c)), "hccl.buffsize", "warning"),
    ("N6", NEW, leaf(), env(VLLM_ASCEND_BALANCE_SCHEDULING=None),
     "engine.env.VLLM_ASCEND_BALANCE_SCHEDULING", "warning"),
]  # fmt: skip


EARLY = (*OLD, "engine.release=0.11.0")
DOCKER = (*OLD, "container=docker", "container.image=quay.io/ascend/vllm-ascend:v0.9.1-openeuler")
IMAGE = "quay.io/ascend/vllm-ascend:"
FILES = ("/usr/local/dcmi", "/usr/local/Ascend/driver/tools/hccn_tool", "/etc/hccn.conf:/etc/hccn.conf")
TRANSFER: dict[str, Any] = {"kv_connector": "MooncakeConnectorV1", "kv_role": "kv_producer"}
CASES += [
    ("R26", EARLY, args(async_scheduling=True, speculative_config={"method": "deepseek_mtp"}),
     args(async_scheduling=True), "engine.args.async-scheduling", "error"),
    ("R27", MID, args(enable_eplb=True), args(enable_eplb=False), "engine.args.enable-eplb", "error"),
    ("R28", NEW, args(compilation_config={"cudagraph_capture_sizes": [8, 16], "max_cudagraph_capture_size": 32}),
     args(compilation_config={"cudagraph_capture_sizes": [8, 16], "max_cudagraph_capture_size": 16}),
     "engine.args.compilation-config.max_cudagraph_capture_size", "error"),
    ("R29", MID, keys(finegrained_tp_config={"lmhead_tensor_parallel_size": 3}),
     keys(finegrained_tp_config={"lmhead_tensor_parallel_size": 2}),
     "engine.additional_config.finegrained_tp_config.lmhead_tensor_parallel_size", "error"),
    ("R30", NEW, keys(mix_placement=True, multistream_overlap_shared_expert=True), keys(mix_placement=True),
     "engine.additional_config.mix_placement", "error"),
    ("R30", NEW, keys(eplb_config={"expert_map_record_path": "a.json"}),
     lambda c: env(DYNAMIC_EPLB="true")(keys(eplb_config={"expert_map_record_path": "a.json"})(c)),
     "engine.additional_config.eplb_config.expert_map_record_path", "error"),
    ("R31", MID, keys(xlite_graph_config={"enabled": True}),
     lambda c: leaf(parallel__block_size=128)(keys(xlite_graph_config={"enabled": True})(c)),
     "engine.additional_config.xlite_graph_config.enabled", "error"),
    ("N5", NEW, args(fail_on_environ_validation=True), args(fail_on_environ_validation=False),
     "engine.env.VLLM_ASCEND_BALANCE_SCHEDULING", "error"),
    ("N7", MID, keys(xlite_graph_config={"enabled": True}),
     lambda c: args(speculative_config=None)(keys(xlite_graph_config={"enabled": True})(c)),
     "engine.additional_config.xlite_graph_config.enabled", "error"),
    ("N11", NEW, args(compilation_config={"cudagraph_mode": "FULL_DECODE"}),
     args(compilation_config={"cudagraph_mode": "full_decode_only"}),
     "engine.args.compilation-config.cudagraph_mode", "error"),
    ("N11", NEW, args(speculative_config={"method": "mtp", "num_spec_tokens": 3}), None,
     "engine.args.speculative-config.num_spec_tokens", "error"),
    ("N11", NEW, args(kv_transfer_config=TRANSFER | {"kv_rank": "many"}), args(kv_transfer_config=TRANSFER),
     "engine.args.kv-transfer-config.kv_rank", "error"),
    ("N9", NEWEST, keys(enable_mlapo="yes please"), keys(enable_mlapo="yes"),
     "engine.additional_config.enable_mlapo", "error"),
    ("N9", NEWEST, keys(scheduler_config={"short_request_first_config": {"threshold": "many"}}),
     keys(scheduler_config={"short_request_first_config": {"threshold": "256"}}),
     "engine.additional_config.scheduler_config.short_request_first_config.threshold", "error"),
    ("N10", NEW, keys(rejection_sampler_config={"posterior_threshold": 2.0}),
     keys(rejection_sampler_config={"posterior_threshold": 1.0}),
     "engine.additional_config.rejection_sampler_config.posterior_threshold", "error"),
    ("N10", NEW, keys(eplb_config={"eplb_policy_type": 7}), keys(eplb_config={"eplb_policy_type": 3}),
     "engine.additional_config.eplb_config.eplb_policy_type", "error"),
    ("N7", NEW, keys(recompute_scheduler_enable=True), keys(recompute_scheduler_enable=False),
     "engine.additional_config.recompute_scheduler_enable", "error"),
    ("N7", NEW, keys(layer_sharding=["q_b_proj"]), keys(layer_sharding=[]),
     "engine.additional_config.layer_sharding", "error"),
    ("N7", MID, keys(enable_kv_nz=True),
     lambda c: args(kv_transfer_config={"kv_role": "kv_consumer"})(keys(enable_kv_nz=True)(c)),
     "engine.additional_config.enable_kv_nz", "error"),
    ("N7", EARLY, keys(lmhead_tensor_parallel_size=2),
     lambda c: leaf(parallel__tensor_parallel_size=1)(keys(lmhead_tensor_parallel_size=2)(c)),
     "engine.additional_config.lmhead_tensor_parallel_size", "error"),
    ("N7", EARLY, keys(oproj_tensor_parallel_size=2), lambda c: keys(oproj_tensor_parallel_size=2)(
     args(kv_transfer_config='{"kv_role": "kv_consumer"}')(leaf(parallel__tensor_parallel_size=1)(c))),
     "engine.additional_config.oproj_tensor_parallel_size", "error"),
    ("N7", NEW, keys(finegrained_tp_config={"oproj_tensor_parallel_size": 2}),
     keys(finegrained_tp_config={"lmhead_tensor_parallel_size": 2}),
     "engine.additional_config.finegrained_tp_config.oproj_tensor_parallel_size", "error"),
    ("R9", EARLY, lambda c: args(enforce_eager=True)(
     leaf(engine__additional_config={"torchair_graph_config": {"enabled": False, "mode": "max-autotune"}})(c)),
     leaf(engine__additional_config=torchair(mode="max-autotune")),
     "engine.additional_config.torchair_graph_config.mode", "error"),
    ("R9", EARLY, leaf(engine__additional_config=torchair(enable_super_kernel=True), parallel__tensor_parallel_size=1),
     lambda c: leaf(parallel__tensor_parallel_size=1)(keys(multistream_overlap_shared_expert=True)(
     leaf(engine__additional_config=torchair(enable_super_kernel=True))(c))),
     "engine.additional_config.torchair_graph_config.enable_super_kernel", "error"),
    ("L1", OLD, leaf(parallel__tensor_parallel_size=7), leaf(parallel__tensor_parallel_size=4),
     "parallel.tensor_parallel_size", "error"),
    ("L1", ("experiment=demo",), leaf(parallel__tensor_parallel_size=3), leaf(parallel__tensor_parallel_size=4),
     "parallel.tensor_parallel_size", "error"),
    ("L1", ("experiment=demo", "engine=simulator"), leaf(parallel__tensor_parallel_size=3),
     leaf(parallel__tensor_parallel_size=2), "parallel.tensor_parallel_size", "error"),
    ("K1", DOCKER, leaf(container__image=f"{IMAGE}v0.9.1-dev-openeuler"), None, "container.image", "warning"),
    ("K1", DOCKER, leaf(container__image=f"{IMAGE}main"), leaf(container__image=f"{IMAGE}main@sha256:{'0' * 64}"),
     "container.image", "warning"),
    ("K3", DOCKER, leaf(container__driver_mounts=FILES[:2]), leaf(container__driver_mounts=FILES),
     "container.driver_mounts", "warning"),
    ("K4", DOCKER, leaf(container__shm_size="500g"), leaf(container__shm_size="16g"),
     "container.shm_size", "warning"),
]  # fmt: skip

SPEC, GRAPHS = "engine.args.speculative-config", "engine.args.compilation-config"
MTP: dict[str, Any] = {"method": "mtp", "num_speculative_tokens": 1}
NGRAM: dict[str, Any] = {"method": "ngram", "num_speculative_tokens": 2}
FINE: dict[str, Any] = {"enable_flashcomm1": True}
CHUNKS: dict[str, Any] = {"profiling_chunk_config": {"enabled": True}}
CASES += [
    ("S1", NEW, args(speculative_config={"method": "eagle3", "num_speculative_tokens": 1}),
     args(speculative_config={"method": "eagle3", "num_speculative_tokens": 1, "model": "a/b"}),
     f"{SPEC}.model", "error"),
    ("S1", NEW, args(speculative_config={"method": "mtp"}), args(speculative_config=MTP),
     f"{SPEC}.num_speculative_tokens", "error"),
    ("S2", NEW, args(speculative_config=MTP | {"draft_tensor_parallel_size": 2}),
     args(speculative_config=MTP | {"draft_tensor_parallel_size": 4}), f"{SPEC}.draft_tensor_parallel_size", "error"),
    ("S2", NEW, args(speculative_config=NGRAM | {"prompt_lookup_min": 4, "prompt_lookup_max": 2}),
     args(speculative_config=NGRAM | {"prompt_lookup_min": 2, "prompt_lookup_max": 4}),
     f"{SPEC}.prompt_lookup_min", "error"),
    ("S3", NEW, args(spec_method="mtp"), args(speculative_config=None, spec_method="mtp", spec_tokens=1),
     "engine.args.spec-method", "error"),
    ("S4", NEW, args(speculative_config=MTP | {"rejection_sample_method": "synthetic"}),
     args(speculative_config=MTP | {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": 1.5}),
     f"{SPEC}.rejection_sample_method", "error"),
    ("S5", MID, args(speculative_config=MTP | {"method": "eagle3", "model": "a/b"}), args(speculative_config=NGRAM),
     f"{SPEC}.method", "error"),
    ("E19", NEW, env(VLLM_ASCEND_ENABLE_MLAPO="yes"), env(VLLM_ASCEND_ENABLE_MLAPO="1"),
     "engine.env.VLLM_ASCEND_ENABLE_MLAPO", "error"),
    ("E20", MID, env(VLLM_ALL2ALL_BACKEND="nope"), env(VLLM_ALL2ALL_BACKEND="pplx"),
     "engine.env.VLLM_ALL2ALL_BACKEND", "error"),
    ("L5", NEW, leaf(**STAGES), lambda c: args(speculative_config=NGRAM)(leaf(**STAGES)(c)), SPEC, "error"),
    ("R32", NEW, args(async_scheduling=True, speculative_config=NGRAM), args(async_scheduling=True),
     "engine.args.async-scheduling", "error"),
    ("R33", NEW, lambda c: leaf(parallel__enable_expert_parallel=False)(keys(**FINE)(c)), keys(**FINE),
     "engine.additional_config.enable_flashcomm1", "error"),
    ("M3", NEW, keys(enable_sparse_li_c8=True), keys(enable_sparse_li_c8=False),
     "engine.additional_config.enable_sparse_li_c8", "warning"),
    ("R34", MID, env(VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE="4"), env(VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE="2"),
     "engine.env.VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE", "error"),
    ("R35", NEW, args(kv_transfer_config=TRANSFER), args(kv_transfer_config=TRANSFER | {"kv_role": "kv_both"}),
     "engine.env.VLLM_ASCEND_BALANCE_SCHEDULING", "error"),
    ("R36", NO_DRAFTS, lambda c: leaf(**STAGES)(keys(**CHUNKS)(c)),
     lambda c: env(VLLM_ASCEND_BALANCE_SCHEDULING="0")(leaf(**STAGES)(keys(**CHUNKS)(c))),
     "engine.additional_config.profiling_chunk_config.enabled", "error"),
    ("R37", NEW, args(kv_transfer_config={"kv_connector": "MooncakeConnectorV1"}),
     args(kv_transfer_config=TRANSFER), "engine.args.kv-transfer-config.kv_role", "error"),
    ("R38", NO_DRAFTS, lambda c: leaf(**STAGES)(keys(xlite_graph_config={"enabled": True})(c)),
     keys(xlite_graph_config={"enabled": True}), "engine.additional_config.xlite_graph_config.enabled", "error"),
    ("R28", NEW, args(compilation_config={"cudagraph_capture_sizes": [5000]}),
     args(compilation_config={"cudagraph_capture_sizes": [8, 5000]}), f"{GRAPHS}.cudagraph_capture_sizes", "error"),
    ("N1", OLD, leaf(parallel__block_size=256), leaf(parallel__block_size=128), "parallel.block_size", "error"),
    ("N1", NEW, args(stream_interval=0), args(stream_interval=1), "engine.args.stream-interval", "error"),
    ("N11", NEW, args(compilation_config={"pass_config": {"no_such": True}}),
     args(compilation_config={"pass_config": {"enable_sp": False}}), f"{GRAPHS}.pass_config.no_such", "error"),
    ("N11", NEW, args(compilation_config={"cudagraph_capture_sizes": ["a"]}),
     args(compilation_config={"cudagraph_capture_sizes": ["8"]}), f"{GRAPHS}.cudagraph_capture_sizes", "error"),
    ("N12", NEW, args(compilation_config={"custom_ops": ["rms_norm"]}),
     args(compilation_config={"custom_ops": ["+rms_norm"]}), f"{GRAPHS}.custom_ops", "error"),
    ("N13", NEW, args(compilation_config="{"), args(compilation_config="{}"), GRAPHS, "error"),
    ("N15", NEW, args(kv_transfer_config=TRANSFER | {"kv_connector": "MooncakeConectorV1"}),
     args(kv_transfer_config=TRANSFER), "engine.args.kv-transfer-config.kv_connector", "error"),
    ("N16", NEW, args(enable_auto_tool_choice=True),
     args(enable_auto_tool_choice=True, tool_call_parser="deepseek_v3"),
     "engine.args.enable-auto-tool-choice", "error"),
    ("R41", NEW, args(kv_sharing_fast_prefill=True), args(kv_sharing_fast_prefill=False),
     "engine.args.kv-sharing-fast-prefill", "error"),
    ("R40", MID, lambda c: leaf(parallel__decode_context_parallel_size=2)(args(cp_kv_cache_interleave_size=100)(c)),
     lambda c: leaf(parallel__decode_context_parallel_size=2)(args(cp_kv_cache_interleave_size=64)(c)),
     "engine.args.cp-kv-cache-interleave-size", "error"),
    ("R39", OLD, leaf(engine__additional_config=torchair(graph_batch_sizes=["8"])),
     leaf(engine__additional_config=torchair(graph_batch_sizes=[8])),
     "engine.additional_config.torchair_graph_config.graph_batch_sizes", "error"),
    ("N14", OLD, args(kv_cache_dtype="fp8"), args(kv_cache_dtype="auto"), "engine.args.kv-cache-dtype", "error"),
]  # fmt: skip


def found(made: Config, rule: str, key: str) -> list[Finding]:
    return [one for one in check.findings(made) if one.rule == rule and one.key == key]


@pytest.mark.parametrize(
    ("rule", "preset", "broken", "right", "key", "severity"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_a_rule_finds_what_it_is_for(
    rule: str,
    preset: tuple[str, ...],
    broken: Callable[[Config], Config],
    right: Callable[[Config], Config] | None,
    key: str,
    severity: str,
) -> None:
    base = config(*preset)
    [finding] = found(broken(base), rule, key)
    assert finding.severity == severity
    assert finding.reason
    assert finding.remedy.endswith((".", "?", "`", "'"))
    assert len(finding.source) > 5
    assert not found(right(base) if right else base, rule, key)
    if severity == "error":
        with pytest.raises(ConfigError):
            checked(broken(base))
    else:
        checked(broken(base))


@pytest.mark.parametrize(
    ("overrides", "rule", "key", "remedy"),
    [
        (("engine.release=0.30.0rc2", "+engine.env.VLLM_ASCEND_ENABLE_MLAPO=1"), "N5",
         "engine.env.VLLM_ASCEND_ENABLE_MLAPO", "Set engine.additional_config.enable_mlapo."),
        (("engine.release=0.13.0", "+engine.env.VLLM_ENGINE_READY_TIMEOUT_S=9"), "N5",
         "engine.env.VLLM_ENGINE_READY_TIMEOUT_S", "Release 0.18.0 has it: set engine.release=0.18.0"),
        (("engine.release=0.13.0", "+engine.additional_config.profiling_chunk_config={enabled: true}"), "N3",
         "engine.additional_config.profiling_chunk_config", "Release 0.23.0.post1 has it: set"),
        (("engine.release=0.18.0", "+engine.additional_config.profiling_chunk_config={enabled: true}"), "N3",
         "engine.additional_config.profiling_chunk_config", "Release 0.23.0.post1 has it"),
        (("engine.release=0.13.0", "+engine.additional_config.enable_kvpp=true"), "N3",
         "engine.additional_config.enable_kvpp", "Release 0.30.0rc2 has it: set engine.release=0.30.0rc2"),
    ],
)  # fmt: skip
def test_the_remedy_for_a_name_of_another_release(overrides: tuple[str, ...], rule: str, key: str, remedy: str) -> None:
    [finding] = found(config(*overrides), rule, key)
    assert finding.remedy.startswith(remedy)


@pytest.mark.parametrize("name", releases())
def test_the_recipes_have_no_errors(name: str) -> None:
    """What a recipe leaves out is no error of it, in any release that it is carried to."""
    preset = OLD if name < "0.12" or name == "0.9.1" else MID if name < "0.19" else NEW
    assert not [one for one in check.findings(config(*preset, f"engine.release={name}")) if one.severity == "error"]


def test_every_rule_has_a_case() -> None:
    # R2: the tool renders both ranks itself, so no config can break it; it has a test of its own.
    assert len({rule.id for rule in RULES}) == len(RULES), "one id a rule"
    assert {rule.id for rule in RULES} == {case[0] for case in CASES} | {"L3", "L4", "M2", "R2"}
    placed = {"R1", "R19"}  # jobs/core/layout.py, and one that went
    assert {f"R{n}" for n in range(1, 42)} == {r.id for r in RULES if r.id.startswith("R")} | placed


def test_ranks_that_do_not_belong_together_are_found() -> None:
    good = question(config(*NEW))
    [rule] = [one for one in RULES if one.id == "R2"]
    assert not list(rule.found(good))
    head, headless = good.ranks

    def wrong(**values: Any) -> list[Finding]:
        ranks = (head, dict(headless) | {k.replace("_", "-"): v for k, v in values.items()})
        return list(rule.found(Question(good.config, good.settings, good.env, ranks, good.release)))

    for values in ({"headless": None}, {"data_parallel_start_rank": 1}, {"data_parallel_address": "10.9.9.9"}):
        [finding] = wrong(**values)
        assert finding.key == "rank 1"


@pytest.mark.parametrize("flag", [{"headless": True}, {"nnodes": 2}, {"data_parallel_start_rank": 1}])
def test_a_flag_that_the_tool_owns_is_one_error_and_no_fault_of_the_tool(flag: dict[str, Any]) -> None:
    errors = [one for one in check.findings(args(**flag)(config(*NEW))) if one.severity == "error"]
    assert [one.rule for one in errors] == ["C1"]
    assert "the tool owns" in errors[0].reason


def test_the_articles_configuration_is_accepted_with_the_known_warnings() -> None:
    made = check.findings(config("experiment=article"), memory=True)
    assert {(one.severity, one.key) for one in made} == {
        ("warning", "engine.additional_config.torchair_graph_config.graph_batch_sizes"),
        ("warning", "hccl.connect_timeout"),
        ("warning", "hccl.buffsize"),
        ("warning", "hccl.op_expansion_mode"),
        ("warning", "engine.env.VLLM_LOGGING_LEVEL"),
        ("warning", "engine.env.OMP_NUM_THREADS"),
        ("warning", "engine.api_key"),
        ("warning", "model.served_model_name"),
    }


def test_the_articles_container_is_accepted_with_the_known_warnings() -> None:
    bare = {(one.rule, one.key) for one in check.findings(config("experiment=article"))}
    made = check.findings(config("experiment=article", "container=docker", "container.registry=registry.example"))
    assert {one.severity for one in made} == {"warning"}
    assert {(one.rule, one.key) for one in made} - bare == {
        ("K1", "container.image"),
        ("K3", "container.driver_mounts"),
        ("K4", "container.shm_size"),
    }
    [moving] = [one for one in made if one.rule == "K1"]
    assert moving.remedy == "Pin v0.9.1-openeuler (openEuler 22.03)."
    [mounts] = [one for one in made if one.rule == "K3"]
    assert "hccn_tool and hccn.conf" in mounts.reason


@pytest.mark.parametrize(
    "overrides",
    [
        ("experiment=demo",),
        ("experiment=demo", "engine=simulator"),
        ("engine=simulator",),
        ("engine=simulator", "parallel=dp4_tp4"),
        ("engine=simulator", "engine.release=0.23.0"),
        ("experiment=demo", "parallel.max_model_len=131072"),
        ("experiment=official_0_13", "bench.window_s=900"),
    ],
)
def test_where_nothing_is_wrong_nothing_is_found(overrides: tuple[str, ...]) -> None:
    assert check.findings(config(*overrides)) == ()


def test_a_request_that_cannot_fit_is_for_the_planner_to_decide() -> None:
    made = config("experiment=official_0_23", "parallel.max_model_len=131072")
    [finding] = [one for one in check.findings(made, memory=True) if one.severity == "error"]
    assert (finding.rule, finding.key) == ("R19", "parallel.max_model_len")
    checked(made)


def test_the_first_error_is_raised_with_the_count_of_the_others() -> None:
    made = change(config(*NEW), engine__args={"swap-space": 1, "task": "auto"}, hccl__connect_timeout=1)
    with pytest.raises(ConfigError) as caught:
        checked(made)
    assert caught.value.key == "engine.args.swap-space"
    assert "it was removed" in caught.value.reason
    assert caught.value.remedy == "Remove it. (2 more errors: see python -m jobs check)"


def test_an_unknown_release_is_one_finding_and_the_rest_is_still_checked() -> None:
    made = change(config("engine=simulator"), engine__release="0.10.0", parallel__max_num_batched_tokens=1)
    errors = [one.key for one in check.findings(made) if one.severity == "error"]
    assert errors == ["engine.release", "parallel.max_num_batched_tokens"]
    # The CPU build has releases of its own.
    assert not check.findings(change(config("experiment=demo"), engine__release="1.2.3"))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("all", "0.9.1", None),
        ("0.9.1", "0.9.1", "0.11.0"),
        ("<0.12", "0.11.0", "0.13.0"),
        (">=0.18", "0.18.0", "0.13.0"),
        ("0.11..0.13", "0.13.0", "0.18.0"),
    ],
)
def test_which_releases_a_rule_holds_for(text: str, inside: str, outside: str | None) -> None:
    from jobs.engines.ascend import version

    assert covers(text, version(inside))
    assert outside is None or not covers(text, version(outside))


def test_the_buffer_of_mc2_as_published() -> None:
    """vllm-ascend issue 5287: 256 sequences, TP8, 16 NPUs."""
    arch = question(config("experiment=article")).arch
    assert arch is not None
    assert mc2_buffer_mb(arch, tp=8, ep=16, tokens=256) == 240
    assert mc2_buffer_mb(arch, tp=8, ep=16, tokens=512) == 480
    assert mc2_buffer_mb(arch, tp=4, ep=16, tokens=64) == 120


SIZES = {"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [8, 64, 16]}


@pytest.mark.parametrize(
    ("release", "seqs", "flags", "capacity"),
    [
        ("0.11.0", 200, {}, 200),
        ("0.13.0", 200, {}, 200),
        ("0.13.0", 256, {}, 256),
        ("0.13.0", 300, {}, 304),
        ("0.18.0", 200, {}, 200),
        ("0.23.0", 1024, {"enforce-eager": True}, 1024),  # from here on 512 of a tensor parallel rank
        ("0.18.0", 1024, {"enforce-eager": True}, 512),
        ("0.23.0", 10_000, {}, 512),
        ("0.23.0", 201, {}, 208),  # in whole tokens of each of eight tensor parallel ranks
        ("0.13.0", 100, {"enforce-eager": True}, 104),
        ("0.13.0", 96, {"compilation-config": {"cudagraph_mode": "NONE"}}, 96),
        ("0.13.0", 96, {"compilation-config": SIZES, "enforce-eager": True}, 96),
        ("0.13.0", 256, {"compilation-config": SIZES}, 64),
        ("0.23.0", 256, {"compilation-config": json.dumps(SIZES)}, 64),
        ("0.23.0", 256, {"compilation-config.max_cudagraph_capture_size": 40}, 40),
        ("0.23.0", 16, {"cudagraph-capture-sizes": [8, 1024]}, 1024),
        ("0.11.0", 16, {"cuda-graph-sizes": [128]}, 128),
        ("0.23.0", 16, {"speculative-config": {"method": "mtp", "num_speculative_tokens": 3}}, 64),
        ("0.13.0", 16, {"speculative_config": '{"method": "mtp", "num_speculative_tokens": 3}'}, 64),
        ("0.23.0", None, {"compilation-config": SIZES}, 64),
        ("0.23.0", None, {}, None),
    ],
)
def test_the_tokens_that_mc2_takes(release: str, seqs: int | None, flags: dict[str, Any], capacity: int | None) -> None:
    made = change(config("cluster=slurm"), engine__release=release, engine__args=flags, parallel__max_num_seqs=seqs)
    assert mc2_capacity(made, release) == capacity


def test_prefill_context_ranks_share_the_experts() -> None:
    words = ("parallel=dp1_tp16", "parallel.tensor_parallel_size=8", "parallel.prefill_context_parallel_size=2")
    made = config("cluster=slurm", "engine.release=0.13.0", *words)
    assert not [one for one in check.findings(made) if one.rule == "R23"]
    assert made.hccl.buffsize == 256  # 256 tokens over eight tensor parallel ranks, as with dp2_tp8


def test_the_buffer_follows_the_graph_mode() -> None:
    words = ("engine=vllm_ascend", "cluster=slurm", "parallel.max_num_seqs=256")
    assert config(*words, "engine.release=0.13.0").hccl.buffsize == 256  # 256 tokens need 240 MB
    assert config(*words, "engine.release=0.18.0").hccl.buffsize == 256
    small = "+engine.args.compilation-config={cudagraph_mode: FULL_DECODE_ONLY, cudagraph_capture_sizes: [8, 64]}"
    assert config(*words, "engine.release=0.13.0", small).hccl.buffsize == 200
    too_small = [*words, "engine.release=0.13.0", "hccl.buffsize=200"]
    [finding] = found(config(*too_small), "E3", "hccl.buffsize")
    assert "256 tokens a step needs up to 256 MB" in finding.reason
    assert not found(config(*too_small, small), "E3", "hccl.buffsize")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.none() | st.integers(1, 64), st.integers(1, 4))
def test_the_rule_and_the_plan_are_of_one_mind_about_queueing(users: int, seqs: int | None, ranks: int) -> None:
    made = change(config(), bench__concurrency=users, parallel__max_num_seqs=seqs)
    made = change(made, parallel__data_parallel_size=ranks, parallel__data_parallel_size_local=1)
    by_rule = any(finding.rule == "R20" for finding in check.findings(made))
    limited = memory.queueing(made, memory.Fit(8192, 0.9, None))
    assert by_rule == (limited is not None)
    assert limited is None or limited.capacity == made.parallel.sequences


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**6) | st.sampled_from(["", "1", "auto", "True", "x y", "{}"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["enabled", "a", "method"]), inner),
    max_leaves=3,
)
SOME_FLAGS = st.sampled_from([
    "block_size", "speculative-config", "enforce-eager", "compilation-config.mode", "x", "no-x", "task",
    "prefill-context-parallel-size", "decode-context-parallel-size",
])  # fmt: skip
SOME_KEYS = st.sampled_from([
    "torchair_graph_config", "ascend_scheduler_config", "eplb_config", "enable_mlapo", "dynamic_eplb", "x",
])  # fmt: skip
SOME_VARIABLES = st.sampled_from([
    "OMP_NUM_THREADS", "VLLM_USE_V1", "VLLM_ASCEND_ENABLE_NZ", "VLLM_ENGINE_READY_TIMEOUT_S", "HCCL_X", "A=B",
])  # fmt: skip


@given(
    st.sampled_from(releases()),
    st.sampled_from(["vllm_ascend", "simulator", "vllm_cpu"]),
    st.dictionaries(SOME_FLAGS, VALUES, max_size=3),
    st.dictionaries(SOME_KEYS, VALUES, max_size=3),
    st.dictionaries(SOME_VARIABLES, VALUES, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_whatever_is_asked_the_answer_is_findings(
    name: str, engine: str, flags: dict[str, Any], extras: dict[str, Any], variables: dict[str, Any]
) -> None:
    made = change(
        config(*OLD),
        engine__release=name,
        engine__name=engine,
        engine__args=flags,
        engine__additional_config=extras,
        engine__env=variables,
    )
    for one in (made, migrate(made)[0]):
        found_here = check.findings(one, memory=True)
        assert [f.severity for f in found_here] == sorted(f.severity for f in found_here)
        if any(f.severity == "error" and f.rule != "R19" for f in found_here):
            with pytest.raises(ConfigError):
                checked(one)
        else:
            checked(one)


# --- the verb

POINTS = [
    ["experiment=article", "parallel.max_num_seqs=256"],
    ["experiment=article", "parallel.max_num_seqs=x"],
    ["experiment=article", "parallel.max_num_seqs=16384"],
]


def test_findings_of_all_points_at_once_errors_first() -> None:
    data = json.loads(json.dumps(verb.as_json(verb.judge(POINTS, composer), POINTS), default=str))
    assert data["points"] == 3
    severities = [one["severity"] for one in data["findings"]]
    assert severities == sorted(severities)
    assert (data["errors"], data["warnings"]) == (severities.count("error"), severities.count("warning"))
    by_rule = {(one["rule"], one["key"]): one["points"] for one in data["findings"]}
    assert by_rule["C1", "parallel.max_num_seqs"] == [POINTS[1]]  # it cannot even be composed
    assert by_rule["R5", "parallel.max_num_batched_tokens"] == [POINTS[2]]
    assert by_rule["E2", "hccl.connect_timeout"] == [POINTS[0], POINTS[2]]
    assert {"rule", "severity", "key", "value", "reason", "remedy", "source", "points"} == set(data["findings"][0])


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.__main__ import main

    assert main(["check", "experiment=demo"]) == 0
    assert capsys.readouterr().out == "1 point: 0 errors, 0 warnings\n"
    assert main(["check", "--json", "experiment=demo", "parallel.max_num_seqs=10000"]) == 2
    assert json.loads(capsys.readouterr().out)["errors"] == 1


NEWEST = [
    ("L3", {"engine__additional_config": {"enable_kvpp": True}}, "works without graphs only"),
    ("L3", {"engine__additional_config": {"enable_kvpp": True}, "engine__args": {"enforce-eager": True},
            "parallel__decode_context_parallel_size": 8}, "decode context parallel 8"),
    ("L4", {"parallel__prefill_context_parallel_size": 2}, "second model runner"),
    ("M2", {"parallel__max_model_len": 160_000}, "hang on A2"),
]  # fmt: skip
"""Rules of releases that may not be described here: what breaks them, and a part of the reason."""


@pytest.mark.parametrize(("name", "changes", "reason"), NEWEST)
def test_rules_of_the_newest_releases(name: str, changes: dict[str, Any], reason: str) -> None:
    made = config("model=glm_5_3_flash_w8a8", "cluster=slurm", "engine.release=0.23.0")
    [one] = [one for one in RULES if one.id == name]
    assert covers(one.releases, (0, 30, 0)) and not covers(one.releases, (0, 23, 0))
    assert reason in " ".join(problem.reason for problem in one.check(question(change(made, **changes))))
    assert not [*one.check(question(made))]
