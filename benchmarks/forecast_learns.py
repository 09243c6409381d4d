"""Does a forecast that has seen half of a grid hold the other half? `python -m benchmarks.forecast_learns`

The truth is the rehearsal engine's scheduler, in its own time, on a machine whose constants nobody told the forecast
(each times a factor of its own, e^N(0, 0.3)), with noise of a start and of a window. Four lengths, five loads, three
layouts; half of the points are seen. What it does not ask: a machine whose steps follow another law.

`--real DIR` asks the same of real vLLM on this machine's CPU, whose law is its own: the grid of `REAL` is swept, what
is in DIR already is not measured again, and each seed draws another half. Beside that it prints how wide the intervals
of a forecast would be that knew everything but how far windows scatter: none can be narrower and hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from jobs.core.files import read_lines
from jobs.core.rundir import Root, sweeps_in
from jobs.engines.prediction import Layout
from jobs.engines.simulator.scheduler import Batch, Request, Scheduler
from jobs.engines.steptime import Constants, Sizes, StepTime, Work
from jobs.forecast.anchors import NAMES, anchors, believed, constants_of
from jobs.forecast.figures import Demand
from jobs.forecast.learn import Learnt, Observation, Subject, learn
from jobs.forecast.observed import COLUMNS, NORMAL_90, kept_rows

LENGTHS = (2048, 8192, 16384, 32768)
LOADS = (1, 4, 8, 16, 32)
LAYOUTS = {"dp2_tp8": Layout(8, 2, True), "dp4_tp4": Layout(4, 4, True), "dp1_tp16": Layout(16, 1, True)}
OUTPUT, BATCHED, SLOTS = 256, 8192, 64
START_NOISE, WINDOW_NOISE = 0.01, 0.01
ROUNDS = 4

ONE_EACH = ("parallel=dp2_tp1", "engine=vllm_cpu", "model=tiny_llama", "cluster=local")
REAL = {
    "one engine": (*ONE_EACH, "cluster.nodes=1", "parallel.data_parallel_size=1"),
    "an engine a rank": ONE_EACH,
    "a pipeline": ("experiment=pipeline_demo",),
}
"""The layouts of real vLLM on this machine."""

REAL_LOAD = (
    "parallel.max_model_len=8192",
    "parallel.max_num_batched_tokens=2048",
    "bench.input_tokens=128,512,2048",
    "bench.concurrency=1,2,4,8",
    "bench.output_tokens=32",
    "bench.window_s=10",
)

REAL_MODEL = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
REAL_SHAPE = "model.shape={parameters: 24.6e6, active_parameters: 24.6e6, weight_gib: 0.046, kv_bytes_per_token: 8192}"
"""A Llama whose steps last longer than Python needs for them: the tiny one of the tests shows before all what
else the machine does."""


MEDIAN_OF_THREE = 0.67
"""Its deviation, for values of deviation 1."""


def hidden(seed: int, spread: float = 0.3) -> Constants:
    """Return constants that the forecast is not told: each its believed value times a factor of its own."""
    random = Random(seed)
    return constants_of(believed().mean + np.array([random.gauss(0, spread) for _ in NAMES]))


def played(step: StepTime, load: Demand, rounds: int = ROUNDS) -> dict[str, float]:
    """Return what a closed loop shows on the rehearsal engine's schedulers, which step together, in their own time."""
    layout = step.layout
    ranks = [Scheduler(10**7, 16, load.batched, load.slots) for _ in range(layout.dp)]
    now, wanted = 0.0, int(load.concurrency) * rounds
    born: dict[int, float] = {}
    first: dict[int, float] = {}
    done: list[tuple[float, float, float]] = []
    sent = int(load.concurrency)
    begins = [range(1, sent), range(1)]  # the first is at work when the others come
    while len(done) < wanted:
        for slot in begins.pop() if begins else ():
            ranks[slot % layout.dp].add(Request(slot, load.prompt, load.output))
            born[slot] = now
        batches: list[Batch] = [one.plan() for one in ranks]
        now += _lasts(step, batches)
        for one, batch in zip(ranks, batches, strict=True):
            got, ended = one.commit(batch)
            for key in got:
                first.setdefault(key, now)
            for request in ended:
                done.append((born[request.key], first[request.key], now))
                one.add(Request(sent, load.prompt, load.output))
                born[sent] = now
                sent += 1
    last = done[len(done) // 2 :]
    ttft = float(np.mean([one[1] - one[0] for one in last]))
    whole = float(np.mean([one[2] - one[0] for one in last]))
    tpot = (whole - ttft) / (load.output - 1)
    return {"ttft_s": ttft, "tpot_s": tpot, "output_per_s": load.concurrency * load.output / whole}


def _lasts(step: StepTime, batches: Sequence[Batch]) -> float:
    works = [one.work for one in batches]
    tokens = [float(one.prompt_tokens + one.new_tokens) for one in works]
    return max(
        float(step.parts(Work(one.prompt_tokens, one.new_tokens, one.pairs, one.context), sum(tokens) - own).seconds)
        for one, own in zip(works, tokens, strict=True)
        if own
    )


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    layout: str
    length: int
    load: int

    def subject(self, sizes: Sizes) -> Subject:
        """Return it as the model sees it."""
        scope = {"engine": "e", "release": "r", "model": "m", "layout": self.layout}
        demand = Demand(self.load, self.length, OUTPUT, BATCHED, SLOTS)
        return Subject(scope, sizes, LAYOUTS[self.layout], demand)


def grid() -> tuple[Cell, ...]:
    """Return all points."""
    return tuple(Cell(*one) for one in itertools.product(LAYOUTS, LENGTHS, LOADS))


def measured(cells: Sequence[Cell], constants: Constants, sizes: Sizes, seed: int) -> Iterator[Observation]:
    """Yield what sweeps show of points: a start's noise for each layout and length, a window's for each figure."""
    random = Random(seed)
    starts: dict[tuple[str, int], float] = {}
    for cell in cells:
        subject = cell.subject(sizes)
        start = starts.setdefault((cell.layout, cell.length), random.gauss(0, START_NOISE))
        shown = played(StepTime(sizes, constants, subject.layout), subject.load)
        signs = {"output_per_s": -1}
        yield Observation(
            subject,
            {
                name: value * math.exp(signs.get(name, 1) * start + random.gauss(0, WINDOW_NOISE))
                for name, value in shown.items()
            },
        )


@dataclass(frozen=True)
class Told:
    """One figure of the other half: of which layout, whether it lay inside, how wide the interval was."""

    layout: str
    figure: str
    inside: bool
    width: float


@dataclass(frozen=True)
class Held:
    """All figures of the other half."""

    told: tuple[Told, ...]

    @property
    def inside(self) -> int:
        """How many lay inside."""
        return sum(one.inside for one in self.told)

    @property
    def of(self) -> int:
        """How many there were."""
        return len(self.told)

    @property
    def width(self) -> float:
        """The median width, as a share of the value."""
        return float(np.median([one.width for one in self.told]))

    def of_kind(self, layout: str, figure: str) -> Held:
        """Return those of one kind."""
        return Held(tuple(one for one in self.told if (one.layout, one.figure) == (layout, figure)))


def held(learnt: Learnt, rows: Sequence[Observation]) -> Held:
    """Hold rows against what was predicted for them."""
    return Held(
        tuple(
            Told(
                row.subject.scope["layout"],
                name,
                said.low <= row.measured[name] <= said.high,
                (said.high - said.low) / said.value,
            )
            for row in rows
            for name, said in learnt.predict(row.subject).items()
        )
    )


def trial(seed: int) -> tuple[Held, Held]:
    """Return what the anchors alone held of the other half, and what they and one half of the grid held."""
    sizes = anchors()[0].sizes
    constants = hidden(seed)
    cells = list(grid())
    Random(seed).shuffle(cells)
    rows = list(measured(cells, constants, sizes, seed))
    half = len(rows) // 2
    return held(learn([]), rows[half:]), held(learn(rows[:half]), rows[half:])


def real_trial(rows: Sequence[Observation], seed: int) -> tuple[Held, Held]:
    """Return what nothing and what one half of the rows held of the other half."""
    seen, asked = halves(rows, seed)
    return held(learn([]), asked), held(learn(seen), asked)


def really(root: Path, layouts: Sequence[str]) -> dict[str, tuple[Observation, ...]]:
    """Return what real vLLM showed of every point by layout, measured now where it is not yet."""
    model = root / "small_llama"
    if not model.exists():
        shutil.copytree(".engines/models/tiny_llama", model)
        config = json.loads((model / "config.json").read_text("utf-8"))
        (model / "config.json").write_text(json.dumps({**config, **REAL_MODEL, "intermediate_size": 1408}), "utf-8")
    load = (*REAL_LOAD, f"model.path={model}", REAL_SHAPE)
    for name in layouts:
        folder = root / name.replace(" ", "-")
        if not (folder / "latest").exists():
            subprocess.run(
                [sys.executable, "launch.py", "-m", *REAL[name], *load, f"results.root={folder}"], check=False
            )
    return {name: kept_rows(Root(root / name.replace(" ", "-")), "vllm_cpu") for name in layouts}


def least(folder: Path, figure: str) -> float:
    """Return how wide intervals of 90 % are that know everything but how far windows scatter around their median."""
    column, _ = COLUMNS[figure]
    points = [sweep.point(name) for sweep in sweeps_in(folder) for name in sweep.point_names()]
    windows = [[line[column] for line in read_lines(one.windows) if line.get(column)] for one in points]
    squares = [float(np.var(np.log(values), ddof=1)) for values in windows if len(values) > 1]
    return 2 * math.sinh(NORMAL_90 * MEDIAN_OF_THREE * math.sqrt(np.mean(squares)))


def halves(rows: Sequence[Observation], seed: int) -> tuple[list[Observation], list[Observation]]:
    """Return two halves of the rows, drawn by chance."""
    drawn = list(rows)
    Random(seed).shuffle(drawn)
    return drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]


def main() -> None:
    """Print the table of docs/tuning.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--layouts", nargs="+", default=list(REAL), choices=list(REAL))
    options = parser.parse_args()
    real = really(options.real.absolute(), options.layouts) if options.real else {}
    rows = [row for some in real.values() for row in some]
    print("| seed | anchors alone: inside | median width | half of the grid seen: inside | median width |")
    print("|---|---|---|---|---|")
    found = []
    for seed in range(options.seeds):
        before, after = real_trial(rows, seed) if rows else trial(seed)
        found.append(after)
        print(
            f"| {seed} | {before.inside / before.of:.0%} | {before.width:.0%} | "
            f"{after.inside / after.of:.0%} | {after.width:.0%} |",
            flush=True,
        )
    shares, every = [one.inside / one.of for one in found], Held(tuple(one for half in found for one in half.told))
    print(f"\nall: {np.mean(shares):.1%} inside, least {min(shares):.1%}, median width {every.width:.0%}")
    if real:
        print("\n| layout | figure | inside | median width | least possible |\n|---|---|---|---|---|")
    for name, some in real.items():
        for figure in COLUMNS:
            one = every.of_kind(some[0].subject.scope["layout"], figure)
            narrow = least(options.real / name.replace(" ", "-"), figure)
            print(f"| {name} | {figure} | {one.inside / one.of:.0%} | {one.width:.0%} | {narrow:.0%} |")


if __name__ == "__main__":
    main()
