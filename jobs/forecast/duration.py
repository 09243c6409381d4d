"""Seconds: what a plan predicts for each phase of a service. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.core.config import Bench, Config, usual_windows
from jobs.engines.base import engine_of
from jobs.forecast.history import PastRuns

START_S = 120.0
"""Seconds of an engine start that do not depend on the weights: imports, graph capture, warm-up."""

DRAIN = 0.25
"""Share of the window that the drain is taken to last."""


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
    """Predict the phases of one service.

    Args:
        configs: of its points.
        past: what earlier runs of the same model and layout took; the longest of the last few counts.
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


def _window_seconds(bench: Bench) -> float:
    """Predict seconds of all windows of a point; a fixed number of requests takes what its rate needs."""
    if bench.num_requests and bench.request_rate:
        return usual_windows(bench) * bench.num_requests / bench.request_rate
    return usual_windows(bench) * bench.window_s
