"""What a load will show on a service: time to first token, time per token, tokens a second. Pure, by one step's time.

Of a closed loop `schedule` tells the steps, `StepTime` how long each lasts: with experts in common as long as that of
the busiest rank. Means are those of the requests after the first of each slot. An open loop runs so many requests at
once as its rate and its latency keep up (Little's law; bisection over closed loops), up to what a closed loop of all
slots would serve. A pipeline has as many batches under way as stages; the parts of a long prompt follow each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from jobs.engines.steptime import StepTime, Work
from jobs.forecast.schedule import Floats, Loop, Schedule, making_steps, schedule


@dataclass(frozen=True)
class Demand:
    """The load, and what of the service limits it.

    Attributes:
        concurrency: requests in flight; of an open loop the most.
        rate: of arrivals, 1/s; None: a closed loop.
        prompt, output: tokens of a request; `cached`: share of a prompt that the prefix cache spares.
        batched: tokens of one step; `slots`: sequences that one rank runs at once, by its limits and its KV cache.
        drafted: tokens that speculation drafts; `acceptance`: probability that one is kept if those before it were.
        draft_cost: by how much each drafted token lengthens a step.
        spread: requests of a closed loop began one after the other, not all at once.
        together: a rank waits for one that reads a prompt; ranks of a rehearsal do not.
        replicas: independent services over which the load is spread evenly.
    """

    concurrency: float
    prompt: int
    output: int
    batched: int
    slots: int
    rate: float | None = None
    cached: float = 0.0
    drafted: int = 0
    acceptance: float = 0.0
    draft_cost: float = 0.05
    spread: bool = False
    together: bool = True
    replicas: int = 1


@dataclass(frozen=True)
class Figures:
    """Means over requests, s, and tokens a second of all ranks.

    `running`: requests that run at once, all ranks together. `overloaded`: an open loop's queue grows without end.
    """

    ttft_s: float
    tpot_s: float
    output_per_s: float
    running: float
    overloaded: bool = False


def figures(step: StepTime, load: Demand) -> Figures:
    """Return what a load will show."""
    if load.replicas > 1:
        rate = load.rate and load.rate / load.replicas
        of_each = replace(load, concurrency=load.concurrency / load.replicas, rate=rate, replicas=1)
        one, busy = figures(step, of_each), min(load.replicas, load.concurrency)
        return replace(one, output_per_s=one.output_per_s * busy, running=one.running * load.replicas)
    if load.rate is None:
        return _closed(step, load)
    most = _closed(step, replace(load, concurrency=min(load.concurrency, load.slots * step.layout.dp)))
    offered = load.rate * load.output
    if offered >= most.output_per_s:
        return replace(most, overloaded=True)
    low, high = 0, max(1, math.ceil(min(load.concurrency, load.slots * float(step.layout.dp))))
    while high - low > 1:
        middle = (low + high) // 2
        keeps_up = _closed(step, replace(load, concurrency=middle)).output_per_s >= offered
        low, high = (low, middle) if keeps_up else (middle, high)
    return replace(_closed(step, replace(load, concurrency=high)), output_per_s=offered)


def _closed(step: StepTime, load: Demand) -> Figures:
    loop = _loop(step, load)
    steps = schedule(loop)
    times = np.concatenate([[0.0], np.cumsum(_lasts(step, load, steps) * steps.count)])
    born, first, ended = (times[places] for places in (steps.born, steps.first, steps.ended))
    ttft, whole = float(np.mean(first - born)), float(np.mean(ended - born))
    tpot = (whole - ttft) / (load.output - 1) if load.output > 1 else 0.0
    batches = min(step.stages, max(1.0, load.concurrency))
    replicas = 1 if _waits(step, load) else min(step.layout.dp, max(1.0, load.concurrency))
    made = loop.concurrency * batches * replicas * load.output / whole
    running = min(load.concurrency, float(load.slots * step.layout.dp))
    return Figures(ttft, tpot, made, running)


def _waits(step: StepTime, load: Demand) -> bool:
    return step.layout.expert_parallel and load.together


def _loop(step: StepTime, load: Demand) -> Loop:
    """Return the loop of the ranks that step together, in one of the batches of a pipeline."""
    together = step.layout.dp if _waits(step, load) else 1
    asked = load.concurrency if together > 1 else load.concurrency / step.layout.dp
    return Loop(
        ranks=together,
        concurrency=max(1, round(asked / step.stages)),
        prompt=max(1, round(load.prompt * (1 - load.cached))),
        steps=making_steps(load.output, load.acceptance, load.drafted),
        checked=1 + load.drafted,
        batched=load.batched,
        slots=max(1, load.slots // step.stages),
        spread=load.spread or load.rate is not None,
    )


def _lasts(step: StepTime, load: Demand, steps: Schedule) -> Floats:
    """Return how long every step lasts: as long as that of the busiest rank."""
    work = Work(steps.prompt, steps.making, steps.pairs, steps.context)
    tokens = steps.prompt + steps.making
    others = tokens.sum(axis=0) - tokens
    if not _waits(step, load):
        others = steps.making * (step.layout.dp - 1)
    parts = step.parts(work, others)
    drafting = load.drafted * load.draft_cost * (parts.host + parts.memory) * (steps.making > 0)
    busy = (parts.seconds + drafting) * (tokens > 0)
    chunks = math.ceil(load.prompt / load.batched)
    follow = (chunks + step.stages - 1) / (step.stages * chunks)
    return np.asarray((busy * np.where(steps.prompt > 0, follow, 1.0)).max(axis=0), dtype=np.float64)
