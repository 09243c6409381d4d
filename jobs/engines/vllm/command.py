"""Config to `vllm serve` command line. Pure; both ranks' lines come from one object."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.core import masking
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import from_root
from jobs.core.foreign import from_yaml
from jobs.core.layout import Placement, local_sizes, span, start_rank

OWNED: dict[str, str]
CONFIGURED: dict[str, str]
OWNED, CONFIGURED = from_yaml(Path(__file__).with_name("flags.yaml").read_text(encoding="utf-8")).values()

SECRETS = {"api-key": "engine.api_key=auto makes a key for each service", "hf-token": "set engine.env.HF_TOKEN"}
"""Flags whose value is a secret, and where it goes instead."""

EVERYWHERE = "0.0.0.0"
"""Where all ranks are on one host (cluster=local), nobody else is to reach the API unless engine.host says so."""

HEAD_ONLY = ("api-server-count",)
"""Flags that vLLM refuses together with --headless: they are rendered for the head alone."""


def flag_name(key: str) -> str:
    """Return the canonical name of a flag: no dashes in front, no underscores, no `no-`."""
    return key.lstrip("-").replace("_", "-").removeprefix("no-")


def spelled(key: str, value: Any) -> tuple[str, Any]:
    """Return a flag as the rules and the command line know it: no dashes in front, `no-X: true` as `X: false`."""
    flag, dot, inside = key.lstrip("-").partition(".")
    name = flag.replace("_", "-") + dot + inside  # vLLM has dashes before the first dot only
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
        if secret := next((flag for flag in SECRETS if len(name) > 2 and flag.startswith(name)), None):
            reason = "everybody on the node sees a command line"
            raise ConfigError(where, masking.MASK, reason, f"Remove it: {SECRETS[secret]}.")
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
    return _flags(config, place, _ranks(config, place))


def settings(config: Config) -> dict[str, Any]:
    """Return the flags that are the same on every rank, by name; also for a layout that cannot be."""
    everywhere = Placement(0, 1, "", "", "", "", "")
    made = _flags(config, everywhere, {"data-parallel-size": config.parallel.data_parallel_size})
    return {name: value for name, value in made.items() if name not in OWNED}


def _flags(config: Config, place: Placement, ranks: Mapping[str, Any]) -> dict[str, Any]:
    model, engine, parallel = config.model, config.engine, config.parallel
    flags: dict[str, Any] = {
        "host": place.local if config.cluster.on_loopback and engine.host == EVERYWHERE else engine.host,
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
        "pipeline-parallel-size": parallel.pipeline_parallel_size,
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


def _ranks(config: Config, place: Placement) -> dict[str, Any]:
    """Return the flags with which the data-parallel ranks of all nodes, or the nodes of one rank, find each other."""
    if span(config) > 1:  # vLLM, --nnodes: multi-node mp executor
        own = {"nnodes": span(config), "node-rank": place.rank}
        return {**own, "master-addr": place.master_address, "master-port": place.rpc_port}
    sizes = local_sizes(config)
    flags: dict[str, Any] = {
        "data-parallel-size": config.parallel.data_parallel_size,
        "data-parallel-size-local": sizes[place.rank],
    }
    if place.role == "headless":
        flags["data-parallel-start-rank"] = start_rank(sizes, place.rank)
    return flags | {"data-parallel-address": place.master_address, "data-parallel-rpc-port": place.rpc_port}


def _flag(name: str, value: Any) -> list[str]:
    """Render one flag: null nothing, true --x, false --no-x, a list one flag with many values, a mapping JSON."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        return [f"--{name}", json.dumps(value, separators=(",", ":"))]
    return [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
