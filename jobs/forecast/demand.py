"""From a config to what the model of time asks for: the load of a point, and the step of its service. Pure."""

from __future__ import annotations

from jobs.core.config import Config
from jobs.core.load import USUAL_CONCURRENCY
from jobs.engines.base import engine_of
from jobs.engines.checkpoint.architecture import architecture_of
from jobs.engines.simulator.roofline import constants
from jobs.engines.simulator.settings import hardware
from jobs.engines.speculation import speculation_of
from jobs.engines.steptime import Constants, Sizes
from jobs.forecast.figures import Demand

KNOWN = ("random", "shared_prefix", "needle", "text")
"""Workloads whose requests are as long as `bench.input_tokens` and `bench.output_tokens` on average."""

BATCHED = 2048
"""Tokens of one step where no number is set (vLLM's own default)."""

SLOTS = 256
"""Sequences of one step where no number is set (vLLM's own default)."""


def hardware_constants(config: Config) -> Constants:
    """Return what the machine costs as far as it is known without a measurement of one's own.

    Raises:
        ConfigError: `engine.rehearsal.hardware` names none.
    """
    simulated = engine_of(config).traits.simulated
    return constants(hardware(config.engine.rehearsal.hardware) if simulated else hardware())


def sizes_of(config: Config) -> Sizes:
    """Return the sizes of a model; of a rehearsal those that it is told (jobs/engines/simulator/settings.py)."""
    arch = architecture_of(config)
    if engine_of(config).traits.simulated and not (arch and arch.experts):
        arch = None
    return Sizes.of(config.model.shape, arch)


def demand_of(config: Config, kv_tokens: int | None = None) -> Demand | None:
    """Return the load of a point; None: its requests are not known beforehand.

    `kv_tokens`: predicted KV cache of one data-parallel rank; None: it limits nothing.
    """
    bench, parallel = config.bench, config.parallel
    if bench.workload not in KNOWN or bench.search:
        return None
    length = bench.input_tokens + bench.output_tokens
    slots = parallel.max_num_seqs or SLOTS
    if kv_tokens is not None:
        slots = max(1, min(slots, kv_tokens // length))
    drafted, rehearsal = speculation_of(config), config.engine.rehearsal
    tokens = (drafted.tokens or 1) if drafted else 0
    cached = bench.prefix_share if bench.workload == "shared_prefix" and parallel.enable_prefix_caching else 0.0
    most = float(slots * parallel.engines)
    fall = 0.5 ** (length / rehearsal.half_length) if rehearsal.half_length else 1.0
    return Demand(
        concurrency=float(bench.concurrency or (most if bench.is_open else USUAL_CONCURRENCY)),
        prompt=bench.input_tokens,
        output=bench.output_tokens,
        batched=parallel.max_num_batched_tokens or BATCHED,
        slots=slots,
        rate=bench.request_rate if bench.is_open else None,
        cached=cached,
        drafted=tokens,
        acceptance=rehearsal.acceptance * fall if tokens else 0.0,
        draft_cost=rehearsal.draft_cost,
        together=not engine_of(config).traits.simulated,
        replicas=parallel.replicas,
    )
