"""Experts: dispatch and combine between the NPUs, and their load balance (R16, R17, R22, R23, and MC2's buffer)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.engines.ascend.mc2 import MC2_RANKS, advised_buffsize, decode_tokens, expert_ranks, mc2_capacity
from jobs.engines.ascend.memory import DEFAULT_BUFFSIZE
from jobs.engines.ascend.rules.base import NPU, Problem, Question, is_true, rule

MC2_EXPERTS = 24
"""MC2 takes at most so many experts of one NPU on A2 (vllm-ascend, ascend_forward_context.py)."""


def fused_mc2(q: Question) -> tuple[str, Any]:
    """Return key and value of the fused MC2 setting, as a key or as a variable."""
    if "enable_fused_mc2" in q.additional:
        return "engine.additional_config.enable_fused_mc2", q.additional["enable_fused_mc2"]
    return "engine.env.VLLM_ASCEND_ENABLE_FUSED_MC2", q.env.get("VLLM_ASCEND_ENABLE_FUSED_MC2")


@rule("R16", "error", "0.9.1", "vllm-ascend v0.9.1, platform.py")
def dual_batch_and_mtp(q: Question) -> Iterator[Problem]:
    """Dual batch overlap does not work with multi-token prediction."""
    if is_true(q.env.get("VLLM_ASCEND_ENABLE_DBO")) and q.speculative:
        reason = "dual batch overlap does not work with multi-token prediction"
        yield Problem("engine.env.VLLM_ASCEND_ENABLE_DBO", "1", reason, "Remove it, or engine.args.speculative-config.")


@rule("R17", "error", ">=0.18", "vllm-ascend v0.18.0, platform.py")
def fused_and_hierarchical(q: Question) -> Iterator[Problem]:
    """Fused MC2 and hierarchical communication exclude each other."""
    pair = q.env.get("HCCL_INTRA_PCIE_ENABLE") == "1" and q.env.get("HCCL_INTRA_ROCE_ENABLE") == "0"
    hierarchical = pair or is_true(q.additional.get("enable_mc2_hierarchy_comm"))
    key, value = fused_mc2(q)
    if hierarchical and str(value) not in ("None", "0", "False", "false"):
        reason = "hierarchical communication is on (HCCL_INTRA_PCIE_ENABLE=1 with HCCL_INTRA_ROCE_ENABLE=0, or its key)"
        yield Problem(key, value, f"{reason}: the two exclude each other", "Set it to 0, or both variables to null.")


@rule("R22", "error", ">=0.13", "vllm-ascend v0.18.0, ascend_config.py, EplbConfig")
def dynamic_balance(q: Question) -> Iterator[Problem]:
    """Dynamic expert load balance needs its variable as well. (Unknown keys of eplb_config: see N4.)"""
    wanted = is_true(q.section("eplb_config").get("dynamic_eplb"))
    if wanted and not (is_true(q.env.get("DYNAMIC_EPLB")) or q.env.get("EXPERT_MAP_RECORD") == "true"):
        reason = "the engine also asks for the variable DYNAMIC_EPLB"
        key = "engine.additional_config.eplb_config.dynamic_eplb"
        yield Problem(key, True, reason, "Set +engine.env.DYNAMIC_EPLB='true'.")


@rule("R23", "warning", ">=0.11", "vllm-ascend v0.13.0, ascend_forward_context.py, select_moe_comm_method", NPU)
def without_mc2(q: Question) -> Iterator[Problem]:
    """On A2 MC2 is used for enough NPUs, few enough experts and tokens; else experts talk by all-gather."""
    p = q.config.parallel
    if not (q.arch and q.arch.experts and p.enable_expert_parallel):
        return
    ranks = expert_ranks(q.config)
    experts = -(-q.arch.experts // ranks)
    if ranks < MC2_RANKS or experts > MC2_EXPERTS:
        reason = (
            f"{ranks} NPUs with {experts} experts each: MC2 needs {MC2_RANKS} NPUs or more and {MC2_EXPERTS} experts "
            "or fewer, so experts are reached by the slower all-gather"
        )
        yield Problem("parallel.enable_expert_parallel", True, reason, "Use more NPUs, or expect lower throughput.")
        return
    step, capacity = decode_tokens(q.config), mc2_capacity(q.config, q.config.engine.release)
    if step is not None and capacity is not None and step > capacity:
        reason = (
            f"a full decode step has {step} tokens (sequences x (1 + draft tokens)) and MC2 takes {capacity}: "
            "steps above that reach the experts by the slower all-gather"
        )
        remedy = f"Lower it, or give a graph size of {step}, or expect lower throughput at full load."
        yield Problem("parallel.max_num_seqs", p.max_num_seqs, reason, remedy)


@rule("E3", "warning", "all", "vllm-ascend issues 5287 and 2674: HCCL_BUFFSIZE is too SMALL", NPU)
def mc2_buffer(q: Question) -> Iterator[Problem]:
    """MC2 needs a buffer that grows with the tokens of a step that it takes."""
    given, tokens = q.config.hccl.buffsize, mc2_capacity(q.config, q.config.engine.release)
    advised = advised_buffsize(q.config, q.arch, given or DEFAULT_BUFFSIZE) if q.arch else 0
    if advised > (given or DEFAULT_BUFFSIZE):
        reason = f"expert dispatch of {tokens} tokens a step needs up to {advised} MB (formula of A3)"
        yield Problem(
            "hccl.buffsize", given, reason, f"Set {advised}, or lower parallel.max_num_seqs, or the graph sizes."
        )


RULES = (dual_batch_and_mtp, fused_and_hierarchical, dynamic_balance, without_mc2, mc2_buffer)
