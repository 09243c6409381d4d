"""Does the tuner find the best of a grid for a third of its node-hours? `python -m benchmarks.tunes`

The grid: three layouts, three `max_num_seqs`, three `max_num_batched_tokens`, speculation of 0, 1 and 3 tokens; the
truth is the model of time on a machine whose constants are hidden from the tuner (each times e^N(0, 0.3)), with a
remainder of its own for each setting that no constant explains (2 %), and noise of a start and of a window. Beside it
under the same budget: Optuna's TPE, random search, and the grid in its order.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import numpy as np

from benchmarks.forecast_learns import LAYOUTS
from jobs.engines.prediction import Layout
from jobs.engines.steptime import StepTime
from jobs.forecast.anchors import NAMES, anchors, believed, constants_of
from jobs.forecast.figures import Demand, figures
from jobs.forecast.learn import Learnt, Subject, learn
from jobs.forecast.tuner import Candidate, Goal, Shown, Space, answer, next_step, spent

SEQS, BATCHED, DRAFTED = (16, 32, 64), (4096, 8192, 16384), (0, 1, 3)
PROMPT, OUTPUT, CONCURRENCY = 8192, 256, 64
LOAD_HOURS, WINDOW_HOURS, WINDOWS = 0.8, 0.09, 3
START_NOISE, WINDOW_NOISE, OWN = 0.015, 0.01, 0.02
GOAL = Goal(limits=(("tpot_s", 0.4),))
NEAR = 0.02


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
        kept = all(np.median([one[name] for one in windows]) <= limit for name, limit in GOAL.limits)
        seen.append((place, float(np.median([one["output_per_s"] for one in windows])) if kept else 0.0))
    best = max(seen, key=lambda one: one[1])[0]
    return Found(real.value(best) / real.best, len(seen) * each)


def tpe(real: Truth, most: float) -> Found:
    """Return what Optuna's TPE finds."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=real.seed))
    axes = {"layout": tuple(LAYOUTS), "seqs": SEQS, "batched": BATCHED, "drafted": DRAFTED}
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
    order = list(range(len(grid())))
    Random(real.seed).shuffle(order)
    return by_trials(real, lambda seen: order[len(seen)] if len(seen) < len(order) else None, most)


def in_order(real: Truth, most: float) -> Found:
    """Return what the grid finds in its own order."""
    return by_trials(real, lambda seen: len(seen) if len(seen) < len(grid()) else None, most)


def misled(learnt: Learnt) -> Learnt:
    """Return a prior that is badly wrong: every other constant is three times, the others a third of what it says."""
    wrong = learnt.posterior.mean + math.log(3) * np.array([(-1.0) ** k for k in range(len(NAMES))])
    return replace(learnt, posterior=replace(learnt.posterior, mean=wrong))


def main() -> None:
    """Print the table of docs/tuning.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    learnt, most = learn([]), budget()
    rivals: dict[str, Callable[[Truth], Found]] = {
        "tuner": lambda real: tuned(real, learnt, most),
        "tuner, prior wrong by 3": lambda real: tuned(real, misled(learnt), 1.5 * most),
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
