"""What a search sets by itself: `auto` is derived from the other settings, `speculation` is short for a mapping."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import override_parts
from jobs.core.rundir import Root
from jobs.engines.ascend import version
from jobs.engines.ascend.mc2 import advised_buffsize
from jobs.engines.ascend.memory import DEFAULT_BUFFSIZE
from jobs.engines.checkpoint.architecture import required
from jobs.engines.prediction import GIB
from jobs.engines.speculation import speculation_of
from jobs.forecast import history, observed
from jobs.forecast.learn import Predicted
from jobs.forecast.memory import Fit
from jobs.forecast.search import limits_of

SPECULATION = "speculation"
"""Tokens that are drafted for a step, by the preset's method, or else by multi-token prediction; 0: none are."""

LOAD = "bench.concurrency"

AROUND = ("auto/2", "auto", "auto*2")
"""Loads of each setting where its load is derived: the forecast may be off, and a further load costs windows alone."""

LOADS = tuple(2**step for step in range(11))
"""Loads among which `auto` chooses."""

GRAPHS_GIB = 2.0
"""What graphs take beyond the utilization from 0.23 on, at most (jobs/engines/ascend/memory.py)."""

HIGHEST = 0.95
"""Utilization above which an idle NPU, which has up to 3.5 of its 64 GB in use, is refused (jobs/core, Thresholds)."""


def drafting(tokens: object, base: Config) -> str:
    """Return the override that drafts so many tokens. ConfigError: it is no number of tokens."""
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        raise ConfigError("tune.space", f"{SPECULATION}: {tokens}", "a number of tokens is needed", "Write 0, 1, ...")
    key, asked = "engine.args.speculative-config", speculation_of(base)
    if tokens == 0:
        return f"{key}=null"
    method = asked.method if asked and asked.method else "mtp"
    return f"{key}={{method:{method},num_speculative_tokens:{tokens}}}"


@dataclass(frozen=True)
class Known:
    """What is forecast under one `results.root`: `fit`: the memory of a service; `predict`: the figures of a point."""

    fit: Callable[[Config], Fit]
    predict: Callable[[Config, Fit], Mapping[str, Predicted]]

    @classmethod
    def of(cls, root: Root) -> Known:
        """Return what is known there."""
        memory = history.forecaster(root)
        return cls(lambda config: memory(config).fit, observed.forecaster(root))


def _buffsize(config: Config, known: Known) -> str:
    """Return what MC2 needs, and never less than the preset has (jobs/engines/ascend/mc2.py)."""
    return str(advised_buffsize(config, required(config), config.hccl.buffsize or DEFAULT_BUFFSIZE))


def _utilization(config: Config, known: Known) -> str:
    """Return the largest share that leaves room for what the memory forecast may be wrong by, and for graphs."""
    fit = known.fit(config)
    made = fit.prediction
    if made is None or not made.device_bytes:
        reason = f"the memory of this engine is not forecast{f': {fit.unknown}' if fit.unknown else ''}"
        raise ConfigError("tune.space", "parallel.gpu_memory_utilization: auto", reason, "Give its values.")
    graphs = GRAPHS_GIB * GIB if version(config.engine.release) >= (0, 23) else 0.0
    share = 1 - (made.uncertainty_bytes + graphs) / made.device_bytes
    return f"{math.floor(min(share, HIGHEST) * 100) / 100:.2f}"


def around(value: str, mark: str, config: Config) -> str:
    """Return a derived value, or half or double of it (AROUND): no more than runs at once."""
    if mark.endswith("/2"):
        return str(max(1, int(value) // 2))
    return str(min(2 * int(value), config.parallel.sequences or 2 * int(value))) if mark.endswith("*2") else value


def _concurrency(config: Config, known: Known) -> str:
    """Return the largest load of LOADS at which the forecast keeps the limits of `bench.slo`; the least: none does."""
    limits, fit = limits_of(config), known.fit(config)
    if not limits:
        raise ConfigError("tune.space", "bench.concurrency: auto", "there is no limit to keep", "Set bench.slo.")
    kept = LOADS[0]
    for load in (one for one in LOADS if one <= (config.parallel.sequences or one)):
        said = known.predict(replace(config, bench=replace(config.bench, concurrency=load)), fit)
        if any(name not in said or said[name].value > limit for name, limit in limits):
            break
        kept = load
    return str(kept)


AUTO: Mapping[str, Callable[[Config, Known], str]] = {
    "hccl.buffsize": _buffsize,
    "parallel.gpu_memory_utilization": _utilization,
    LOAD: _concurrency,
}
"""What is derived, in this order: the memory depends on the buffers, and the load on the memory."""


def usual(overrides: Sequence[str], space: Collection[str], base: Config) -> list[str]:
    """Return what a search sets where nobody did: a length that holds the requests, a load that keeps the limits."""
    said = {override_parts(text)[0] for text in overrides}
    given, bench, found = {*said, *space}, base.bench, []
    needed = bench.input_tokens + bench.output_tokens
    if "parallel.max_model_len" not in given and base.parallel.max_model_len < needed:
        found.append(f"parallel.max_model_len={-(-needed // 1024) * 1024}")
    load = {LOAD, "bench.request_rate", "bench.search"}
    if not (given & load) and limits_of(base) and not bench.is_open and not bench.search and not bench.is_external:
        found.append(f"{LOAD}=auto")
    return found
