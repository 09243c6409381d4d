"""Points of one service whose windows are measured by turns, so that what drifts over time meets all of them alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs.core.config import Config
from jobs.measure.point import PointRun


def groups(configs: Mapping[str, Config], asked: Collection[str] = ()) -> list[tuple[str, ...]]:
    """Return the points of a service in groups that are measured by turns, in their order.

    Together go points that differ in nothing but their load, and so are compared, if each is measured in several
    windows of its own; those that are `asked` for, whatever they differ in. With `cluster.yield_to_others` one is
    measured after the other.
    """
    if set(configs) == set(asked):
        return [tuple(configs)]
    found: dict[str, list[str]] = {}
    for point, config in configs.items():
        alone = config.cluster.yield_to_others or config.bench.search or config.bench.is_external
        rest = replace(config.bench, concurrency=None, request_rate=None)
        found.setdefault(point if alone or config.bench.repeats < 2 else str(rest), []).append(point)
    return [tuple(points) for points in found.values()]


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
