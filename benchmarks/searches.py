"""How often is what is said of an objective true, and what a search finds by it? `python -m benchmarks.searches`

Windows before a queue are drawn (Poisson arrivals with a fixed count, first come, first served), of which the share of
misses is known by a long run: rows of three windows, and whole searches, led as `PointRun` leads them.
"""

from __future__ import annotations

import argparse
import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.measure import bound
from jobs.measure.search import Search

Floats = NDArray[np.float64]

WINDOW_S, WARMUP_S, LONG_S = 120.0, 15.0, 60_000.0


@dataclass(frozen=True)
class Queue:
    """A service before which requests wait.

    Attributes:
        slots: of `serve_s` seconds each, which scatter by `spread` (lognormal, a share of the mean).
        first_s: from the begin in a slot to the first token. limit_s: on the time to the first token.
    """

    slots: int
    serve_s: float
    first_s: float
    limit_s: float
    spread: float = 0.0

    def window(self, random: np.random.Generator, rate: float, seconds: float = WINDOW_S) -> tuple[Floats, Floats]:
        """Return when the requests of a window came, s, and what each took as a share of the limit."""
        came = np.sort(random.uniform(-WARMUP_S, seconds, max(1, round(rate * (seconds + WARMUP_S)))))
        variance = math.log1p(self.spread**2)
        takes = self.serve_s * np.exp(random.normal(-variance / 2, math.sqrt(variance), len(came)))
        free, took = [-WARMUP_S] * self.slots, np.empty(len(came))
        for place, at in enumerate(came):
            begin = max(float(at), heapq.heappop(free))
            heapq.heappush(free, begin + float(takes[place]))
            took[place] = begin - at + self.first_s
        inside = came >= 0
        return came[inside], took[inside] / self.limit_s

    def misses(self, rate: float) -> float:
        """Return the share of all requests that miss the limit."""
        return float((self.window(np.random.default_rng(99), rate, LONG_S)[1] > 1).mean())

    def edge(self) -> float:
        """Return the rate up to which 99 % keep it."""
        low, high = 0.0, self.slots / self.serve_s
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if self.misses(middle) <= 1 - bound.SHARE else (low, middle)
        return low


QUEUES = {
    "8 slots of 4 s, 1.5 s to wait": Queue(8, 4.0, 0.5, 2.0),
    "the same, lengths scatter by 70 %": Queue(8, 4.0, 0.5, 2.0, 0.7),
    "1 slot of 0.5 s, 2 s to wait": Queue(1, 0.5, 0.1, 2.1),
    "32 slots of 10 s, 1 s to wait": Queue(32, 10.0, 1.0, 2.0),
}


@dataclass
class Counted:
    """What windows at one load say together."""

    misses: int = 0
    total: int = 0
    each: tuple[float | None, ...] = ()

    def add(self, came: Floats, shares: Floats) -> None:
        """Take one window more."""
        self.misses, self.total = self.misses + int((shares > 1).sum()), self.total + len(shares)
        self.each = (*self.each, bound.together(came, shares))

    @property
    def together(self) -> float:
        """Requests that tell as much as one."""
        return bound.pooled(self.each)

    def decided(self, *, alone: bool = False) -> bool | None:
        """Return what they say; `alone`: as if each request were independent of the others."""
        return bound.decided(self.misses, self.total, 1.0 if alone else self.together)


def row(queue: Queue, rate: float, seed: int, windows: int = 3) -> Counted:
    """Return what the windows of a row say."""
    random, found = np.random.default_rng(seed), Counted()
    for _ in range(windows):
        found.add(*queue.window(random, rate))
    return found


def searched(queue: Queue, first: float, seed: int, *, alone: bool = False) -> tuple[float, int]:
    """Return the load that a search finds (0: none), and the windows that it takes."""
    random, looking = (
        np.random.default_rng(seed),
        Search(first, 64.0, 0.05, False, bound.needed(0) / bound.WINDOWS / WINDOW_S),
    )
    windows = 0
    while (load := looking.next()) is not None:
        found, told = Counted(), None
        for left in reversed(range(bound.WINDOWS)):
            found.add(*queue.window(random, load))
            windows += 1
            each, together = found.total / len(found.each), 1.0 if alone else found.together
            told, more = found.decided(alone=alone), round(left * found.misses / len(found.each))
            if told is not None or not bound.may_tell(found.misses, found.total, more, round(left * each), together):
                break
        looking.tell(load, keeps=told, few=told is None and not found.misses)
    return looking.kept or 0.0, windows


def rows(trials: int) -> None:
    """Print what rows of three windows say, near the edge and away from it."""
    print("| queue | rate, of the edge | true misses | kept | broken | not known | wrong | wrong by requests alone |")
    print("|---|---|---|---|---|---|---|---|")
    for name, queue in QUEUES.items():
        edge = queue.edge()
        for of_edge in (0.6, 0.8, 0.95, 1.05, 1.2, 1.4):
            misses = queue.misses(of_edge * edge)
            said = [row(queue, of_edge * edge, seed) for seed in range(trials)]
            told, alone = ([one.decided(alone=by) for one in said] for by in (False, True))
            shares = [told.count(one) / trials for one in (True, False, None)]
            false = misses > 1 - bound.SHARE
            print(
                f"| {name} | {of_edge:.0%} | {misses:.2%} | " + " | ".join(f"{share:.0%}" for share in shares)
                + f" | {told.count(false) / trials:.1%} | {alone.count(false) / trials:.1%} |",
                flush=True,
            )  # fmt: skip


def searches(trials: int) -> None:
    """Print what searches find."""
    print("\n| queue | found breaks it | found none | median, of the edge | windows | by requests alone: breaks it |")
    print("|---|---|---|---|---|---|")
    for name, queue in QUEUES.items():
        edge = queue.edge()
        first = max(0.42, 0.9 * edge)
        told, alone = ([searched(queue, first, seed, alone=by) for seed in range(trials)] for by in (False, True))
        found = np.array([load for load, _ in told])
        breaks = [sum(load > edge for load, _ in one) / trials for one in (told, alone)]
        print(
            f"| {name} | {breaks[0]:.1%} | {np.mean(found == 0):.1%} | {np.median(found) / edge:.0%} |"
            f" {np.mean([windows for _, windows in told]):.0f} | {breaks[1]:.1%} |",
            flush=True,
        )


def main() -> None:
    """Print both tables of docs/measuring.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=400)
    trials = parser.parse_args().trials
    rows(trials)
    searches(trials)


if __name__ == "__main__":
    main()
