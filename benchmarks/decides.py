"""How often is `decide` wrong, and what does it spend? `python -m benchmarks.decides`

What starts show is drawn from a normal distribution, or from one with heavier tails (Student's, 5 degrees of freedom);
the fixed design is the t test that needs the fewest pairs for the same errors, with the deviation known beforehand.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from random import Random
from statistics import median

from jobs.core.student import student
from jobs.results.sequential import ALPHA, BETA, Decision, Logs, decide, errors_of, first_worse

DIFFERENCE = 0.03
MOST = 400
"""Pairs after which nothing is decided."""

HEAVY = 5
"""Degrees of freedom of what scatters with heavier tails."""

DRIFT = 0.004
"""By which everything becomes slower from pair to pair, where it does."""


def fixed_pairs(deviation: float, difference: float, alpha: float = ALPHA, beta: float = BETA) -> int:
    """Return the pairs that a design of a fixed number needs for the same errors: a t test of the mean of pairs."""
    step, count = math.log1p(difference), 2
    while True:
        free = count - 1
        need = (student(1 - alpha / 2, free) + student(1 - beta, free)) * deviation / step
        if count >= need**2:
            return count
        count += 1


@dataclass(frozen=True)
class Kind:
    """How pairs come about: windows by turns, or starts; with heavier tails; while everything becomes slower."""

    by_turns: bool = False
    heavy: bool = False
    drift: bool = False

    def pair(self, random: Random, truth: float, deviation: float, number: int) -> Logs:
        """Return one pair: B's true ratio is 1 + truth. The second one of it is measured half a pair later."""
        one, two = (self._noise(random) * deviation / math.sqrt(2) for _ in "AB")
        if self.drift:
            first, second = (-DRIFT * (number + late) for late in (0, 0.5))
            one, two = (one + first, two + second) if number % 2 == 0 else (one + second, two + first)
        return one, two + math.log1p(truth)

    def _noise(self, random: Random) -> float:
        """Of deviation 1."""
        if not self.heavy:
            return random.gauss(0, 1)
        return random.gauss(0, 1) / math.sqrt(random.gammavariate(HEAVY / 2, 2) / (HEAVY - 2))


@dataclass
class Machine:
    """A machine that changes from one measurement to the next, whatever is measured; each has a deviation of 1.4 %."""

    random: Random
    what: str
    measured: int = 0
    state: float = 0.0

    def __post_init__(self) -> None:
        self._jumps, self._phase = self.random.randint(2, 40), self.random.uniform(0, 2 * math.pi)

    def pair(self, truth: float, deviation: float, number: int) -> Logs:
        """Return one pair, A B or B A by its number."""
        one, two = (self._measure(deviation / math.sqrt(2)) for _ in "AB")
        one, two = (one, two) if number % 2 == 0 else (two, one)
        return one, two + math.log1p(truth)

    def _measure(self, deviation: float) -> float:
        self.measured += 1
        name, _, value = self.what.partition(" ")
        found = self.random.gauss(0, deviation)
        if name == "state":
            keeps = float(value)
            self.state = keeps * self.state + math.sqrt(1 - keeps**2) * self.random.gauss(0, 0.03)
        changes = {
            "state": self.state,
            "jump": -0.03 * (self.measured >= self._jumps),
            "outlier": -0.3 * (self.random.random() < 0.05),
            "kinds": -0.04 * (self.random.random() < 0.5),
            "drift": -DRIFT * self.measured,
            "wave": 0.03 * math.sin(2 * math.pi * self.measured / float(value or 1) + self._phase),
        }
        return found + changes.get(name, 0.0)


MACHINES = ("level", "state 0.5", "state 0.95", "jump", "outlier", "kinds", "drift", "wave 8", "wave 2", "wave 4")


def on_machines(runs: int) -> None:
    """Print how often equal settings are told apart on machines that change, and a difference is found."""
    print("\n| the machine | windows: A/A told apart | 3 % found | starts: A/A told apart | 3 % found |")
    print("|---|---|---|---|---|")
    for what in MACHINES:
        told = []
        for by_turns, truth in itertools.product((True, False), (0.0, DIFFERENCE)):
            answers = []
            for seed in range(runs):
                machine = Machine(Random(f"{what} {seed} {truth}"), what)
                pairs: list[Logs] = []
                while (made := decide(pairs, DIFFERENCE, by_turns=by_turns)).answer == "open" and len(pairs) < 200:
                    pairs.append(machine.pair(truth, 0.02, len(pairs)))
                answers.append(made.answer)
            wrong = ("better", "worse") if not truth else ("better",)
            told.append(f"{sum(answer in wrong for answer in answers) / runs:.1%}")
        print(f"| {what} | {' | '.join(told)} |", flush=True)


@dataclass(frozen=True)
class Spent:
    """Shares of the answers over many runs, and the median of the pairs."""

    better: float
    worse: float
    same: float
    pairs: float


def run(
    random: Random,
    truth: float,
    deviation: float,
    difference: float = DIFFERENCE,
    kind: Kind = Kind(),
    errors: tuple[float, float] = (ALPHA, BETA),
) -> Decision:
    """Return one decision."""
    pairs: list[Logs] = []
    while True:
        pairs.append(kind.pair(random, truth, deviation, len(pairs)))
        made = decide(pairs, difference, by_turns=kind.by_turns, alpha=errors[0], beta=errors[1])
        if made.answer != "open" or len(pairs) >= MOST:
            return made


def spent(truth: float, deviation: float, runs: int, seed: int = 0, kind: Kind = Kind()) -> Spent:
    """Return what many decisions came to."""
    random = Random(seed)
    made = [run(random, truth, deviation, kind=kind) for _ in range(runs)]
    shares = {name: sum(one.answer == name for one in made) / runs for name in ("better", "worse", "same")}
    return Spent(**shares, pairs=median(one.pairs for one in made))


def bisected(seed: int, deviation: float, versions: int = 16, handicap: float = 0.05) -> tuple[bool, int]:
    """Return whether the first of so many versions that is slower by the handicap is found, and the pairs it took."""
    random = Random(f"bisection {seed}")  # what follows on small numbers as seeds is alike
    hidden = random.randrange(1, versions)
    pairs, errors = [], errors_of(versions)

    def worse(version: int) -> bool:
        truth = -handicap if version >= hidden else 0.0
        made = run(random, truth, deviation, difference=handicap, errors=errors)
        pairs.append(made.pairs)
        return made.answer == "worse"

    return first_worse(versions, worse) == hidden, sum(pairs)


KINDS = {
    "starts": Kind(),
    "starts, heavier tails": Kind(heavy=True),
    "starts, 0.4 % slower with each pair": Kind(drift=True),
    "windows by turns": Kind(by_turns=True),
}


def main() -> None:
    """Print the tables of docs/tuning.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    heads = ["pairs are", "deviation of a pair", "fixed design, pairs"]
    heads += ["A/A: told apart", "median pairs", "3 %: found", "median pairs"]
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|")
    for (name, kind), deviation in itertools.product(KINDS.items(), (0.02, 0.03, 0.045, 0.06, 0.08)):
        equal, apart = spent(0, deviation, runs, kind=kind), spent(DIFFERENCE, deviation, runs, seed=1, kind=kind)
        print(
            f"| {name} | {deviation:.1%} | {fixed_pairs(deviation, DIFFERENCE)} | {equal.better + equal.worse:.1%} |"
            f" {equal.pairs:g} | {apart.better:.1%} | {apart.pairs:g} |",
            flush=True,
        )
    on_machines(runs // 5)
    for deviation in (0.02, 0.045, 0.06):
        made = [bisected(seed, deviation) for seed in range(runs // 5)]
        share, pairs = sum(found for found, _ in made) / len(made), median(pairs for _, pairs in made)
        fixed = fixed_pairs(deviation, 0.05, *errors_of(16))
        print(f"\nbisection, deviation {deviation:.1%}: found in {share:.1%} of {len(made)}")
        print(f"{pairs:g} pairs in all; by the fixed design {fixed} for each comparison")


if __name__ == "__main__":
    main()
