"""Seconds: what a plan predicts for each phase of a service, and which limit of the engine that meets. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.cluster.time_limit import SIGNAL_DELAY_S, limit_seconds
from jobs.core.config import Bench, Config, usual_windows
from jobs.engines.ascend import version
from jobs.engines.base import Finding, engine_of
from jobs.forecast.history import PastRuns

START_S = 120.0
"""Seconds of an engine start that do not depend on the weights: imports, graph capture, warm-up."""

DRAIN = 0.25
"""Share of the window that the drain is taken to last."""

_READY = "VLLM_ENGINE_READY_TIMEOUT_S"
_DEFAULT_S = 600
_SURE_S = 1800
"""Seconds that a large model is always given; `limits.load_s` may allow far more than any load takes."""

_LARGE_GIB = 100
_SOURCE = "vllm v1/engine/core_client.py; vllm-ascend issue 6847"


@dataclass(frozen=True)
class Phases:
    """Predicted seconds of one service; the queue is not in it. `source`: where those of load and teardown are from."""

    load: float
    warmup: float
    window: float
    drain: float
    teardown: float
    source: str

    @property
    def total(self) -> float:
        """All phases together, seconds."""
        return self.load + self.warmup + self.window + self.drain + self.teardown


def phases(configs: Sequence[Config], past: PastRuns | None = None) -> Phases:
    """Predict the phases of one service with these points.

    `past`: what earlier runs of the same model and layout took; the longest of the last few counts.
    """
    config = configs[0]
    learnt = past is not None and past.load_s != ()
    return Phases(
        load=max(past.load_s) if past and past.load_s else load_seconds(config),
        warmup=sum(usual_windows(one.bench) * one.bench.warmup_s for one in configs),
        window=sum(_window_seconds(one.bench) for one in configs),
        drain=sum(DRAIN * _window_seconds(one.bench) for one in configs),
        teardown=max(past.teardown_s) if past and past.teardown_s else teardown_seconds(config),
        source="past runs of this model and layout" if learnt else "size of the model and cluster.model_read_gb_s",
    )


def load_seconds(config: Config) -> float:
    """Predict seconds from start to ready: every node reads the whole checkpoint once, plus a fixed part."""
    if engine_of(config).traits.simulated:
        return config.engine.rehearsal.load_s + 2
    gib = config.model.shape.weight_gib
    return START_S + gib * 1.0737 / config.cluster.model_read_gb_s


def teardown_seconds(config: Config) -> float:
    """Predict seconds of the stop: at the most the time after which engines are killed."""
    return min(2.0, config.limits.stop_s) if engine_of(config).traits.simulated else config.limits.stop_s


def measure_seconds(config: Config) -> float:
    """Predict seconds of one point: for each of its windows warm-up, window, and a quarter of it for the drain."""
    bench = config.bench
    return usual_windows(bench) * bench.warmup_s + (1 + DRAIN) * _window_seconds(bench)


def point_seconds(config: Config) -> float:
    """Predict the seconds of one point and of the stop after it."""
    return measure_seconds(config) + config.limits.stop_s


def never_fits(config: Config, load_s: float) -> str | None:
    """Return why no job of this time limit can begin a service with this predicted load, seconds, or None."""
    limit = limit_seconds(config.cluster.time_limit)
    needed = load_s + point_seconds(config) + SIGNAL_DELAY_S
    if limit is None or needed <= limit:
        return None
    return (
        f"cluster.time_limit={config.cluster.time_limit} is too short for any point: load and first point need about "
        f"{load_s + point_seconds(config):.0f} s, and {SIGNAL_DELAY_S} s are kept for the end: give at least "
        f"{math.ceil(needed / 60)} minutes"
    )


def _window_seconds(bench: Bench) -> float:
    """Predict seconds of all windows of a point; a fixed number of requests takes what its rate needs."""
    if bench.num_requests and bench.request_rate:
        return usual_windows(bench) * bench.num_requests / bench.request_rate
    return usual_windows(bench) * bench.window_s


def load_limit(config: Config) -> Iterator[Finding]:
    """Yield that the engine's own limit may end a load of the predicted length, or one that `limits.load_s` allows.

    From vLLM 0.18 on a variable is the limit, 600 s by default. Before, several API servers wait 600 s, which cannot be
    changed, and a single one as long as it takes (vllm 0.11 and 0.13, v1/engine/core_client.py).
    """
    adjustable = version(config.engine.release) >= (0, 18)
    servers = str(config.engine.args.get("api-server-count") or 1)
    given = str(config.engine.env.get(_READY) or _DEFAULT_S) if adjustable else str(_DEFAULT_S)
    if not engine_of(config).traits.npus or not given.isdecimal() or not (adjustable or servers not in ("0", "1")):
        return
    needed, allowed = load_seconds(config), config.limits.load_s
    large = adjustable and config.model.shape.weight_gib >= _LARGE_GIB
    if needed > int(given):
        reason = f"the engine gives up a load after {given} s, and this one is predicted to take {needed:.0f} s"
    elif large and int(given) < min(allowed, _SURE_S):
        reason = f"the engine gives up a load after {given} s, though limits.load_s allows {allowed:.0f} s"
    else:
        return
    if adjustable:
        key, remedy = f"engine.env.{_READY}", f"Set +engine.env.{_READY}={max(allowed, 2 * needed):.0f}"
        value = config.engine.env.get(_READY)
        yield Finding("C5", "warning", key, value, reason, f"{remedy}, or correct cluster.model_read_gb_s.", _SOURCE)
    else:
        remedy = "Remove it: one API server waits as long as it takes. Or use release 0.18 or later."
        yield Finding("C5", "warning", "engine.args.api-server-count", servers, reason, remedy, _SOURCE)
