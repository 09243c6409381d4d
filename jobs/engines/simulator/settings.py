"""What the command line and the spec make together: the numbers that the rehearsal runs with.

The checks here are those of vLLM 0.9.1 and vllm-ascend 0.9.1 at start, with their words. Later releases have
other flags (jobs/engines/ascend/releases), and neither torchair nor the Ascend scheduler from 0.12 on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.engines.ascend import version
from jobs.engines.simulator.roofline import Layout
from jobs.engines.simulator.spec import RehearsalSpec


class StartError(Exception):
    """The engine does not start; the text is the exception that vLLM would print."""


@dataclass(frozen=True)
class Settings:
    """One rank's resolved settings; lengths in tokens.

    Attributes:
        names: served model names; the first one stands in answers and metrics.
        chunked_prefill: whether a prompt may be cut over several steps.
        local: data-parallel ranks of this process: `range(first, first + size)`.
    """

    model: str
    names: tuple[str, ...]
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    utilization: float
    prefix_caching: bool
    chunked_prefill: bool
    tensor_parallel: int
    data_parallel: int
    expert_parallel: bool
    headless: bool
    local: range
    rpc_address: tuple[str, int]
    http_address: tuple[str, int]
    api_key: str | None
    log_stats: bool
    access_log: bool
    uvicorn_level: str

    @property
    def local_only(self) -> bool:
        """Whether every data-parallel rank is in this process, so that no RPC port is needed."""
        return not self.headless and len(self.local) == self.data_parallel

    @property
    def layout(self) -> Layout:
        """How the model lies on the NPUs."""
        return Layout(self.tensor_parallel, self.data_parallel, self.expert_parallel)


def settle(args: argparse.Namespace, spec: RehearsalSpec, environment: Mapping[str, str]) -> Settings:
    """Resolve vLLM's defaults and check what vLLM checks before it starts an engine.

    Raises:
        StartError: with vLLM's words.
    """
    local = args.data_parallel_size if args.data_parallel_size_local is None else args.data_parallel_size_local
    _check_ranks(args, local, spec.npus_per_node)
    first = (args.data_parallel_start_rank or 0) if args.headless else 0
    extras = args.additional_config if version(spec.release) < (0, 12) else None
    chunked = args.enable_chunked_prefill is not False
    settings = Settings(
        model=args.model,
        names=tuple(args.served_model_name or (args.model,)),
        max_model_len=_length(args.max_model_len, spec),
        max_num_batched_tokens=args.max_num_batched_tokens or 2048,
        max_num_seqs=args.max_num_seqs or 256,
        block_size=args.block_size or 128,
        utilization=args.gpu_memory_utilization,
        prefix_caching=args.enable_prefix_caching is not False,
        chunked_prefill=chunked and not _whole_prompts(extras),
        tensor_parallel=args.tensor_parallel_size,
        data_parallel=args.data_parallel_size,
        expert_parallel=bool(args.enable_expert_parallel),
        headless=args.headless,
        local=range(first, first + local),
        rpc_address=(args.data_parallel_address or "127.0.0.1", args.data_parallel_rpc_port or 29550),
        http_address=(args.host or "", args.port),
        api_key=args.api_key or environment.get("VLLM_API_KEY") or None,
        log_stats=not args.disable_log_stats,
        access_log=not args.disable_uvicorn_access_log,
        uvicorn_level=args.uvicorn_log_level,
    )
    _check_lengths(settings, spec, chunked)
    _check_graph_mode(extras, eager=args.enforce_eager)
    return settings


def _check_ranks(args: argparse.Namespace, local: int, npus: int) -> None:
    size, tensor_parallel = args.data_parallel_size, args.tensor_parallel_size
    if args.enable_auto_tool_choice and not args.tool_call_parser:
        raise StartError("TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser")
    if args.headless and (args.api_server_count or 1) > 1:
        raise StartError("ValueError: api_server_count can't be set in headless mode")
    if args.headless and local <= 0:
        raise StartError("ValueError: data_parallel_size_local must be > 0 in headless mode")
    if local > size:
        raise StartError(f"ValueError: data_parallel_size_local ({local}) must be <= data_parallel_size ({size})")
    if local * tensor_parallel > npus:
        raise StartError(
            f"RuntimeError: Invalid device ID: {local} data parallel rank(s) of {tensor_parallel} NPUs "
            f"do not fit in the {npus} NPUs of this node"
        )


def _length(asked: int | None, spec: RehearsalSpec) -> int:
    """`--max-model-len`; not given, or -1 (auto, from 0.23 on): what the model was made for."""
    return asked if asked and asked > 0 else spec.shape.max_position_embeddings


def _section(additional_config: object, name: str) -> Mapping[str, Any]:
    section = additional_config.get(name) if isinstance(additional_config, dict) else None
    return section if isinstance(section, dict) else {}


def _whole_prompts(additional_config: object) -> bool:
    """Tell whether vllm-ascend's own scheduler runs, without chunked prefill (ascend_config.py, 0.9.1)."""
    section = _section(additional_config, "ascend_scheduler_config")
    return bool(section.get("enabled")) and not section.get("enable_chunked_prefill")


def _check_lengths(settings: Settings, spec: RehearsalSpec, chunked: bool) -> None:
    """Rules of vllm/config.py (SchedulerConfig, max_model_len) and vllm_ascend/core/schedule_config.py, 0.9.1."""
    derived = spec.shape.max_position_embeddings
    length, batched, seqs = settings.max_model_len, settings.max_num_batched_tokens, settings.max_num_seqs
    if length > derived:
        raise StartError(
            f"ValueError: User-specified max_model_len ({length}) is greater than the derived max_model_len "
            f"(max_position_embeddings={derived} or model_max_length=None in model's config.json). This may lead "
            "to incorrect model outputs or CUDA errors. To allow overriding this maximum, set the env var "
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"
        )
    if batched < seqs:
        raise StartError(
            f"ValueError: max_num_batched_tokens ({batched}) must be greater than or equal to max_num_seqs ({seqs})."
        )
    if batched < length and not settings.chunked_prefill:
        whose = "Ascend scheduler is enabled without chunked prefill feature. Argument " if chunked else ""
        raise StartError(
            f"ValueError: {whose}max_num_batched_tokens ({batched}) is smaller than max_model_len ({length}). "
            "This effectively limits the maximum sequence length to max_num_batched_tokens and makes vLLM reject "
            "longer sequences. Please increase max_num_batched_tokens or decrease max_model_len."
        )


def _check_graph_mode(extras: object, *, eager: bool) -> None:
    """Rule of check_ascend_config in vllm_ascend/ascend_config.py, 0.9.1."""
    if _section(extras, "torchair_graph_config").get("enabled") and eager:
        raise StartError(
            "RuntimeError: Can't enable graph mode and eager mode at the same time. Please set "
            "`enforce_eager=False` if you attempt to enable NPU graph mode."
        )
