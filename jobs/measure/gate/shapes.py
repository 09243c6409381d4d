"""The shapes that a change over a window may have, and the test of the one that fits best. Pure.

A line (heat), one up and down again, a step (throttled, or warm at last) and a step that is taken back, each laid
through the logarithms of the seconds for a token by parts of the window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from jobs.core.student import student

Floats = NDArray[np.float64]

LEAST_PARTS = 5

CHANCE = 0.0025
"""Share of level windows that a single test may call otherwise: there are five, and all checks may name 2 %."""

SHORTEST = 2
"""Parts of the shortest level: one alone is a hiccup."""

F_LIMIT = {5: 190.0, 6: 112.0, 7: 87.0, 8: 68.0, 9: 59.0, 10: 52.0}
"""By number of parts: where no part depends on another, `CHANCE` of level windows fit a shape better. A line,
which is no choice of several, has its own limit in a closed loop; in an open one lines come by themselves."""

LINE = CHANCE / 6
"""One-sided, for Student's t of a line. A machine that swings slowly makes lines too."""

OPEN_LOOP = 2.0
"""In an open loop the parts depend on each other: requests that came close together are still there in the next one."""


def change(busy: Floats, made: Floats, *, open_loop: bool, bit_by_bit: bool = True, alike: float = 0.0) -> float:
    """Return by which share the seconds for a token change over the parts, up or down; 0: chance may do the same.

    Args:
        busy: seconds in each part, shape (parts,).
        made: tokens of them, shape (parts,). A part without any is left out.
        open_loop: the load is not held: an engine takes longer for a token where it makes more of them, which is
            allowed for.
        bit_by_bit: a line is a change too.
        alike: correlation of neighbouring parts: the mean of many then scatters by 1 + 2 `alike` of what it would.
    """
    there = made > 0
    parts = int(there.sum())
    if parts < LEAST_PARTS:
        return 0.0
    levels = np.log(busy[there] / made[there])
    rates = np.log(made[there]) if open_loop else None
    around, _ = _left(levels, np.ones((parts, 1)), rates)
    line = F_LIMIT[parts] if open_loop else student(1 - LINE, parts - 2) ** 2
    best, found = OPEN_LOOP if open_loop else 1 + 2 * alike, 0.0
    for number, (shape, reach) in enumerate(_shapes(parts)):
        left, size = _left(levels, np.column_stack([np.ones(parts), shape]), rates)
        fit = (around - left) / max(left / (parts - 2), 1e-9) / (F_LIMIT[parts] if number else line)
        if fit > best:
            best, found = fit, float(np.expm1(size * reach)) if bit_by_bit or reach == 1.0 else 0.0
    return found


def _left(levels: Floats, basis: Floats, rates: Floats | None) -> tuple[float, float]:
    """Return the squares that a least-squares fit leaves, and the range of what it fits."""
    if rates is not None:
        beside = np.column_stack([basis, rates - rates.mean()])
        found, *_ = np.linalg.lstsq(beside, levels, rcond=None)
        if found[-1] > 0:
            return float(((levels - beside @ found) ** 2).sum()), float(np.ptp(basis @ found[:-1]))
    found, *_ = np.linalg.lstsq(basis, levels, rcond=None)
    return float(((levels - basis @ found) ** 2).sum()), float(np.ptp(basis @ found))


def _shapes(parts: int) -> Iterator[tuple[Floats, float]]:
    """Yield a line, up and down again, steps, and steps that are taken back, each with the part of it that is seen.

    The middles of the parts do not reach the ends of the window.
    """
    place = np.arange(parts, dtype=np.float64)
    yield place, parts / (parts - 1)
    cuts = range(SHORTEST, parts - SHORTEST + 1)
    for top in cuts[1:-1]:
        yield np.abs(place - top + 0.5), parts / (parts - 1)
    for at in cuts:
        yield (place >= at).astype(np.float64), 1.0
    for first, last in itertools.combinations(cuts, 2):
        if last - first >= SHORTEST:
            yield ((place >= first) & (place < last)).astype(np.float64), 1.0
