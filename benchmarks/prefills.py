"""How often is one of two equal engines called slower at reading prompts, and one that is slower found? Simulated.

    python benchmarks/prefills.py          half an hour of two processors

Two ranks of the main job's model as the rehearsal engine has them, each with noise of 2 % a step, behind a balancer
that gives a request to the one that holds fewer. Goal: at most 2 % of clean windows noted. Then the prompts of one
engine take longer: so many windows are noted. Exit code 1 where the goal is missed.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.steady import WARMUP_S, WINDOW_S, _arrivals, _clock  # noqa: E402
from jobs.core.config import Config  # noqa: E402
from jobs.engines.simulator.scheduler import Request, Scheduler  # noqa: E402
from jobs.measure.gate import counters  # noqa: E402
from jobs.measure.records import Growth, Prefills  # noqa: E402

GOAL = 0.02
TIMES = (1.0, 2.0, 2.5, 3.0, 4.0)
"""By which the prompts of one engine take longer."""


@dataclass(frozen=True)
class Load:
    """Slots in a loop over both engines, or requests a second; the lengths scatter by `spread`."""

    prompt: int
    output: int
    slots: int = 0
    rate: float = 0.0
    spread: float = 0.0


LOADS = {
    "3 slots, 1K/128": Load(1024, 128, slots=3),
    "5 slots, 4K/128": Load(4096, 128, slots=5),
    "4 slots, 8K/64": Load(8192, 64, slots=4),
    "6 slots, 2K/64": Load(2048, 64, slots=6),
    "12 slots, 1K/64": Load(1024, 64, slots=12),
    "8 slots, 1K/128": Load(1024, 128, slots=8),
    "16 slots, 4K/512": Load(4096, 512, slots=16),
    "64 slots, 1K/256": Load(1024, 256, slots=64),
    "8 slots, 16K/128": Load(16384, 128, slots=8),
    "16 slots, 1K/128, lengths scatter by 70 %": Load(1024, 128, slots=16, spread=0.7),
    "0.5/s, 1K/128": Load(1024, 128, rate=0.5),
    "4/s, 1K/128": Load(1024, 128, rate=4.0),
    "1/s, 4K/256": Load(4096, 256, rate=1.0),
    "1/s, 4K/256, lengths scatter by 70 %": Load(4096, 256, rate=1.0, spread=0.7),
}


@dataclass
class Engine:
    """One rank, and what it counts of the requests that end in the window."""

    times: float
    scheduler: Scheduler = field(default_factory=lambda: Scheduler(1_000_000, 128, 8192, 256))
    now: float = 0.0
    taken: dict[int, float] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)
    prompts: dict[int, int] = field(default_factory=dict)
    counted: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def step(self, random: np.random.Generator) -> list[int]:
        """Make one step; return the requests that ended in it."""
        clock, before = _clock(), self.now
        batch = self.scheduler.plan()
        for request, _ in batch.items:
            self.taken.setdefault(request.key, before)
        slower = self.times if batch.work.prompt_tokens else 1.0
        self.now += clock.seconds(batch.work) * slower * float(np.exp(random.normal(0, 0.02)))
        got, done = self.scheduler.commit(batch)
        for key in got:
            self.first.setdefault(key, self.now)
        for request in done:
            if WARMUP_S <= self.now < WARMUP_S + WINDOW_S:
                spent = self.first[request.key] - self.taken[request.key]
                for place, more in enumerate((spent, 1.0, float(self.prompts[request.key]))):
                    self.counted[place] += more
            del self.prompts[request.key]
        return [request.key for request in done]


def noted(asked: tuple[str, float, int]) -> bool:
    """Return whether one window is noted: name of the load, by how much one engine is slower, and the seed."""
    name, times, seed = asked
    load, random = LOADS[name], np.random.default_rng(seed)
    engines = (Engine(1.0), Engine(times))
    coming = _arrivals(random, load.rate) if load.rate else [0.0] * load.slots
    sent = 0
    while True:
        busy = [one for one in engines if one.scheduler.busy]
        first = min(busy, key=lambda one: one.now) if busy else None
        if coming and (first is None or coming[0] <= first.now):
            at, scatter = coming.pop(0), 1.0
            if at >= WARMUP_S + WINDOW_S:
                break
            one = min(engines, key=lambda engine: (len(engine.prompts), random.random()))
            one.now = one.now if one.scheduler.busy else max(one.now, at)
            if load.spread:
                scatter = float(np.exp(random.normal(0, load.spread)))
            one.prompts[sent] = max(1, int(load.prompt * scatter))
            one.scheduler.add(Request(sent, one.prompts[sent], max(2, int(load.output * scatter))))
            sent += 1
            continue
        if first is None or first.now >= WARMUP_S + WINDOW_S:
            break
        for _ in first.step(random):
            if load.slots:
                coming = sorted([*coming, first.now])
    grown = {str(number): Prefills(*one.counted) for number, one in enumerate(engines) if min(one.counted) > 0}
    config = replace(Config(), parallel=replace(Config().parallel, data_parallel_size=2))
    return bool(list(counters.prefills(config, Growth({}, prefills=grown))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=500, help="clean ones of each load; a tenth of the others")
    parser.add_argument("--only", default="", help="loads whose names have this")
    asked, worst = parser.parse_args(), 0.0
    print(f"| load | {' | '.join(f'x{times:g}' for times in TIMES)} |\n|{'---|' * (1 + len(TIMES))}")
    with ProcessPoolExecutor() as pool:
        for name in (name for name in LOADS if asked.only in name):
            shares = []
            for times in TIMES:
                count = asked.windows if times == 1 else max(4, asked.windows // 10)
                found = list(pool.map(noted, [(name, times, seed) for seed in range(count)], chunksize=4))
                shares.append(sum(found) / len(found))
            worst = max(worst, shares[0])
            print(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)
    return worst > GOAL


if __name__ == "__main__":
    sys.exit(main())
