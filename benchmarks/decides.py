"""How often is `decide` wrong, and what does it spend? `python -m benchmarks.decides`

Pairs are drawn from a normal distribution; the fixed design is the t test that needs the fewest pairs for the
same errors at that deviation.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from random import Random
from statistics import median

from jobs.results.sequential import ALPHA, BETA, Decision, Known, decide, errors_of, first_worse, fixed_pairs, known_of

DIFFERENCE = 0.03
MOST = 400
"""Pairs after which nothing is decided."""


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
    known: Known | None = None,
    errors: tuple[float, float] = (ALPHA, BETA),
) -> tuple[Decision, list[float]]:
    """Return one decision and the logarithms of its pairs: B's true ratio is 1 + truth."""
    logs: list[float] = []
    while True:
        logs.append(random.gauss(math.log1p(truth), deviation))
        made = decide(logs, difference, known, alpha=errors[0], beta=errors[1])
        if made.answer != "open" or len(logs) >= MOST:
            return made, logs


def spent(truth: float, deviation: float, runs: int, seed: int = 0, free: int = 0) -> Spent:
    """Return what many decisions came to; `free`: earlier pairs whose deviation is known."""
    random = Random(seed)
    made = []
    for _ in range(runs):
        earlier = [random.gauss(0, deviation) for _ in range(free + 1)]
        made.append(run(random, truth, deviation, known=known_of([earlier]))[0])
    shares = [sum(one.answer == answer for one in made) / runs for answer in ("better", "worse", "same")]
    return Spent(*shares, median(one.pairs for one in made))


def bisected(seed: int, deviation: float, versions: int = 16, handicap: float = 0.05) -> tuple[bool, int]:
    """Return whether the first of so many versions that is slower by the handicap is found, and the pairs it took.

    Each comparison knows the deviation of the pairs of those before it.
    """
    random = Random(seed)
    hidden = random.randrange(1, versions)
    groups: list[list[float]] = []
    errors = errors_of(versions)

    def worse(version: int) -> bool:
        truth = -handicap if version >= hidden else 0.0
        made, logs = run(random, truth, deviation, difference=handicap, known=known_of(groups), errors=errors)
        groups.append(logs)
        return made.answer == "worse"

    return first_worse(versions, worse) == hidden, sum(map(len, groups))


def main() -> None:
    """Print the tables of docs/tuning.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    heads = ("deviation of a pair", "earlier pairs", "fixed design, pairs")
    heads += ("A/A: told apart", "median pairs", "3 %: found", "median pairs")
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|")
    for deviation, free in itertools.product((0.02, 0.03, 0.045, 0.06, 0.08), (0, 30)):
        equal, apart = spent(0, deviation, runs, free=free), spent(DIFFERENCE, deviation, runs, seed=1, free=free)
        print(
            f"| {deviation:.1%} | {free} | {fixed_pairs(deviation, DIFFERENCE)} | {equal.better + equal.worse:.1%} |"
            f" {equal.pairs:g} | {apart.better:.1%} | {apart.pairs:g} |",
            flush=True,
        )
    for deviation in (0.02, 0.045, 0.06):
        made = [bisected(seed, deviation) for seed in range(runs // 5)]
        share, pairs = sum(found for found, _ in made) / len(made), median(pairs for _, pairs in made)
        fixed = fixed_pairs(deviation, 0.05, *errors_of(16))
        print(f"\nbisection, deviation {deviation:.1%}: found in {share:.1%} of {len(made)}")
        print(f"{pairs:g} pairs in all; by the fixed design {fixed} for each comparison")


if __name__ == "__main__":
    main()
