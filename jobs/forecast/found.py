"""What a search has found (answer.json): the best setting, what it cost, what was ruled out by what, what is next.

Pure: a function of the question and of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.forecast.observed import COLUMNS
from jobs.forecast.search import Rows, Search
from jobs.forecast.tuner import STARTS, WORTH, Belief, Shown, Step, answer, gains, spent

NEXT_HOURS = 10.0
"""Node-hours of which it is said what they would most likely bring."""


def found(search: Search, rows: Rows) -> dict[str, Any]:
    """Return all that is told of a search, the answer first; figures in the units of their columns."""
    space, seen = search.space, search.shown(rows)
    believed, (step, task) = space.belief(seen), search.next(rows)
    made = answer(space, seen)
    column, unit = COLUMNS[search.goal.figure]
    names = [one.candidate.name for one in search.settings]
    best = None
    if made:
        ends = {name: getattr(made, name) * unit for name in ("value", "low", "high")}
        best = {"name": made.name, "tied": made.tied, **ends}
        won = search.settings[names.index(made.name)]
        best["overrides"] = list(won.overrides)
        told = [rows[point].get("slo_kept") for point in won.points if point in rows]
        best["unsure"] = bool(search.goal.limits) and True not in told
    return {
        "answer": best,
        "goal": column,
        "limits": {COLUMNS[name][0]: limit * COLUMNS[name][1] for name, limit in search.goal.limits},
        "over": task is None,
        "why": step.why,
        "node_hours": spent(space, seen),
        "budget_node_hours": search.budget_hours,
        "queue_hours": _queued(rows),
        "starts": sum(not one.shared for one in seen),
        "settings": _settings(search, rows, seen, believed, step),
        "ruled_out": dict(search.ruled_out),
        "next": _next(search, believed, seen),
    }


def _queued(rows: Rows) -> float:
    """Return the hours that the search waited in the queue: once for each allocation that gave it a row."""
    waited = {row.get("job_id"): row.get("queue_s") for row in rows.values() if not row.get("reused_from")}
    return sum(one for one in waited.values() if isinstance(one, int | float)) / 3600


def _settings(search: Search, rows: Rows, seen: Sequence[Shown], believed: Belief, step: Step) -> list[dict[str, Any]]:
    """Return every setting with its figures as they are believed now: those that keep their limits first."""
    space, sign = search.space, search.goal.sign
    figures, unit = space.figures(seen), COLUMNS[search.goal.figure][1]
    ranked = believed.ranked(seen)
    listed = []
    order = sorted(range(len(search.settings)), key=lambda one: (believed.keeps[one] < 0.5, -believed.mean[one]))
    for place in order:
        half = 1.645 * math.sqrt(max(float(believed.covariance[place, place]), 0.0))
        ends = sorted(unit * math.exp(sign * (believed.mean[place] + way * half)) for way in (-1, 1))
        own = [one for one in seen if one.candidate == place]
        listed.append(
            {
                "name": search.settings[place].candidate.name,
                "measured": bool(own),
                "starts": len({one.start for one in own}),
                "windows": sum(one.windows for one in own),
                **{column: float(figures[name][place]) * each for name, (column, each) in COLUMNS.items()},
                "low": ends[0],
                "high": ends[1],
                "keeps_limits": float(believed.keeps[place]),
                "out": _out(search, rows, own, place, believed, ranked, step),
            }
        )
    return listed


def _out(
    search: Search, rows: Rows, own: Sequence[Shown], place: int, believed: Belief, ranked: Sequence[int], step: Step
) -> str:
    """Return by what a setting is out of the race; empty: by nothing yet, or it won."""
    setting = search.settings[place]
    if own and (all(not one.figures for one in own) or any(not one.figures and not one.spoilt for one in own)):
        there = [rows[point] for point in setting.points if point in rows]
        grew = "its queue grew" if any(row.get("saturated") for row in there) else ""
        shows = f"it shows no {COLUMNS[search.goal.figure][0]}"
        return f"failed: {next(filter(None, (row.get('invalid_reason') for row in there)), grew or shows)}"
    if believed.keeps[place] < 0.5:
        return "limits" if own else "limits, by the forecast"
    if ranked[:1] == [place] or not ranked:
        return ""
    behind = 1 - math.exp(believed.mean[place] - believed.mean[ranked[0]])
    if not own:
        return "" if step.do != "stop" else f"forecast: {behind:.1%} behind" if behind > 0 else "budget"
    early = sum(one.windows for one in own) < search.windows
    return f"{'dropped early, ' if early else ''}{behind:.1%} behind"


def _next(search: Search, believed: Belief, seen: Sequence[Shown]) -> Mapping[str, Any]:
    """Return the starts that NEXT_HOURS more would hold, and at most what gain they can be expected to bring."""
    cost = [one.candidate.load_hours + search.windows * one.candidate.window_hours for one in search.settings]
    wanted = gains(believed, seen) if seen else [0.0] * len(cost)
    left, names, gain = NEXT_HOURS, [], 0.0
    for place in sorted(range(len(cost)), key=lambda one: -wanted[one] / cost[one]):
        begun = len({one.start for one in seen if one.candidate == place})
        if wanted[place] > WORTH / 10 and begun < STARTS and cost[place] <= left:
            left -= cost[place]
            gain += float(wanted[place])
            names.append(search.settings[place].candidate.name)
    return {"node_hours": NEXT_HOURS, "settings": names, "gain": gain}
