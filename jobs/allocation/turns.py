"""Points of one service whose windows are measured by turns, so that what drifts over time meets all of them alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs.core.config import Config
from jobs.forecast.duration import point_seconds
from jobs.measure.point import PointRun

LONGEST_S = 3600.0
"""Seconds that a group takes, about: what fails in it leaves windows that a resume measures again."""


def groups(configs: Mapping[str, Config], asked: Collection[str] = ()) -> list[tuple[str, ...]]:
    """Return the points of a service in groups that are measured by turns, in their order.

    Together go points that are measured in several windows of their own, loads and kinds of work (lengths) alike: what
    drifts meets all of them, and three windows that lie far apart tell a drift far better than three in a row. Loads of
    one work stay together; further work does while it fits LONGEST_S. With `cluster.yield_to_others` one is measured
    after the other; those that are `asked` for go together, whatever they are.
    """
    if set(configs) == set(asked):
        return [tuple(configs)]
    works: dict[tuple[str, bool], list[str]] = {}
    for point, config in configs.items():
        alone = config.cluster.yield_to_others or config.bench.search or config.bench.is_external
        turns = not alone and config.bench.repeats > 1
        rest = str(replace(config.bench, concurrency=None, request_rate=None))
        works.setdefault((rest if turns else point, turns), []).append(point)
    found: list[list[str]] = []
    group: list[str] = []
    taken = 0.0
    for (_, turns), points in works.items():
        if not turns:
            found.append(points)
            continue
        seconds = sum(point_seconds(configs[point]) for point in points)
        if not group or taken + seconds > LONGEST_S:
            found.append(group := [])
            taken = 0.0
        group += points
        taken += seconds
    return [tuple(points) for points in found]


@dataclass
class Turns:
    """Measures points by turns: A B C, C B A, A B C.

    Args:
        runs: by point, all with one `stop`.
        between: told a point that waits for its next window.
        enough: asked before each further round; true: the windows so far tell all.

    Attributes:
        cut: the point that was being measured last; None: all have come to their end.
    """

    runs: Mapping[str, PointRun]
    stop: asyncio.Event
    between: Callable[[str], Awaitable[None]]
    enough: Callable[[], bool] = lambda: False
    cut: str | None = field(default=None, init=False)

    async def run(self) -> None:
        """Measure; what came of it so far is in each run's `result`, whenever this ends."""
        if len(self.runs) == 1:
            [(self.cut, run)] = self.runs.items()
            await run.run()
            return
        for point, number in self._steps():
            self.cut, run = point, self.runs[point]
            await (run.begin() if number == 0 else run.end() if number > run.turns else run.turn(number))
            if self.stop.is_set():
                return
            if 0 < number < run.turns:
                await self.between(point)
        self.cut = None

    def _steps(self) -> Iterator[tuple[str, int]]:
        """Yield point and number: 0 is its begin, then its windows, then its end."""
        last = max(run.turns for run in self.runs.values()) + 1
        done = False
        for number in range(last + 1):
            done = done or (1 < number < last and self.enough())
            if done and number < last:
                continue
            names: Sequence[str] = list(self.runs)
            yield from ((name, number) for name in (names if number in (0, last) or number % 2 else reversed(names)))
