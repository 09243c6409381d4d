"""Does the tuner find the best of a grid for a third of its node-hours? `python -m benchmarks.tunes`

The grid: three layouts, three `max_num_seqs`, three `max_num_batched_tokens`, speculation of 0, 1 and 3 tokens; the
truth is the model of time on a machine whose constants are hidden from the tuner (each times e^N(0, 0.3)), with a
remainder of its own for each setting that no constant explains (2 %), and noise of a start and of a window. Beside it
under the same budget: Optuna's TPE, random search, and the grid in its order.

`--real DIR` asks the same of real vLLM on this machine's CPU: the grid of `REAL` is swept once (`--starts 2`: twice),
then the command is given a third of what that took. What is in DIR already is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.forecast_learns import LAYOUTS
from jobs.core.files import read_json
from jobs.core.planfile import read_plan
from jobs.core.rundir import SweepDir, sweeps_in
from jobs.engines.prediction import Layout
from jobs.engines.steptime import StepTime
from jobs.forecast.anchors import NAMES, anchors, believed, constants_of
from jobs.forecast.figures import Demand, figures
from jobs.forecast.learn import Learnt, Subject, learn
from jobs.forecast.search import hours_of, read_search
from jobs.forecast.tuner import Candidate, Goal, Shown, Space, answer, next_step, spent

SEQS, BATCHED, DRAFTED = (16, 32, 64), (4096, 8192, 16384), (0, 1, 3)
PROMPT, OUTPUT, CONCURRENCY = 8192, 256, 64
LOAD_HOURS, WINDOW_HOURS, WINDOWS = 0.8, 0.09, 3
START_NOISE, WINDOW_NOISE, OWN = 0.015, 0.01, 0.02
GOAL = Goal(limits=(("tpot_s", 0.4),))
NEAR = 0.02

REAL = {
    "parallel.max_num_seqs": ("4", "16"),
    "parallel.max_num_batched_tokens": ("512", "4096"),
    "parallel.enable_prefix_caching": ("false", "true"),
    "engine.args.speculative-config": ("null", "{method:ngram,num_speculative_tokens:3}"),
}
"""The space for real vLLM: what each key may be."""

REAL_LOAD = (
    *("experiment=demo", "parallel.data_parallel_size=1", "bench.workload=shared_prefix", "bench.prefix_share=0.75"),
    *("bench.input_tokens=1024", "bench.output_tokens=64", "bench.concurrency=16", "bench.canary=off"),
    *("bench.warmup_s=6", "bench.window_s=4", "bench.repeats=3"),
)


@cache
def grid() -> tuple[Candidate, ...]:
    """Return the settings."""
    found = []
    for layout, seqs, batched, drafted in itertools.product(LAYOUTS, SEQS, BATCHED, DRAFTED):
        lies: Layout = LAYOUTS[layout]
        load = Demand(CONCURRENCY, PROMPT, OUTPUT, batched, max(1, seqs), drafted=drafted, acceptance=0.6)
        scope = {"engine": "e", "release": "r", "model": "m", "layout": layout}
        keys = (
            list(LAYOUTS).index(layout) * 1.0,
            math.log2(seqs / 16) / 2,
            math.log2(batched / 4096) / 2,
            math.log2(1 + drafted) / 2,
        )
        name = f"{layout} seqs={seqs} batched={batched} drafted={drafted}"
        subject = Subject(scope, anchors()[0].sizes, lies, load)
        found.append(Candidate(name, keys, subject, LOAD_HOURS, WINDOW_HOURS))
    return tuple(found)


@dataclass(frozen=True)
class Truth:
    """What each setting really shows, and what a window of it says."""

    figures: tuple[dict[str, float], ...]
    seed: int

    def value(self, place: int) -> float:
        """The goal where the limits are kept, else 0."""
        shown = self.figures[place]
        return shown["output_per_s"] if all(shown[name] <= limit for name, limit in GOAL.limits) else 0.0

    @property
    def best(self) -> float:
        """The best of the grid."""
        return max(self.value(place) for place in range(len(self.figures)))

    def window(self, place: int, start: int, number: int) -> Shown:
        """Return one window: its noise is a function of its place, so that a repeated search sees the same."""
        begun = Random(f"{self.seed} {place} {start}").gauss(0, START_NOISE)
        noise = begun + Random(f"{self.seed} {place} {start} {number}").gauss(0, WINDOW_NOISE)
        signs = {"output_per_s": -1.0}
        shown = {name: value * math.exp(signs.get(name, 1.0) * noise) for name, value in self.figures[place].items()}
        return Shown(place, start, shown)


def truth(seed: int, spread: float = 0.3) -> Truth:
    """Return a machine whose constants are hidden."""
    random = Random(seed)
    constants = constants_of(believed().mean + np.array([random.gauss(0, spread) for _ in NAMES]))
    found = []
    for one in grid():
        made = figures(StepTime(one.subject.sizes, constants, one.subject.layout), one.subject.load)
        own = math.exp(random.gauss(0, OWN))
        found.append(
            {"ttft_s": made.ttft_s * own, "tpot_s": made.tpot_s * own, "output_per_s": made.output_per_s / own}
        )
    return Truth(tuple(found), seed)


def budget() -> float:
    """Return a third of what the whole grid costs, node-hours."""
    return len(grid()) * (LOAD_HOURS + WINDOWS * WINDOW_HOURS) / 3


@dataclass(frozen=True)
class Found:
    """What a search came to: its setting's true value as a share of the best, and the node-hours that it took."""

    share: float
    hours: float


def tuned(real: Truth, learnt: Learnt, most: float) -> Found:
    """Return what the tuner finds."""
    space, rows = Space(grid(), learnt.posterior, GOAL), list[Shown]()
    while (step := next_step(space, rows, most, WINDOWS)).do != "stop":
        starts = [one.start for one in rows if one.candidate == step.candidate]
        start = max(starts, default=-1) + (step.do == "start")
        rows.append(real.window(step.candidate, start, len(rows)))
    best = answer(space, rows)
    names = [one.name for one in grid()]
    return Found(real.value(names.index(best.name)) / real.best if best else 0.0, spent(space, rows))


def by_trials(real: Truth, order: Callable[[list[tuple[int, float]]], int | None], most: float) -> Found:
    """Return what a search finds that measures one setting whole, one after the other."""
    seen: list[tuple[int, float]] = []
    each = LOAD_HOURS + WINDOWS * WINDOW_HOURS
    while (len(seen) + 1) * each <= most and (place := order(seen)) is not None:
        windows = [real.window(place, len(seen), number).figures for number in range(WINDOWS)]
        seen.append((place, _goal_of(windows)))
    best = max(seen, key=lambda one: one[1])[0]
    return Found(real.value(best) / real.best, len(seen) * each)


def tpe(real: Truth, most: float) -> Found:
    """Return what Optuna's TPE finds."""
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=real.seed))
    axes: dict[str, tuple[Any, ...]] = {"layout": tuple(LAYOUTS), "seqs": SEQS, "batched": BATCHED, "drafted": DRAFTED}
    places = {values: place for place, values in enumerate(itertools.product(*axes.values()))}
    open_trials: list[Any] = []

    def order(seen: Sequence[tuple[int, float]]) -> int:
        if open_trials:
            study.tell(open_trials.pop(), seen[-1][1])
        trial = study.ask()
        open_trials.append(trial)
        return places[tuple(trial.suggest_categorical(name, values) for name, values in axes.items())]

    return by_trials(real, order, most)


def drawn(real: Truth, most: float) -> Found:
    """Return what random search finds."""
    order = shuffled(real)
    return by_trials(real, lambda seen: order[len(seen)] if len(seen) < len(order) else None, most)


def in_order(real: Truth, most: float) -> Found:
    """Return what the grid finds in its own order."""
    return by_trials(real, lambda seen: len(seen) if len(seen) < len(grid()) else None, most)


def halved(real: Truth, order: Sequence[int], most: float) -> Found:
    """Return what successive halving finds: as many settings as the budget has room for are started with one window,
    the better half of them anew with twice as many, until one is left (Jamieson, Talwalkar 2016).
    """
    count = len(order)
    while (hours := halving_hours(count)) > most:
        count -= 1
    left, windows = list(order[:count]), 1
    while True:
        starts = {place: [real.window(place, windows, k).figures for k in range(windows)] for place in left}
        ranked = sorted(left, key=lambda place: -_goal_of(starts[place]))
        if len(left) <= 2:
            return Found(real.value(ranked[0]) / real.best, hours)
        left, windows = ranked[: (len(left) + 1) // 2], min(2 * windows, WINDOWS)


def halving_hours(count: int) -> float:
    """Return the node-hours that halving takes which begins with so many settings."""
    hours, windows = 0.0, 1
    while True:
        hours += count * (LOAD_HOURS + windows * WINDOW_HOURS)
        if count <= 2:
            return hours
        count, windows = (count + 1) // 2, min(2 * windows, WINDOWS)


def _goal_of(windows: Sequence[Mapping[str, float]]) -> float:
    """Return the median of the goal where that of each limit is kept, else 0."""
    kept = all(np.median([one[name] for one in windows]) <= limit for name, limit in GOAL.limits)
    return float(np.median([one["output_per_s"] for one in windows])) if kept else 0.0


def foretold(learnt: Learnt) -> list[int]:
    """Return the settings as the forecast ranks them: those that keep their limits first."""
    believed = Space(grid(), learnt.posterior, GOAL).belief([])
    return sorted(range(len(grid())), key=lambda place: (believed.keeps[place] < 0.5, -believed.mean[place]))


def shuffled(real: Truth) -> list[int]:
    """Return the settings in an order of chance."""
    order = list(range(len(grid())))
    Random(real.seed).shuffle(order)
    return order


def misled(learnt: Learnt) -> Learnt:
    """Return a prior that is badly wrong: every other constant is three times, the others a third of what it says."""
    wrong = learnt.posterior.mean + math.log(3) * np.array([(-1.0) ** k for k in range(len(NAMES))])
    return replace(learnt, posterior=replace(learnt.posterior, mean=wrong))


def swept(root: Path, *argv: str) -> SweepDir:
    """Return the sweep under a root, begun by this command if there is none."""
    if not (root / "latest").exists():
        subprocess.run([sys.executable, *argv, *REAL_LOAD, f"results.root={root}"], check=False)
    return sweeps_in(root)[0]


def setting_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the values of a point's setting as texts."""
    return tuple(str(values[key]) for key in REAL)


def shown_by(sweep: SweepDir) -> tuple[dict[tuple[str, ...], list[float]], float]:
    """Return the tokens/s of each start by the values of its setting, and the node-hours of all.

    Of all as many times as there are the median: what else ran on this machine met some of them.
    """
    found: dict[tuple[str, ...], list[float]] = {}
    hours, services = list[float](), set[str]()
    for point in read_plan(sweep).points:
        row: Mapping[str, Any] = read_json(sweep.point(point.point).row)
        found.setdefault(setting_of(point.values), []).append(row["output_tok_per_s"] if row["valid"] else 0.0)
        hours.append(hours_of(row, shared=row["service"] in services) or 0.0)
        services.add(row["service"])
    return found, len(hours) * float(np.median(hours))


def really(root: Path, starts: int) -> None:
    """Print what the grid and the tuner found on real vLLM."""
    axes = [f"{key}={','.join(values)}" for key, values in REAL.items()]
    seeds = ",".join(map(str, range(starts)))
    truth, whole = shown_by(swept(root / "grid", "launch.py", "-m", *axes, f"parallel.seed={seeds}"))
    ranked = sorted(truth.items(), key=lambda one: -float(np.mean(one[1])))
    print("| setting | tokens/s by start |\n|---|---|")
    for setting, shown in ranked:
        print(f"| {' '.join(setting)} | {' '.join(f'{one:.0f}' for one in shown)} |")
    space = ", ".join(f"{key}: [{', '.join(values)}]" for key, values in REAL.items())
    budget = f"tune.budget_node_hours={whole / starts / 3:.4f}"
    tune = swept(root / "tune", "-m", "jobs", "tune", f"tune.space={{{space}}}", budget)
    _, took = shown_by(tune)
    best = read_json(tune.answer)["answer"]
    points = {one.candidate.name: one.points for one in read_search(tune).settings}[best["name"]]
    name = setting_of(next(one.values for one in read_plan(tune).points if one.point in points))
    share = np.mean(truth[name]) / np.mean(ranked[0][1])
    print(f"\nanswer: {best['name']}: {best['value']:.0f} ({best['low']:.0f} to {best['high']:.0f}) {best['tied']}")
    print(f"by the grid {np.mean(truth[name]):.0f} tokens/s, {share:.1%} of its best")
    print(f"node-hours: grid {whole / starts:.4f}, tuner {took:.4f} ({took / whole * starts:.0%})")


def main() -> None:
    """Print the tables of docs/tuning.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--starts", type=int, default=1)
    options = parser.parse_args()
    if options.real:
        return really(options.real.absolute(), options.starts)
    learnt, most = learn([]), budget()
    rivals: dict[str, Callable[[Truth], Found]] = {
        "tuner": lambda real: tuned(real, learnt, most),
        "tuner, prior wrong by 3": lambda real: tuned(real, misled(learnt), 1.5 * most),
        "halving, begun by the forecast": lambda real: halved(real, foretold(learnt), most),
        "halving, begun by chance": lambda real: halved(real, shuffled(real), most),
        "Optuna TPE": lambda real: tpe(real, most),
        "random": lambda real: drawn(real, most),
        "grid in order": lambda real: in_order(real, most),
    }
    found: dict[str, list[Found]] = {name: [] for name in rivals}
    for seed in range(options.seeds):
        real = truth(seed)
        for name, rival in rivals.items():
            found[name].append(rival(real))
    print(f"{len(grid())} settings; the whole grid costs {3 * most:.1f} node-hours; budget {most:.1f}\n")
    print(f"| search | within {NEAR:.0%} of the best | worst, share of the best | node-hours, median | of the grid |")
    print("|---|---|---|---|---|")
    for name, made in found.items():
        near = sum(one.share >= 1 - NEAR for one in made)
        hours = float(np.median([one.hours for one in made]))
        least = min(one.share for one in made)
        print(f"| {name} | {near} of {len(made)} | {least:.1%} | {hours:.1f} | {hours / most / 3:.0%} |")


if __name__ == "__main__":
    main()
