"""MC2, the fused dispatch and combine of experts: how many tokens of a step it takes, and the buffer that they need.

**Capacity.** MC2 is prepared for a number of tokens of one data-parallel rank; a step with more of them reaches its
experts by all-gather (vllm-ascend, ascend_forward_context.py, set_mc2_tokens_capacity). With graphs that is the largest
size that is captured, else the largest decode step, max_num_seqs x (1 + draft tokens), of which 512 at most.
What vLLM captures by itself is twice the largest decode step, 512 at most (vllm 0.13.0, config/vllm.py); vllm-ascend
0.18 took the factor of two away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.core.config import Config
from jobs.engines.ascend import as_mapping, version
from jobs.engines.checkpoint.architecture import Architecture

MC2_RANKS = 16
"""MC2 needs an expert-parallel group of at least this size on A2 (vllm-ascend, ascend_forward_context.py)."""

MC2_TOKENS = 512
"""Most tokens of one step that MC2 is prepared for where no sizes are given (same place)."""

_EAGER = ("0", "NONE")
"""Compilation modes, and graph modes, without graphs."""


def mc2_capacity(config: Config, release: str) -> int | None:
    """Return the tokens of one step up to which MC2 is used; None: `parallel.max_num_seqs` is not given.

    Args:
        config: its graph sizes are those that the caller or a preset gave, if any.
        release: of vllm-ascend. 0.9.1 has no capacity: its largest decode step stands for it.
    """
    step = decode_tokens(config)
    largest = _largest_capture(config) if version(release) >= (0, 11) and not _eager(config) else None
    if largest is None:
        if step is None:
            return None
        doubled = (0, 13) <= version(release) < (0, 18) and not _eager(config)
        largest = min(step * (2 if doubled else 1), MC2_TOKENS)
    tp, batched = config.parallel.tensor_parallel_size, config.parallel.max_num_batched_tokens
    return _round_up(min(largest, batched or largest), tp)


def expert_ranks(config: Config) -> int:
    """Return the NPUs over which experts are cut: those of all data, tensor and prefill context parallel ranks."""
    p = config.parallel
    return p.data_parallel_size * p.tensor_parallel_size * (p.prefill_context_parallel_size or 1)


def decode_tokens(config: Config) -> int | None:
    """Return the tokens of the largest decode step of one data-parallel rank: one and the drafts of each sequence."""
    seqs = config.parallel.max_num_seqs
    return None if seqs is None else seqs * (1 + draft_tokens(_inside(config, "speculative-config")))


def draft_tokens(speculative: Mapping[str, Any]) -> int:
    """Return `num_speculative_tokens` of a --speculative-config; 0 where there is none."""
    value = speculative.get("num_speculative_tokens")
    return value if type(value) is int else 0


def mc2_buffer_mb(arch: Architecture, *, tp: int, ep: int, tokens: int) -> int:
    """Return the HCCL_BUFFSIZE in MB that MC2's dispatch and combine need.

    The formula is that of the A3 tiling (vllm-ascend issue 5287); A2's is not published.

    Args:
        tokens: `mc2_capacity`.
    """
    share = _round_up(tokens, tp) // tp
    experts, width = -(-arch.experts // ep), 2 * arch.hidden
    shared = arch.shared_size // arch.expert_size if arch.expert_size else 0
    dispatch = share * ep * experts * _round_up(_round_up(width, 32) + 64, 512)
    combine = (arch.experts_per_token + shared) * share * _round_up(width, 512)
    return -(-2 * (dispatch + combine) // 2**20)


def advised_buffsize(config: Config, arch: Architecture, recipe: int) -> int:
    """Return the HCCL_BUFFSIZE in MB to set: the recipe's, or what MC2 needs for this config, in steps of 64."""
    p, ranks = config.parallel, expert_ranks(config)
    tokens = mc2_capacity(config, config.engine.release)
    if not (arch.experts and p.enable_expert_parallel and tokens) or ranks < MC2_RANKS:
        return recipe
    needed = mc2_buffer_mb(arch, tp=p.tensor_parallel_size, ep=ranks, tokens=tokens)
    return recipe if needed <= recipe else _round_up(needed, 64)


def _largest_capture(config: Config) -> int | None:
    """Return the largest graph size that is given, in any of the spellings that vLLM takes; None: there is none."""
    flags, inside = _flags(config), _inside(config, "compilation-config")
    names = ("cudagraph_capture_sizes", "max_cudagraph_capture_size", "cuda_graph_sizes")
    found = [place.get(name) for name in names for place in (inside, flags)]
    sizes = [one for value in found for one in (value if isinstance(value, list | tuple) else [value])]
    return max((one for one in sizes if type(one) is int and one > 0), default=None)


def _eager(config: Config) -> bool:
    """Whether no graphs are captured."""
    inside = _inside(config, "compilation-config")
    modes = [str(inside[name]) for name in ("cudagraph_mode", "mode") if inside.get(name) is not None]
    return str(_flags(config).get("enforce_eager")).lower() == "true" or any(mode in _EAGER for mode in modes)


def _flags(config: Config) -> dict[str, Any]:
    """Return the flags that are given, with underscores."""
    return {key.lstrip("-").replace("-", "_"): value for key, value in config.engine.args.items() if value is not None}


def _inside(config: Config, flag: str) -> dict[str, Any]:
    """Return what a flag that takes a mapping says: as a mapping, as JSON, or as `--flag.name value`."""
    flags, name = _flags(config), flag.replace("-", "_")
    dotted = {key.partition(".")[2]: one for key, one in flags.items() if key.startswith(f"{name}.")}
    return {**as_mapping(flags.get(name)), **dotted}


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
