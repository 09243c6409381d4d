"""What a contest of two settings, or a bisection, came to: text for people, the answer first, and plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.core.rundir import SweepDir
from jobs.results.columns import low_is_best
from jobs.results.pairs import Standing, changed


@dataclass(frozen=True)
class Found:
    """What a contest came to: what its pairs say, why it ended, what they cost in node-hours, and where they are.

    Attributes:
        names: of A and B.
        goal, difference: what was asked; `by_windows`: pairs are windows of one service.
    """

    names: tuple[str, str]
    goal: str
    difference: float
    by_windows: bool
    now: Standing
    why: str
    hours: float
    sweeps: tuple[SweepDir, ...]

    @property
    def is_open(self) -> bool:
        """Whether nothing is decided."""
        return self.now.decision.answer == "open"


def headline(found: Found) -> str:
    """Return the answer in one line."""
    goal, decision = found.goal, found.now.decision
    if decision.answer == "same":
        return f"no difference of {found.difference * 100:.3g} % or more"
    if found.is_open:
        return f"not decided: {found.why}"
    won, lost, least = "B", "A", decision.low
    if decision.answer == "worse":
        won, lost, least = "A", "B", 1 / (1 + decision.high) - 1
    said = f"{won} is faster than {lost}: {goal} is {'lower' if low_is_best(goal) else 'higher'}"
    return f"{said}, by at least {abs(changed(goal, least)):.1%}" if least > 0 else said


def lines(found: Found) -> list[str]:
    """Return the answer, then A and B, the interval, the cost and the pairs."""
    decision, told = found.now.decision, as_json(found)
    said = [headline(found), f"  A: {found.names[0]}", f"  B: {found.names[1]}"]
    if decision.pairs > 1:
        between = f"{told['low']:+.1%} to {told['high']:+.1%}, 95 %"
        said.append(f"  {found.goal} from A to B: {told['change']:+.1%} ({between})")
    pairs = f"{decision.pairs} pair{'s' * (decision.pairs != 1)} of {told['pairs_are']}"
    why = "" if found.is_open else f"; {found.why}"
    said.append(f"cost: {pairs}, about {found.hours:.2f} node-hours{why}")
    if gone := found.now.gone:
        said.append(
            f"without figures: {len(gone)} of {len(gone) + decision.pairs} pairs: {'; '.join(dict.fromkeys(gone))}"
        )
    if told["pairs"]:
        said.append("pairs, in order: " + " ".join(f"{one:+.1%}" for one in told["pairs"]))
    return [*said, *(f"rows: {path}" for path in told["sweeps"])]


def as_json(found: Found) -> dict[str, Any]:
    """Return the same as plain data; changes are shares, from A to B."""
    decision = found.now.decision
    ends = sorted(changed(found.goal, one) for one in (decision.low, decision.high)) if decision.pairs > 1 else []
    return {
        "answer": decision.answer,
        "a": found.names[0],
        "b": found.names[1],
        "goal": found.goal,
        "difference": found.difference,
        "change": changed(found.goal, decision.ratio) if decision.pairs else None,
        "low": ends[0] if ends else None,
        "high": ends[1] if ends else None,
        "pairs": [changed(found.goal, math.expm1(two - one)) for one, two in found.now.logs],
        "without_figures": list(found.now.gone),
        "pairs_are": "windows" if found.by_windows else "starts",
        "node_hours": found.hours,
        "why": found.why,
        "sweeps": [str(sweep.path) for sweep in found.sweeps],
    }


def bisected(first: str | None, steps: Sequence[Found]) -> list[str]:
    """Return what a bisection came to: the first value that is slower (None: there is none), then its steps."""
    last, hours = steps[-1], sum(one.hours for one in steps)
    good, difference = last.names[0], f"{last.difference * 100:.3g} %"
    if last.is_open:
        said = f"not decided: {last.names[1]} beside {good}: {last.why}"
    elif first:
        said = f"the first that is slower than {good}: {first}"
    else:
        said = f"none is slower than {good} by {difference} or more"
    listed = [f"  {one.names[1]}: {headline(one)}" for one in steps]
    return [said, *listed, f"cost: about {hours:.2f} node-hours for {len(steps)} comparison{'s' * (len(steps) != 1)}"]
