"""A figure over lengths and loads as text: one line a value, a bar on a logarithmic scale, its interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.forecast.learn import Predicted

LEAST_WIDTH = 20


@dataclass(frozen=True)
class Line:
    """One line: what it is of, and its value; None: nothing is forecast, and `why` says why."""

    label: str
    said: Predicted | None
    why: str = ""


def chart(title: str, lines: Sequence[Line], width: int) -> str:
    """Return a chart that is at most so many characters wide; a terminal that is too narrow gets no bars."""
    values = [one.said for one in lines if one.said and not one.said.declined]
    if not values:
        reasons = dict.fromkeys(map(_why, lines))
        alike = [f"  {reason}" for reason in reasons] if len(reasons) == 1 else []
        return "\n".join([title, *(alike or (f"  {one.label}  {_why(one)}" for one in lines))])
    label = max(len(one.label) for one in lines)
    text = max(len(_number(one.said)) for one in lines if one.said and not one.said.declined)
    room = width - label - text - 6
    low, high = math.log(min(one.low for one in values)), math.log(max(one.high for one in values))
    out = [title]
    for one in lines:
        if one.said is None or one.said.declined:
            out.append(f"  {one.label:>{label}}  {_why(one)}")
            continue
        bar = _bar(one.said, low, max(high - low, 1e-9), room) if room >= LEAST_WIDTH else ""
        out.append(f"  {one.label:>{label}}  {_number(one.said):>{text}}  {bar}".rstrip())
    return "\n".join(out)


def _why(line: Line) -> str:
    return f"no forecast: {line.said.declined}" if line.said else line.why


def _number(said: Predicted) -> str:
    return f"{digits(said.value)} ({digits(said.low)} to {digits(said.high)})"


def digits(value: float) -> str:
    """Return three digits of a figure, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bar(said: Predicted, low: float, span: float, room: int) -> str:
    def place(value: float) -> int:
        return round((math.log(value) - low) / span * (room - 1))

    begin, middle, end = place(said.low), place(said.value), place(said.high)
    return "".join("●" if k == middle else "─" if begin <= k <= end else " " for k in range(end + 1))
