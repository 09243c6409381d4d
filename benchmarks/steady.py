"""How often does the gate call a steady service unsteady, and what does it find? On windows that are simulated.

    python benchmarks/steady.py            the tables of docs/measuring.md, about ten minutes of two processors
    python benchmarks/steady.py --windows 60 --only "R1, open"

Clean windows (goal: at most 2 % noted or invalid): a service of slots, rounds in step, few requests, each with noise of
its own and with a machine that swings by 5 % over 10 s; open loops before slots that are nearly all busy and before an
engine that takes longer for a token where more requests run together; and a rank of the model of the main job as the
rehearsal engine has it, in whose steps prompts and answers go together. Then windows in which the service changed. Exit
code 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jobs.core.config import Bench, Config  # noqa: E402
from jobs.engines.prediction import Layout  # noqa: E402
from jobs.engines.simulator.roofline import Clock  # noqa: E402
from jobs.engines.simulator.scheduler import Request, Scheduler  # noqa: E402
from jobs.engines.simulator.settings import RehearsalSpec  # noqa: E402
from jobs.measure.gate import pauses, steady  # noqa: E402
from jobs.measure.gate.case import Case  # noqa: E402
from jobs.measure.queueing import Trend  # noqa: E402
from jobs.measure.records import RequestRecord, Sample, Window  # noqa: E402
from jobs.measure.statistics import latencies  # noqa: E402
from jobs.sweep import compose  # noqa: E402

WINDOW_S, WARMUP_S, TOKENS = 120.0, 15.0, 16
GOAL = 0.02

Speed = Callable[[float], float]
"""By how much longer everything takes at a moment after the opening, s."""

Make = Callable[[np.random.Generator, Speed], tuple[RequestRecord, ...]]


def clean(_since: float) -> float:
    return 1.0


@dataclass(frozen=True)
class Closed:
    """Slots in a loop, or all in one step; `noise` of each answer, `swing` of the machine, as shares."""

    slots: int
    e2el_s: float
    noise: float = 0.05
    swing: float = 0.0
    in_step: bool = False

    def __call__(self, random: np.random.Generator, speed: Speed) -> tuple[RequestRecord, ...]:
        """Return the requests of one window."""
        drift, found = _swings(random, self.swing), []
        ready = [
            (0.0 if self.in_step else float(at), i) for i, at in enumerate(random.uniform(0, self.e2el_s, self.slots))
        ]
        heapq.heapify(ready)
        factor, step = 1.0, -1.0
        while (begin := ready[0][0]) < WARMUP_S + WINDOW_S:
            _, slot = heapq.heappop(ready)
            if not self.in_step or begin != step:
                factor, step = float(np.exp(random.normal(0, self.noise))), begin
            takes = self.e2el_s * factor * speed(begin - WARMUP_S) * drift(begin)
            found.append(_record(begin, begin + takes))
            heapq.heappush(ready, (begin + takes, slot))
        return tuple(found)


@dataclass(frozen=True)
class Slots:
    """Poisson arrivals before a service of slots that take each the same time."""

    slots: int
    e2el_s: float
    rate: float

    def __call__(self, random: np.random.Generator, speed: Speed) -> tuple[RequestRecord, ...]:
        """Return the requests of one window."""
        free, found = [0.0] * self.slots, []
        for came in _arrivals(random, self.rate):
            begin = max(came, heapq.heappop(free))
            end = begin + self.e2el_s * speed(begin - WARMUP_S)
            heapq.heappush(free, end)
            found.append(_record(came, end, begin))
        return tuple(found)


@dataclass(frozen=True)
class Batch:
    """Poisson arrivals before an engine whose step takes `base_s` and `more_s` for each request in it."""

    rate: float
    base_s: float
    more_s: float

    def __call__(self, random: np.random.Generator, speed: Speed) -> tuple[RequestRecord, ...]:
        """Return the requests of one window."""
        live: list[tuple[float, list[float]]] = []
        coming, found, now = _arrivals(random, self.rate), [], 0.0
        while coming or live:
            now = now if live else max(now, coming[0])
            while coming and coming[0] <= now:
                live.append((coming.pop(0), []))
            now += (self.base_s + self.more_s * len(live)) * speed(now - WARMUP_S)
            for _, times in live:
                times.append(now)
            found += [_record(came, now, times=times) for came, times in live if len(times) == 4 * TOKENS]
            live = [one for one in live if len(one[1]) < 4 * TOKENS]
        return tuple(found)


@dataclass(frozen=True)
class Rank:
    """One rank of DeepSeek-R1 on two nodes (dp2 tp8) as the rehearsal engine has it; `spread` of the lengths.

    So many slots in a loop, or so many requests a second.
    """

    prompt: int
    output: int
    slots: int = 0
    rate: float = 0.0
    spread: float = 0.0

    def __call__(self, random: np.random.Generator, speed: Speed) -> tuple[RequestRecord, ...]:
        """Return the requests of one window."""
        engine, clock = Scheduler(1_000_000, 128, 8192, 256), _clock()
        coming = _arrivals(random, self.rate) if self.rate else [0.0] * self.slots
        live: dict[int, tuple[float, list[float]]] = {}
        found: list[RequestRecord] = []
        now, sent = 0.0, 0
        while coming or engine.busy:
            now = now if engine.busy else max(now, coming[0])
            while coming and coming[0] <= now:
                times = float(np.exp(random.normal(0, self.spread))) if self.spread else 1.0
                engine.add(Request(sent, max(1, int(self.prompt * times)), max(2, int(self.output * times))))
                live[sent], sent = (coming.pop(0), []), sent + 1
            batch = engine.plan()
            now += clock.seconds(batch.work) * speed(now - WARMUP_S) * float(np.exp(random.normal(0, 0.02)))
            got, done = engine.commit(batch)
            for key in got:
                live[key][1].append(now)
            for request in done:
                came, moments = live.pop(request.key)
                found.append(_record(came, now, times=moments))
                if self.slots and now < WARMUP_S + WINDOW_S:
                    coming.append(now)
        return tuple(found)


@cache
def _clock() -> Clock:
    [config] = compose.configs([["model=deepseek_r1_0528_w8a8", "parallel=dp2_tp8"]])
    spec = RehearsalSpec(shape=config.model.shape)
    return Clock(spec.shape, spec.hardware, Layout.of(config))


def _swings(random: np.random.Generator, share: float) -> Speed:
    if not share:
        return clean
    keep, state, states = np.exp(-0.05), 0.0, []
    for draw in random.normal(size=4096):  # one for each 0.5 s, with 10 s of memory
        state = keep * state + np.sqrt(1 - keep * keep) * draw
        states.append(float(np.exp(share * state)))
    return lambda moment: states[min(int(moment * 2), len(states) - 1)]


def _arrivals(random: np.random.Generator, rate: float) -> list[float]:
    gaps = itertools.accumulate(random.exponential(1 / rate, size=int(3 * rate * (WARMUP_S + WINDOW_S)) + 50))
    return [float(at) for at in itertools.takewhile(lambda at: at < WARMUP_S + WINDOW_S, gaps)]


def _record(start: float, end: float, begin: float | None = None, times: list[float] | None = None) -> RequestRecord:
    first = start if begin is None else begin
    moments = np.linspace(first, end, TOKENS + 1)[1:] if times is None else np.array(times)
    return RequestRecord(
        0, start, float(moments[0]), end, moments, 16, len(moments), in_window=WARMUP_S <= start < WARMUP_S + WINDOW_S
    )


def _gauges(records: tuple[RequestRecord, ...]) -> tuple[Sample, ...]:
    """Return what two engines that take the requests in turn say of themselves, once a second."""
    moments, found = np.arange(WARMUP_S, WARMUP_S + WINDOW_S + 1.0), []
    for engine in (0, 1):
        own = sorted(records, key=lambda record: record.start_s)[engine::2]
        starts, ends = (np.sort([getattr(record, name) for record in own]) for name in ("start_s", "end_s"))
        tokens = np.sort(np.concatenate([record.chunk_times for record in own])) if own else np.empty(0)
        running, made = (np.searchsorted(each, moments) for each in (starts, tokens))
        running = running - np.searchsorted(ends, moments)
        found += [
            Sample(float(at), str(engine), float(held), 0.0, None, None, float(count))
            for at, held, count in zip(moments, running, made, strict=True)
        ]
    return tuple(found)


def change(make: Make, speed: Speed, seed: int) -> float:
    """Return the change that the gate sees in one window: 0, a noted one, or one beyond the limit."""
    records = make(np.random.default_rng(seed), speed)
    bench = Bench(concurrency=None, request_rate=1.0) if is_open(make) else Bench(concurrency=1)
    if isinstance(make, Rank) and make.spread:
        bench = replace(bench, lengths="lognormal")
    config = replace(Config(), bench=bench, parallel=replace(Config().parallel, data_parallel_size=2))
    window = Window(WARMUP_S, WARMUP_S + WINDOW_S, WARMUP_S, 0.0, records, {}, 0.0, False, series=_gauges(records))
    counted = [latencies(record) for record in records if record.in_window]
    figures = {"waiting_mean": 4.0 if isinstance(make, Slots) else 0.0}
    figures |= {
        f"{name}_ms_p50": float(np.median([getattr(one, name) for one in counted])) for name in ("ttft", "e2el")
    }
    case = Case(config, window, figures, Trend(None))
    found = [
        one
        for one in (*steady.steady(case), *steady.engines(case), *pauses.pauses(case))
        if "too short" not in one.words
    ]
    return 0.0 if not found else 1.0 if any(one.invalid for one in found) else 0.5


def is_open(make: Make) -> bool:
    return isinstance(make, Slots | Batch) or (isinstance(make, Rank) and make.rate > 0)


KINDS: dict[str, Make] = {
    "8 slots": Closed(8, 4.25),
    "16 slots, rounds in step": Closed(16, 10.0, in_step=True),
    "64 slots, 20 s an answer, in step": Closed(64, 20.0, in_step=True),
    "one slot, 20 s an answer": Closed(1, 20.0),
    "one slot, noise of 20 %": Closed(1, 8.0, noise=0.2),
    "in step, noise of 20 %": Closed(8, 6.0, noise=0.2, in_step=True),
    "8 slots, machine swings": Closed(8, 4.25, swing=0.05),
    "open loop, 8 slots, 90 % busy": Slots(8, 4.0, 1.8),
    "open loop, batch of 5": Batch(2.0, 0.02, 0.005),
    "open loop, batch of 3, 60 requests": Batch(0.5, 0.06, 0.02),
    "R1, 8 slots, 1K/128": Rank(1024, 128, slots=8),
    "R1, 32 slots, 1K/512": Rank(1024, 512, slots=32),
    "R1, 4 slots, 16K/256": Rank(16384, 256, slots=4),
    "R1, 8 slots, lengths scatter by 70 %": Rank(1024, 128, slots=8, spread=0.7),
    "R1, open loop, 1K/128, 30 %": Rank(1024, 128, rate=1.9),
    "R1, open loop, 1K/128, 80 %": Rank(1024, 128, rate=4.5),
    "R1, open loop, 4K/256, 40 %": Rank(4096, 256, rate=0.6),
    "R1, open loop, 16K/128, 40 %": Rank(16384, 128, rate=0.15),
    "R1, open loop, lengths scatter by 70 %": Rank(4096, 256, rate=0.6, spread=0.7),
}
CHANGING = ("R1, 4 slots, 16K/256",)
"""They begin in step and fall out of it over the window, which is a change: noted always."""

CHANGES: dict[str, Speed] = {
    "heat x1 to x3": lambda since: 1 + 2 * max(0.0, since) / WINDOW_S,
    "heat x1 to x1.5": lambda since: 1 + max(0.0, since) / WINDOW_S / 2,
    "x3 for 50 s": lambda since: 3.0 if since < 50 else 1.0,
    "x4 from half time": lambda since: 4.0 if since > WINDOW_S / 2 else 1.0,
    "x1.5 from half time": lambda since: 1.5 if since > WINDOW_S / 2 else 1.0,
    "x3 from 40 to 80 s": lambda since: 3.0 if 40 < since < 80 else 1.0,
    "x4 for the last 10 s": lambda since: 4.0 if since > 110 else 1.0,
    "x4 from 57 to 67 s": lambda since: 4.0 if 57 < since < 67 else 1.0,
    "x4 from 50 to 75 s": lambda since: 4.0 if 50 < since < 75 else 1.0,
    "x3 every other 20 s": lambda since: 3.0 if since % 40 < 20 else 1.0,
    "x3 for 5 of every 15 s": lambda since: 3.0 if since % 15 < 5 else 1.0,
    "x2 at first, settles in 20 s": lambda since: 1 + math.exp(-max(since, 0.0) / 20),
}


def seen(asked: tuple[str, str, int]) -> float:
    """Return what `change` says of a window: names of its kind and of what changed (none: nothing), and its seed."""
    kind, changed, seed = asked
    return change(KINDS[kind], CHANGES.get(changed, clean), seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=600, help="clean ones of each kind; a tenth of R1's")
    parser.add_argument("--only", default="", help="kinds whose names have this")
    asked = parser.parse_args()
    kinds = [name for name in KINDS if asked.only in name]
    worst = 0.0
    with ProcessPoolExecutor() as pool:

        def shares(kind: str, changed: str, count: int) -> tuple[float, float]:
            found = np.array(list(pool.map(seen, [(kind, changed, seed) for seed in range(count)], chunksize=4)))
            return float((found == 0.5).mean()), float((found == 1).mean())

        print("| nothing changed | windows | noted | invalid |\n|---|---|---|---|")
        for kind in kinds:
            count = max(10, asked.windows // (10 if isinstance(KINDS[kind], Rank) else 1))
            noted, invalid = shares(kind, "", count)
            worst = max(worst, 0.0 if kind in CHANGING else noted + invalid)
            print(f"| {kind} | {count} | {noted:.1%} | {invalid:.1%} |", flush=True)
        few = max(4, asked.windows // 60)
        print(f"\n| {few} windows each: invalid (noted too) | {' | '.join(CHANGES)} |\n|{'---|' * (len(CHANGES) + 1)}")
        for kind in kinds:
            cells = (shares(kind, changed, few) for changed in CHANGES)
            told = (f"{invalid:.0%}" + (f" ({noted + invalid:.0%})" if noted else "") for noted, invalid in cells)
            print(f"| {kind} | {' | '.join(told)} |", flush=True)
    return worst > GOAL


if __name__ == "__main__":
    sys.exit(main())
