"""How often what the report and `compare` say is true, where the truth is known.

    python -m benchmarks.coverage [monte-carlo | sweeps] [--engine simulator | vllm_cpu] [--trials N]

Monte Carlo draws windows and starts and asks jobs.results what it makes of them: settings that are the same and told
apart, winners where there is none, true differences that are found, curves that hold the truth. `sweeps` measures one
setting over and over by launch.py (coverage_sweeps.py). docs/measuring.md has the tables.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage_sweeps import sweeps
from jobs.core.planfile import PlanFile
from jobs.core.rundir import SweepDir
from jobs.results import noise, verdict
from jobs.results.curves import fit
from jobs.results.gather import Run
from jobs.results.intervals import Scatter, pooled

Floats = NDArray[np.float64]

COLUMN = "output_tok_per_s"
SETTING, START, WORK = "parallel.max_model_len", "parallel.seed", "bench.input_tokens"


class Trial(Protocol):
    """Draws the figures of one start's windows, around 1."""

    def __call__(self, rng: np.random.Generator, kinds: int = 1) -> Floats:
        """Return them in the order of time; `kinds` of work take as many more."""


@dataclass(frozen=True, eq=False)
class Drawn(noise.Side):
    """A side whose windows are drawn: its rows hold them."""

    @property
    def starts(self) -> tuple[tuple[float, ...], ...]:
        """The drawn windows."""
        return tuple(row["drawn"] for row in self.rows)

    @property
    def moments(self) -> tuple[float, ...]:
        """When they were drawn."""
        return tuple(moment for row in self.rows for moment in row["moments"])

    @property
    def inside(self) -> Scatter | None:
        """Nothing: windows alone speak."""
        return None


def windows(
    count: int, *, window: float, start: float, state: float = 0.0, lasting: float = 0.0, modes: float = 0.0
) -> Trial:
    """Return a trial: independent noise of windows, an effect of the start, and a state of the machine.

    Args:
        count: windows of a start.
        window, start, state: standard deviations, as shares.
        lasting: correlation of the state from one window to the next.
        modes: by which share one half of the starts, drawn at random, is slower than the other.
    """

    def draw(rng: np.random.Generator, kinds: int = 1) -> Floats:
        now, states = rng.normal(0, state), []
        for _ in range(count * kinds):
            states.append(now)
            now = lasting * now + np.sqrt(1 - lasting**2) * rng.normal(0, state)
        effect = rng.normal(0, start) - modes * (rng.random() < 0.5 if modes else 0)
        return np.asarray(np.exp(effect + rng.normal(0, window, len(states)) + np.array(states)))

    return draw


def lasting(
    count: int,
    *,
    window: float,
    drift: float = 0.0,
    state: float = 0.0,
    keeps: float = 0.0,
    tails: bool = False,
    jump: float = 0.0,
) -> Trial:
    """Return a trial in which starts follow each other on one machine that changes.

    Args:
        count: windows of a start.
        window: standard deviation of one. tails: by Student's t of 3 degrees of freedom.
        drift: by which share each window lies above the one before.
        state: standard deviation of the machine's. keeps: its correlation from window to window.
        jump: by which share it is slower from some window on.
    """
    machine = {"drift": 0.0, "state": 0.0, "left": np.inf}

    def draw(rng: np.random.Generator, kinds: int = 1) -> Floats:
        found = []
        if jump and machine["left"] == np.inf:
            machine["left"] = float(rng.integers(1, 2 * count * kinds))
        for _ in range(count * kinds):
            machine["left"] -= 1
            machine["drift"] += drift - (jump if machine["left"] == -1 else 0.0)
            machine["state"] = keeps * machine["state"] + np.sqrt(1 - keeps**2) * rng.normal(0, state)
            noise_of = rng.standard_t(3) / np.sqrt(3) if tails else rng.normal()
            found.append(float(np.exp(machine["drift"] + machine["state"] + window * noise_of)))
        return np.array(found)

    return draw


def sweep(
    means: Sequence[float],
    starts: int | Sequence[int],
    trial: Trial,
    rng: np.random.Generator,
    kinds: int = 1,
    *,
    by_turns: bool = True,
) -> Run:
    """Return a sweep of settings with these true means as its files would tell it.

    Args:
        means: true ones. starts: of each setting, or of all. trial: draws the windows of a start. rng: for it.
        kinds: of work in each start. by_turns: A B C, C B A, A B C; else one after the other.

    Starts follow each other as the plan has them: A B, B A, A B.
    """
    rows = []
    many = [starts] * len(means) if isinstance(starts, int) else starts
    places = [(number, setting) for setting in range(len(means)) for number in range(many[setting])]
    for number, setting in sorted(places, key=lambda place: (place[0], place[1] * (-1) ** place[0])):
        mean = means[setting]
        whole = trial(rng, kinds)
        order = np.arange(len(whole)).reshape(-1, kinds) if by_turns else np.arange(len(whole)).reshape(kinds, -1).T
        if by_turns:
            order[1::2] = order[1::2, ::-1]
        for kind in range(kinds):
            figures = 1000 * mean * whole[order[:, kind]]
            rows.append(
                {
                    "point": f"{setting}-{number}-{kind}", "service": f"{setting}-{number}", "engine": "vllm_ascend",
                    "valid": True, COLUMN: float(np.median(figures)), "windows": len(figures), "completed": 1000,
                    SETTING: setting, START: number, WORK: kind, "drawn": tuple(figures.tolist()),
                    "moments": tuple(order[:, kind].astype(float).tolist()),
                }
            )  # fmt: skip
    swept = (SETTING, START, WORK) if kinds > 1 else (SETTING, START)
    return Run(SweepDir(Path("drawn")), swept, PlanFile((), (), swept), tuple(rows), {"bench": {"concurrency": 16}})


def judged(run: Run) -> verdict.Verdict:
    """Judge a drawn sweep."""
    return verdict.judge(run)


def share(count: int, of: int) -> str:
    """Return a share in percent."""
    return f"{100 * count / of:.1f} %" if of else "-"


# --- Monte Carlo


def told_apart(trials: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Two windows' worth of one setting against itself: how often a difference is claimed (nominal 5 %)."""
    cases: Mapping[str, tuple[int, Trial]] = {
        "3 windows a side, independent": (1, windows(3, window=0.05, start=0)),
        "5 windows a side, independent": (1, windows(5, window=0.05, start=0)),
        "3 windows, machine state 5 %, correlation 0.2 from window to window": (
            1, windows(3, window=0.02, start=0, state=0.05, lasting=0.2)),
        "3 starts a side, start effect 2 %": (3, windows(3, window=0.005, start=0.02)),
        "2 starts a side, start effect 2 %": (2, windows(3, window=0.005, start=0.02)),
    }  # fmt: skip
    for name, (starts, trial) in cases.items():
        count = 0
        for _ in range(trials):
            run = sweep((1, 1), starts, trial, rng)
            one, two = (Drawn(run, tuple(row for row in run.rows if row[SETTING] == n), COLUMN) for n in (0, 1))
            found = noise.difference(one, two)
            count += found is not None and not found.change.holds_zero
        yield name, share(count, trials)


def queued(trials: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """An open loop against itself: Poisson arrivals at 8 slots that take 4 s each, three windows of 120 s a side."""
    run = sweep((1, 1), 1, windows(3, window=0, start=0), rng)
    for load in (0.5, 0.8, 0.9):
        apart = 0
        for _ in range(trials):
            sides = [Drawn(run, ({"drawn": tuple(_wait(load, rng) for _ in range(3))},), "ttft_ms_mean") for _ in "ab"]
            found = noise.difference(*sides)
            apart += found is not None and not found.change.holds_zero
        yield f"open loop at {load:.0%} of capacity, mean TTFT, 3 windows a side", share(apart, trials)


def _wait(load: float, rng: np.random.Generator) -> float:
    """Return the mean time to the first token of the requests that come in a window, ms: 0.5 s after their slot."""
    free, now, waits = [0.0] * 8, 0.0, []
    while now < 135:
        now += rng.exponential(4 / 8 / load)
        begins = max(now, heapq.heappop(free))
        heapq.heappush(free, begins + 4)
        if 15 <= now < 135:
            waits.append(begins - now + 0.5)
    return 1e3 * float(np.mean(waits))


def remembered(trials: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """One start of a setting against another one, where earlier starts have shown their spread."""
    for earlier, effect in itertools.product((3, 6, 20), (0.02, 0.05)):
        trial, apart, believed = windows(3, window=0.005, start=effect), 0, 0
        for _ in range(trials):
            spread = pooled([[float(trial(rng).mean()) for _ in range(earlier)]])
            run = sweep((1, 1), 1, trial, rng)
            found = noise.difference(*(Drawn(run, (row,), COLUMN, spread) for row in run.rows))
            apart += found is not None and not found.change.holds_zero
            believed += found is not None and found.sure and not found.change.holds_zero
        yield (
            f"1 start a side, effect {effect:.0%}, known from {earlier} earlier starts",
            (f"told apart {share(apart, trials)}, believed {share(believed, trials)}"),
        )


def false_winners(trials: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Settings that are all the same: how often one "won", and how often that was to be believed."""
    for effect, settings, starts in itertools.product((0.0, 0.02, 0.03), (2, 4, 8), (1, 2, 3)):
        trial = windows(3, window=0.005, start=effect)
        found = [judged(sweep((1,) * settings, starts, trial, rng)) for _ in range(trials)]
        won = share(sum(one.winner is not None for one in found), trials)
        believed = share(sum(one.believe == "yes" for one in found), trials)
        yield f"start effect {effect:.0%}, {settings} settings x {starts} starts", f"won {won}, believed {believed}"


def false_leaders(trials: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Two equal settings: how often one is said to lead, in any kind of work, or with unequal numbers of starts."""
    cases: Mapping[str, tuple[int | tuple[int, int], int, Trial]] = {
        "3 kinds of work, 1 start": (1, 3, windows(3, window=0.01, start=0)),
        "8 kinds of work, 1 start": (1, 8, windows(3, window=0.01, start=0)),
        "3 kinds of work, 3 starts, start effect 2 %": (3, 3, windows(3, window=0.005, start=0.02)),
        "8 kinds of work, 3 starts, start effect 2 %": (3, 8, windows(3, window=0.005, start=0.02)),
        "1 start against 2, start effect 2 %": ((1, 2), 1, windows(3, window=0.005, start=0.02)),
        "1 start against 4, start effect 2 %": ((1, 4), 1, windows(3, window=0.005, start=0.02)),
        "2 starts against 6, start effect 2 %": ((2, 6), 1, windows(3, window=0.005, start=0.02)),
        "2 starts, of two kinds that lie 4 % apart": (2, 1, windows(3, window=0.005, start=0, modes=0.04)),
        "3 starts, of two kinds that lie 4 % apart": (3, 1, windows(3, window=0.005, start=0, modes=0.04)),
    }
    for name, (starts, kinds, trial) in cases.items():
        found = [judged(sweep((1, 1), starts, trial, rng, kinds)) for _ in range(trials)]
        led = [any(one.id.removesuffix("_for") in verdict.LEADS for one in each.sentences) for each in found]
        yield name, share(sum(led), trials)


def changing(trials: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Two equal settings on a machine that changes while the sweep lasts: how often one is said to lead or won."""
    cases: Mapping[str, dict[str, float | bool]] = {
        "heavy tails (Student's t, 3)": {"tails": True, "window": 0.01},
        "drift of 0.2 % a window, noise 0.5 %": {"drift": 0.002, "window": 0.005},
        "drift of 0.5 % a window, noise 0.5 %": {"drift": 0.005, "window": 0.005},
        "drift of 1 % a window, noise 0.5 %": {"drift": 0.01, "window": 0.005},
        "state of the machine 3 %, correlation 0.5 from window to window": {
            "state": 0.03,
            "keeps": 0.5,
            "window": 0.005,
        },
        "a jump by 3 %, once": {"jump": 0.03, "window": 0.005},
        "state of the machine 3 %, correlation 0.95": {"state": 0.03, "keeps": 0.95, "window": 0.005},
    }
    for name, what in cases.items():
        told = []
        for starts in (1, 2, 3):
            found = [judged(sweep((1, 1), starts, lasting(3, **what), rng)) for _ in range(trials)]  # type: ignore[arg-type]
            led = [any(one.id in verdict.LEADS for one in each.sentences) for each in found]
            told.append(f"{starts} starts {share(sum(led), trials)}")
        found = [judged(sweep((1, 1), 1, lasting(3, **what), rng, 3)) for _ in range(trials)]  # type: ignore[arg-type]
        led = [any(one.id.removesuffix("_for") in verdict.LEADS for one in each.sentences) for each in found]
        told.append(f"1 start and 3 kinds of work {share(sum(led), trials)}")
        yield name, ", ".join(told)


def power(trials: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """A true difference of 5 %: how often it is found where the report says that it would have been seen."""
    for starts, effect, window in (
        (1, 0.0, 0.01),
        (1, 0.0, 0.02),
        (3, 0.01, 0.005),
        (3, 0.02, 0.005),
        (4, 0.015, 0.01),
    ):
        said = seen = 0
        for _ in range(trials):
            run = sweep((1, 1.05), starts, windows(3, window=window, start=effect), rng)
            one, two = (Drawn(run, tuple(row for row in run.rows if row[SETTING] == n), COLUMN) for n in (0, 1))
            if (found := noise.difference(one, two)) and found.change.least <= 0.05:
                said, seen = said + 1, seen + (found.change.low > 0)
        where = f"{starts} starts, effect {effect:.1%}, window noise {window:.1%}"
        yield where, f"said in {share(said, trials)}, found in {share(seen, said)} of these"


def power_of_kinds(trials: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """A true difference of 5 % in every one of several kinds of work: in how many of them the better one leads."""
    cases = {
        "1 start, window noise 1 %": (1, windows(3, window=0.01, start=0)),
        "3 starts, effect 1 %, window noise 0.5 %": (3, windows(3, window=0.005, start=0.01)),
        "3 starts, effect 2 %, window noise 0.5 %": (3, windows(3, window=0.005, start=0.02)),
    }
    for (name, (starts, trial)), kinds in itertools.product(cases.items(), (1, 3, 8)):
        led = 0
        for _ in range(trials):
            said = judged(sweep((1, 1.05), starts, trial, rng, kinds)).sentences
            led += sum(
                one.id in (verdict.LEADS if kinds == 1 else [f"{lead}_for" for lead in verdict.LEADS]) for one in said
            )
        yield f"{name}, {kinds} kinds of work", share(led, trials * kinds)


def margins(trials: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """The best of K settings that lie 1 % apart: how often it is truly better by "at least" what is said."""
    for settings in (2, 4, 8):
        means = [1 + 0.01 * number for number in range(settings)]
        kept = count = 0
        for _ in range(trials):
            found = judged(sweep(means, 4, windows(3, window=0.003, start=0.003), rng))
            if found.winner is None:
                continue
            values, count = found.sentences[0].values, count + 1
            best, second = (means[int(str(values[name]).rpartition("=")[2])] for name in ("setting", "second"))
            kept += (best / second - 1) * 100 >= values["low"]
        yield (
            f"{settings} settings 1 % apart, 4 starts",
            f"won {share(count, trials)}, margin kept {share(kept, count)}",
        )


def bands(trials: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Curves over 8K to 128K tokens: how often the band holds the truth, at each length (said: 95 %)."""
    lengths = 1024.0 * np.array([8, 16, 32, 64, 128])
    curves: Mapping[str, tuple[Callable[[Floats], Floats], bool]] = {
        "a time (200 + 0.07 L + 4e-6 L^2 ms)": (lambda x: 200 + 0.07 * x + 4e-6 * x**2, False),
        "a rate (1 / (0.05 + 2e-6 L + 5e-12 L^2))": (lambda x: 1 / (0.05 + 2e-6 * x + 5e-12 * x**2), True),
    }
    for (name, (true, rate)), scatter in itertools.product(curves.items(), (0.01, 0.03, 0.06)):
        held, drawn = np.zeros(33), 0
        for _ in range(trials):
            noisy = true(lengths) * (1 + scatter * rng.standard_normal(len(lengths)))
            if curve := fit(list(lengths), list(noisy), rate=rate):
                at = true(np.array(curve.x))
                held += (np.array(curve.low) <= at) & (at <= np.array(curve.high))
                drawn += 1
        ends = [share(int(value), drawn) for value in (held.min(), held.max(), held[-1])]
        yield f"{name}, noise {scatter:.0%}", f"{ends[0]} to {ends[1]}, at 128K {ends[2]}"


TABLES = {
    "One setting against itself: told apart (nominal 5 %)": told_apart,
    "The same in an open loop": queued,
    "The same with a spread between starts that is known from earlier sweeps": remembered,
    "Settings that are all the same: a winner": false_winners,
    "Two settings that are the same: one leads": false_leaders,
    "Two settings that are the same on a machine that changes: one leads": changing,
    "A true difference of 5 %": power,
    "A true difference of 5 % in every kind of work: one leads in a kind": power_of_kinds,
    "The margin of the best": margins,
    "Bands of curves (95 %)": bands,
}


def monte_carlo(trials: int) -> None:
    """Print every table."""
    noise_side, verdict.Side = verdict.Side, Drawn  # type: ignore[attr-defined]
    try:
        for title, table in TABLES.items():
            print(f"\n### {title}\n\n| trial | found |\n|---|---|")
            for name, found in table(trials, np.random.default_rng(0)):
                print(f"| {name} | {found} |", flush=True)
    finally:
        verdict.Side = noise_side  # type: ignore[attr-defined]


def main() -> int:
    """Run one of the two, or both."""
    options = argparse.ArgumentParser(description="how often what is said is true")
    options.add_argument("what", nargs="?", choices=("monte-carlo", "sweeps"), default="monte-carlo")
    options.add_argument("--engine", default="simulator", choices=("simulator", "vllm_cpu"))
    options.add_argument("--trials", type=int, default=1000)
    options.add_argument("--window-s", type=float, default=5.0)
    options.add_argument("--windows", type=int, default=48, help="of the one service; 0: none")
    options.add_argument("--starts", type=int, default=6, help="of three windows each; 0: none")
    options.add_argument("--rate", type=float, default=3.0, help="of the open loop, requests/s")
    options.add_argument("--keep", type=Path, help="directory in which sweeps lie and are left")
    asked = options.parse_args()
    if asked.what == "monte-carlo":
        monte_carlo(asked.trials)
    else:
        sweeps(asked.engine, asked.window_s, asked.windows, asked.starts, asked.rate, asked.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
