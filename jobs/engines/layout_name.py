"""Which services are of one layout: those whose memory, load time and spread between starts tell of each other's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from jobs.core.config import Config
from jobs.engines.ascend.memory import PARTITION, buffsize_of, loads_mtp
from jobs.engines.base import engine_of


def layout_of(config: Config) -> dict[str, Any]:
    """Return what memory and load time depend on beside lengths, limits and loads.

    Raises:
        ConfigError: a setting that the sum needs is not a number.
    """
    parallel, engine = config.parallel, config.engine
    layout: dict[str, Any] = {
        "engine": engine.name,
        "release": engine.release,
        "model": config.model.name,
        "load_format": config.model.load_format,
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "data_parallel_size": parallel.data_parallel_size,
        "enable_expert_parallel": parallel.enable_expert_parallel,
        "decode_context_parallel_size": parallel.decode_context_parallel_size,
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size,
        "max_num_batched_tokens": parallel.max_num_batched_tokens,
        "hccl_buffsize": buffsize_of(config),
        "mtp": loads_mtp(config),
    }
    if parallel.pipeline_parallel_size:
        layout |= {"pipeline": [parallel.pipeline_parallel_size, config.engine.env.get(PARTITION)]}
    if engine_of(config).traits.simulated:
        layout |= {"rehearsal": _digest(asdict(engine.rehearsal)), "shape": _digest(asdict(config.model.shape))}
    return layout


def layout_name(config: Config) -> str:
    """Return a short name of a config's layout. ConfigError: a setting that the sum needs is not a number."""
    return _digest(layout_of(config))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
