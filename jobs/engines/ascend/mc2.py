"""MC2, the fused dispatch and combine of experts: how many tokens of a step it takes, and the buffer that they need.

**Capacity.** MC2 is prepared for a number of tokens of one data-parallel rank; a step with more of them reaches its
experts by all-gather (vllm-ascend, ascend_forward_context.py, set_mc2_tokens_capacity). With graphs that is the largest
size that is captured, else the largest decode step, max_num_seqs x (1 + draft tokens), of which 512 at most.
What is captured by itself is the largest decode step, 512 at most, in every release from 0.13 on. From 0.23 on the cap
without graphs is 512 tokens of a tensor-parallel rank, and with `enable_prefill_mc2` the capacity is a whole step,
max_num_batched_tokens. The real code says the same (tests/conformance).
"""

from __future__ import annotations

from jobs.core.config import Config
from jobs.engines.ascend import mapping_of, version
from jobs.engines.checkpoint.architecture import Architecture
from jobs.engines.prediction import Layout
from jobs.engines.speculation import given_flags, speculation_of

MC2_RANKS = 16
"""MC2 needs an expert-parallel group of at least this size on A2 (vllm-ascend, ascend_forward_context.py)."""

MC2_TOKENS = 512
"""Most tokens of one step that MC2 is prepared for where no sizes are given (same place)."""

_EAGER = ("0", "NONE")
"""Compilation modes, and graph modes, without graphs."""


def mc2_capacity(config: Config, release: str) -> int | None:
    """Return the tokens of one step up to which MC2 is used; None: `parallel.max_num_seqs` is not given.

    The config's graph sizes are those that the caller or a preset gave, if any. 0.9.1 has no capacity: its largest
    decode step stands for it.
    """
    step, at, tp = decode_tokens(config), version(release), config.parallel.tensor_parallel_size
    batched, eager = config.parallel.max_num_batched_tokens, _eager(config)
    most = MC2_TOKENS * (tp if at >= (0, 23) else 1)
    if at >= (0, 23) and batched and (config.engine.additional_config or {}).get("enable_prefill_mc2") is True:
        return min(_round_up(batched, tp), most)
    largest = _largest_capture(config) if at >= (0, 11) and not eager else None
    if largest is None:
        if step is None:
            return None
        largest = min(step, MC2_TOKENS if not eager else most)
    return _round_up(min(largest, batched or largest), tp)


def decode_tokens(config: Config) -> int | None:
    """Return the tokens of the largest decode step of one data-parallel rank: one and the drafts of each sequence."""
    seqs, drafted = config.parallel.max_num_seqs, speculation_of(config)
    return None if seqs is None else seqs * (1 + ((drafted and drafted.tokens) or 0))


def mc2_buffer_mb(arch: Architecture, *, tp: int, ep: int, tokens: int) -> int:
    """Return the HCCL_BUFFSIZE in MB that MC2's dispatch and combine need for so many `tokens` (`mc2_capacity`).

    The formula is that of the A3 tiling (vllm-ascend issue 5287); A2's is not published.
    """
    share = _round_up(tokens, tp) // tp
    experts, width = -(-arch.experts // ep), 2 * arch.hidden
    shared = arch.shared_size // arch.expert_size if arch.expert_size else 0
    dispatch = share * ep * experts * _round_up(_round_up(width, 32) + 64, 512)
    combine = (arch.experts_per_token + shared) * share * _round_up(width, 512)
    return -(-2 * (dispatch + combine) // 2**20)


def hierarchical_buffer_mb(arch: Architecture, tokens: int) -> int:
    """Return the HCCL_BUFFSIZE in MB that hierarchical dispatch and combine need for so many tokens of a step and NPU.

    The formula is that of A3's tiling (CANN, moe_distribute_combine_v2_tiling.cpp, as its own error line writes it,
    where they are `maxBs`).
    """
    token = 2 * arch.hidden + 4 * (3 * (arch.experts_per_token + 7) // 8 * 8) + 64
    return -(-(arch.experts * tokens * token + 404 * 2**20) // 2**20)


def advised_buffsize(config: Config, arch: Architecture, recipe: int) -> int:
    """Return the HCCL_BUFFSIZE in MB to set: the recipe's, or what MC2 needs for this config, in steps of 64."""
    p, ranks = config.parallel, Layout.of(config).npus
    tokens = mc2_capacity(config, config.engine.release)
    if not (arch.experts and p.enable_expert_parallel and tokens) or ranks < MC2_RANKS:
        return recipe
    needed = mc2_buffer_mb(arch, tp=p.tensor_parallel_size, ep=ranks, tokens=tokens)
    return recipe if needed <= recipe else _round_up(needed, 64)


def _largest_capture(config: Config) -> int | None:
    """Return the largest graph size that is given, in any of the spellings that vLLM takes; None: there is none."""
    flags = given_flags(config)
    inside = mapping_of(flags, "compilation_config")
    names = ("cudagraph_capture_sizes", "max_cudagraph_capture_size", "cuda_graph_sizes")
    found = [place.get(name) for name in names for place in (inside, flags)]
    sizes = [one for value in found for one in (value if isinstance(value, list | tuple) else [value])]
    return max((one for one in sizes if type(one) is int and one > 0), default=None)


def _eager(config: Config) -> bool:
    """Whether no graphs are captured."""
    flags = given_flags(config)
    inside = mapping_of(flags, "compilation_config")
    modes = [str(inside[name]) for name in ("cudagraph_mode", "mode") if inside.get(name) is not None]
    return str(flags.get("enforce_eager")).lower() == "true" or any(mode in _EAGER for mode in modes)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
