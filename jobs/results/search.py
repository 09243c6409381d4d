"""What a search has found (answer.json), as the report and people read it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.core.errors import RunError
from jobs.core.foreign import load_form
from jobs.core.records import Number
from jobs.core.rundir import SweepDir

FORECASTS = 12
"""Settings that were not measured, of which people are told."""

MANY = 10_000
"""Settings of an answer: a search has hundreds at most (jobs/sweep/space.py)."""


@dataclass(frozen=True)
class _Best:
    name: str
    tied: str
    value: Number
    low: Number
    high: Number
    overrides: list[str]
    unsure: bool = False


@dataclass(frozen=True)
class _Setting:
    name: str
    measured: bool
    starts: int
    windows: int
    output_tok_per_s: Number
    ttft_ms_mean: Number
    tpot_ms_mean: Number
    out: str


@dataclass(frozen=True)
class _Next:
    node_hours: Number
    settings: list[str]
    gain: Number


@dataclass(frozen=True)
class _Found:
    answer: _Best | None
    goal: Literal["output_tok_per_s", "ttft_ms_mean", "tpot_ms_mean"]
    over: bool
    why: str
    node_hours: Number
    budget_node_hours: Number
    queue_hours: Number
    starts: int
    settings: Annotated[list[_Setting], Field(max_length=MANY)]
    ruled_out: Annotated[dict[str, str], Field(max_length=MANY)]
    next: _Next


def answer_of(sweep: SweepDir) -> dict[str, Any]:
    """Return what a search has found so far (jobs/forecast/found.py), with the command that serves it.

    Empty where the sweep is no search, where it has found nothing yet, or what is there cannot be read.
    """
    try:
        found = asdict(load_form(sweep.answer, _Found))
    except RunError:
        return {}
    if best := found["answer"]:
        found["answer"] = {**best, "serve": f"python -m jobs serve {shlex.join(best['overrides'])}"}
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the answer first, then what it cost, what was measured and what is only forecast, what comes next."""
    goal, best = found["goal"], found["answer"]
    if best is None:
        said = ["no setting that was measured keeps its limits" if found["starts"] else "nothing was measured"]
    else:
        said = [
            f"best: {best['name']}",
            f"  {goal} {best['value']:.4g} ({best['low']:.4g} to {best['high']:.4g})",
            f"  serve it: {best['serve']}",
        ]
        if best["unsure"]:
            said.append(
                "  whether 99 % of its requests keep bench.slo is not known: raise bench.window_s or bench.repeats"
            )
        if best["tied"]:
            said.append(f"  it cannot be told from {best['tied']}; the cheaper start is named first")
    spent = f"{found['node_hours']:.2f} of {found['budget_node_hours']:g} node-hours for {found['starts']} starts"
    spent += f", {found['queue_hours']:.2f} h in the queue"
    state = "" if found["over"] else "not over (python -m jobs resume RUN goes on), next: "
    said.append(f"cost: {spent}; {state}{found['why']}")
    said += ["by what is believed now:", *table(found["settings"], goal)]
    said += [f"never started: {name}: {reason}" for name, reason in found["ruled_out"].items()]
    more = found["next"]
    if names := ", ".join(more["settings"]):
        said.append(f"{more['node_hours']:g} node-hours more: {names}; expected to gain {more['gain']:.1%} at most")
    else:
        said.append(f"{more['node_hours']:g} node-hours more would most likely gain nothing")
    return said


def table(settings: Sequence[Mapping[str, Any]], goal: str) -> list[str]:
    """Return a line for each setting, the figure of the goal first; of those only forecast the first ones."""
    columns = ("output_tok_per_s", "ttft_ms_mean", "tpot_ms_mean")
    order = (goal, *(name for name in columns if name != goal))
    said = [f"  {' '.join(f'{name:>16}' for name in order)}  {'known by':<8}  setting"]
    forecast = [one for one in settings if not one["measured"]][FORECASTS:]
    for one in (one for one in settings if one not in forecast):
        figures = " ".join(f"{one[name]:16.4g}" for name in order)
        words = f"  {figures}  {'measured' if one['measured'] else 'forecast':<8}  {one['name']}"
        said.append(words + (f"  ({one['out']})" if one["out"] else ""))
    return [*said, *([f"  and {len(forecast)} more that are only forecast (answer.json)"] if forecast else [])]
