"""The client as the subject: whether it was the service that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.engines.base import engine_of
from jobs.measure.gate.case import Case, Finding, Found
from jobs.measure.heartbeat import PERIOD_S
from jobs.measure.statistics import enough

CPU_LIMIT, CPU_NOTED = 0.95, 0.7
"""Processor share of the client, one event loop: near 1 the client was measured."""

STOOD_S = 1.0
"""A client that stood still for so long was stopped: what came meanwhile has no time of its own."""

STARVED_S = 0.02
"""Lateness (p99) below which it is the turn of other streams in the same loop, or of the machine."""

STARVED_FOR_S = 1.0
"""A client is starved where all its late moments come to so much: the p99 of a short window is one hiccup."""

STARVED_SHARE, NOTED_SHARE = 0.5, 0.1
"""Lateness (p99) against the gap between tokens (p50): an invalid share and a noted one."""

NOTED_S = 0.005


def kept_time(case: Case) -> Found:
    """Whether stamps were taken when answers came, and requests sent when they were due."""
    lags, lag_ms, itl_ms = case.window.lags, case.figures["client_lag_ms_p99"], case.figures["itl_ms_p50"] or 0.0
    if not len(lags) or lag_ms is None:
        return
    limit_ms = max(STARVED_S * 1e3, STARVED_SHARE * itl_ms)
    late_s = float((lags * 1e3 > limit_ms).sum()) * PERIOD_S
    sent_ms = _late_sends_ms(case)
    if (longest := float(lags.max())) > STOOD_S:
        yield Finding(f"the client stood still for {longest:.2g} s: its stamps are its own, not the service's", True)
    elif lag_ms > limit_ms and late_s >= STARVED_FOR_S:
        words = f"the client was starved of its processor: it was up to {lag_ms:.3g} ms late (p99)"
        # An engine that computes on the processors takes them from its client at every step: there it is a note.
        traits = engine_of(case.config).traits
        invalid = traits.npus or traits.simulated
        yield Finding(f"{words}, so its stamps are its own, not the service's", invalid)
    elif sent_ms > limit_ms:
        yield Finding(
            f"the client was starved of its processor: it sent requests up to {sent_ms:.3g} ms late (p99)", True
        )
    elif lag_ms > max(NOTED_S * 1e3, NOTED_SHARE * itl_ms):
        yield Finding(f"the client was up to {lag_ms:.3g} ms late (p99): so far its stamps may be off")
    elif longest > STOOD_S / 2:
        yield Finding(f"the client stood still for {longest:.2g} s: the slowest latencies may be its own")


def _late_sends_ms(case: Case) -> float:
    """Return how late requests were sent (p99), ms; 0 where nothing is due or has to wait for a slot, or of too few."""
    bench = case.config.bench
    if bench.request_rate is None or bench.concurrency is not None or not enough(len(case.counted), 99):
        return 0.0
    return float(np.percentile([record.wait_s for record in case.counted], 99)) * 1e3


def busy(figures: Mapping[str, Any]) -> Found:
    """The client's own processor."""
    share = figures["client_cpu_share"] or 0.0
    if share > CPU_LIMIT:
        yield Finding(f"the client used {share:.0%} of its processor: it was measured, not the service", True)
    elif share > CPU_NOTED:
        yield Finding(f"the client used {share:.0%} of one processor")
