"""Config to `vllm serve` command line. Pure; both ranks' lines come from one object."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import from_root
from jobs.core.layout import local_sizes, span
from jobs.engines.placement import Placement, first_data_parallel_rank

OWNED = {
    "headless": "the rank decides it",
    "data-parallel-start-rank": "it follows from the local sizes of the nodes",
    "data-parallel-address": "the address of the HCCL interface on the first host; cluster.master_address sets it",
    "data-parallel-rpc-port": "it derives from the job id; engine.data_parallel_rpc_port sets it",
    "data-parallel-rank": "each node runs the ranks that follow from the local sizes",
    "data-parallel-backend": "the ranks are Slurm tasks, not Ray actors",
    "data-parallel-hybrid-lb": "the head alone serves and balances; each node would serve its own ranks",
    "data-parallel-external-lb": "the head alone serves and balances; each rank would be a service of its own",
    "data-parallel-multi-port-external-lb": "the head alone serves and balances, on one port",
    "nnodes": "it follows from the NPUs that one data-parallel rank needs",
    "node-rank": "the rank decides it",
    "master-addr": "the address of the HCCL interface on the first host; cluster.master_address sets it",
    "master-port": "it derives from the job id; engine.data_parallel_rpc_port sets it",
    "host": "engine.host sets it",
    "port": "it derives from the job id; engine.port sets it",
}
"""Flags that the tool sets itself; a user value for them is an error."""

CONFIGURED = {
    "trust-remote-code": "model.trust_remote_code",
    "quantization": "model.quantization",
    "load-format": "model.load_format",
    "served-model-name": "model.served_model_name",
    "additional-config": "engine.additional_config",
    "data-parallel-size": "parallel.data_parallel_size",
    "data-parallel-size-local": "parallel.data_parallel_size_local",
    "tensor-parallel-size": "parallel.tensor_parallel_size",
    "enable-expert-parallel": "parallel.enable_expert_parallel",
    "max-model-len": "parallel.max_model_len",
    "max-num-batched-tokens": "parallel.max_num_batched_tokens",
    "max-num-seqs": "parallel.max_num_seqs",
    "decode-context-parallel-size": "parallel.decode_context_parallel_size",
    "prefill-context-parallel-size": "parallel.prefill_context_parallel_size",
    "block-size": "parallel.block_size",
    "gpu-memory-utilization": "parallel.gpu_memory_utilization",
    "enable-prefix-caching": "parallel.enable_prefix_caching",
    "seed": "parallel.seed",
}
"""Flags that have a config key of their own: setting them twice would hide one of the two values."""

HEAD_ONLY = ("api-server-count",)
"""Flags that vLLM refuses together with --headless: they are rendered for the head alone."""


def flag_name(key: str) -> str:
    """Return the canonical name of a flag: no dashes in front, no underscores, no `no-`."""
    return key.lstrip("-").replace("_", "-").removeprefix("no-")


def spelled(key: str, value: Any) -> tuple[str, Any]:
    """Return a flag as the rules and the command line know it: no dashes in front, `no-X: true` as `X: false`."""
    name = key.lstrip("-").replace("_", "-")
    if name.startswith("no-") and isinstance(value, bool):
        return name.removeprefix("no-"), not value
    return name, value


def check_args(args: Mapping[str, Any]) -> None:
    """Raise ConfigError where `engine.args` sets a flag that the tool owns, that has its own key, or twice."""
    seen: dict[str, str] = {}
    for key, value in args.items():
        name = flag_name(key)
        where = f"engine.args.{key}"
        if value is not None and (other := seen.setdefault(name, key)) != key:
            raise ConfigError(where, value, f"--{name} is set by engine.args.{other} too", "Remove one of them.")
        # vLLM takes abbreviated flags too (argparse): --data-parallel-addr would hide our value.
        name = next((owned for owned in OWNED if owned.startswith(name)), name)
        if name in OWNED:
            raise ConfigError(where, value, f"the tool owns --{name}: {OWNED[name]}", f"Remove {where}.")
        if name in CONFIGURED:
            raise ConfigError(where, value, f"--{name} has a key of its own", f"Set {CONFIGURED[name]} instead.")


def flags(config: Config, place: Placement) -> dict[str, Any]:
    """Return the flags of one rank by name, in the order of the article (sections 3.3 and 3.4); null: not emitted.

    Ranks differ only in --headless, --data-parallel-start-rank and, on uneven nodes, the local size.
    """
    return _flags(config, place, _one_rank(config, place) if span(config) > 1 else _data_parallel(config, place))


def settings(config: Config) -> dict[str, Any]:
    """Return the flags that are the same on every rank, by name; also for a layout that cannot be."""
    everywhere = Placement(0, 1, "", "", "", "", "")
    made = _flags(config, everywhere, {"data-parallel-size": config.parallel.data_parallel_size})
    return {name: value for name, value in made.items() if name not in OWNED}


def _flags(config: Config, place: Placement, ranks: Mapping[str, Any]) -> dict[str, Any]:
    model, engine, parallel = config.model, config.engine, config.parallel
    flags: dict[str, Any] = {
        "host": engine.host,
        "port": place.api_port,
        "trust-remote-code": model.trust_remote_code or None,
        "served-model-name": model.served_model_name,
        "load-format": model.load_format,
    }
    if place.role == "headless":
        flags["headless"] = True
    flags |= {
        "gpu-memory-utilization": parallel.gpu_memory_utilization,
        "enable-prefix-caching": parallel.enable_prefix_caching,
        "max-model-len": parallel.max_model_len,
        "max-num-batched-tokens": parallel.max_num_batched_tokens,
        "max-num-seqs": parallel.max_num_seqs,
        **ranks,
        "tensor-parallel-size": parallel.tensor_parallel_size,
        "decode-context-parallel-size": parallel.decode_context_parallel_size,
        "prefill-context-parallel-size": parallel.prefill_context_parallel_size,
        "block-size": parallel.block_size,
        "seed": parallel.seed,
        "enable-expert-parallel": parallel.enable_expert_parallel or None,
        "quantization": model.quantization,
        "additional-config": engine.additional_config or None,
    }
    given = dict(spelled(key, value) for key, value in engine.args.items())
    return flags | {name: value for name, value in given.items() if place.role == "head" or name not in HEAD_ONLY}


def argv(config: Config, place: Placement) -> list[str]:
    """Return the command line of one rank."""
    program = [sys.executable if part == "{python}" else from_root(part) for part in config.engine.command]
    return [*program, "serve", from_root(config.model.path), *rendered(flags(config, place))]


def rendered(flags: Mapping[str, Any]) -> list[str]:
    """Return flags by name as they stand on a command line."""
    return [part for name, value in flags.items() for part in _flag(name, value)]


def _data_parallel(config: Config, place: Placement) -> dict[str, Any]:
    """Return the flags with which the data-parallel ranks of all nodes find each other."""
    flags: dict[str, Any] = {
        "data-parallel-size": config.parallel.data_parallel_size,
        "data-parallel-size-local": local_sizes(config)[place.rank],
    }
    if place.role == "headless":
        flags["data-parallel-start-rank"] = first_data_parallel_rank(config, place.rank)
    return flags | {"data-parallel-address": place.master_address, "data-parallel-rpc-port": place.rpc_port}


def _one_rank(config: Config, place: Placement) -> dict[str, Any]:
    """Return the flags of one data-parallel rank over several nodes (vLLM, --nnodes: multi-node mp executor)."""
    return {
        "nnodes": span(config),
        "node-rank": place.rank,
        "master-addr": place.master_address,
        "master-port": place.rpc_port,
    }


def _flag(name: str, value: Any) -> list[str]:
    """Render one flag: null nothing, true --x, false --no-x, a list one flag with many values, a mapping JSON."""
    if value is None:
        return []
    if value is True:
        return [f"--{name}"]
    if value is False:
        return [f"--no-{name}"]
    if isinstance(value, Mapping):
        return [f"--{name}", json.dumps(value, separators=(",", ":"))]
    if isinstance(value, list | tuple):
        return [f"--{name}", *(str(item) for item in value)]
    return [f"--{name}", str(value)]
