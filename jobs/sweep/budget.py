"""Which points go where a plan is larger than its budget. Pure.

The least informative points go first, and of equally informative ones the one that was asked for last:
    1. loads between the lowest and the highest of a service: the curve keeps both its ends;
    2. of two loads left in a service, the one that was asked for last: each service keeps one point;
    3. the last point of a service, and with it its engine start.
What went last comes back first if the budget still has room for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REASONS = (
    "its load lies between two others of its service",
    "another load of its service remains",
    "its service was asked for last",
)


@dataclass(frozen=True)
class Start:
    """One engine start and its points; costs in node-hours.

    Attributes:
        points: from low to high load.
        fixed: load and teardown, paid once.
        each: cost of every point.
    """

    points: tuple[str, ...]
    fixed: float
    each: Mapping[str, float]

    def cost(self, gone: Mapping[str, str]) -> float:
        """Return the cost without the points that are gone; nothing where none is left."""
        left = [self.each[point] for point in self.points if point not in gone]
        return self.fixed + sum(left) if left else 0.0


def over_budget(starts: Sequence[Start], asked: Mapping[str, int], budget: float) -> dict[str, str]:
    """Return the points that go and why, in the order of going; none where the plan is within its budget.

    Args:
        starts: what the plan holds.
        asked: position of each point in the order of asking.
        budget: node-hours that are left over for them; never exceeded by what stays.
    """
    gone: dict[str, str] = {}
    order = sorted((rank, -asked[point], point, n) for n, s in enumerate(starts) for point, rank in _ranks(s, asked))
    left = [len(start.points) for start in starts]
    total = sum(start.cost(gone) for start in starts)
    for rank, _, point, number in order:
        if total <= budget:
            break
        gone[point] = REASONS[rank]
        left[number] -= 1
        total -= starts[number].each[point] + (0.0 if left[number] else starts[number].fixed)
        if total <= budget:  # the running sum may be off by its rounding
            total = sum(start.cost(gone) for start in starts)
    number_of = {point: number for number, start in enumerate(starts) for point in start.points}
    for point in reversed(list(gone)):
        number = number_of[point]
        more = starts[number].each[point] + (0.0 if left[number] else starts[number].fixed)
        if total + more <= budget - 1e-9:
            total += more
            left[number] += 1
            del gone[point]
    return gone


def _ranks(start: Start, asked: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return every point with its rank: the lower, the earlier it goes."""
    if len(start.points) == 1:
        return [(start.points[0], 2)]
    low, high = start.points[0], start.points[-1]
    first, second = sorted((low, high), key=lambda point: -asked[point])
    return [(point, 0) for point in start.points[1:-1]] + [(first, 1), (second, 2)]
