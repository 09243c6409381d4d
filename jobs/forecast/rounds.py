"""About how many requests a window will hold, told before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

from jobs.core.config import Config
from jobs.engines.base import Finding, engine_of
from jobs.engines.prediction import Layout
from jobs.engines.steptime import Constants, Sizes, StepTime
from jobs.forecast.demand import demand_of, hardware_constants, sizes_of
from jobs.forecast.figures import Demand, figures
from jobs.measure import arrivals, queueing, rounds
from jobs.measure.statistics import enough


def answer_seconds(config: Config) -> float | None:
    """Predict how long a request of a closed loop takes to its last token, s; None: nothing is known."""
    if not engine_of(config).traits.npus or config.bench.concurrency is None:
        return None
    load = demand_of(config)
    if load is None:
        return None
    constants, layout = hardware_constants(config), Layout.of(config)
    return _seconds(sizes_of(config), constants, layout, config.cluster.npus_per_node, load)


@lru_cache(10_000)
def _seconds(sizes: Sizes, constants: Constants, layout: Layout, npus_per_node: int, load: Demand) -> float:
    """The same for a load on a service, of which points of a sweep that differ in neither need one sum."""
    made = figures(StepTime(sizes, constants, layout, npus_per_node=npus_per_node), load)
    return made.ttft_s + made.tpot_s * (load.output - 1)


def few_requests(config: Config) -> Iterator[Finding]:
    """Yield that a window will hold few requests, with the length of one that holds enough."""
    bench = config.bench
    if bench.is_external or bench.num_requests or bench.workload == "trace":
        return
    if bench.request_rate:
        count = arrivals.count(bench)
        seconds = math.ceil(queueing.ENOUGH / bench.request_rate / 10) * 10
        if not enough(count, 99):
            reason = f"about {count} requests come in the window: too few for a p99, and to tell a queue that grows"
            remedy = f"bench.window_s={seconds} holds {queueing.ENOUGH}, which is enough for both."
            yield Finding("C4", "warning", "bench.window_s", bench.window_s, reason, remedy, "docs/measuring.md")
    elif (each := answer_seconds(config)) and (words := rounds.few(bench.window_s, each)):
        reason = f"a request takes about {each:.0f} s, so there are {words}"
        remedy = "Lengthen it; with fewer, rates still hold, but one slow answer moves them."
        yield Finding("C4", "warning", "bench.window_s", bench.window_s, reason, remedy, "docs/measuring.md")
