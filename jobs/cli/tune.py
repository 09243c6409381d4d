"""`python -m jobs tune`: find the best setting of a space for so many node-hours.

A search is a sweep whose points are chosen one after the other, by rank 0 of its allocation: following, cancelling and
resuming it is that of any other sweep.
"""

from __future__ import annotations

import argparse
import json

from jobs.allocation.searching import told
from jobs.cli import OVERRIDES, Command
from jobs.cli.output import INTERRUPTED, tell
from jobs.forecast.found import found
from jobs.forecast.search import Rows
from jobs.results.report import write_report
from jobs.results.search import lines, table
from jobs.sweep import reuse, show
from jobs.sweep.follow import follow
from jobs.sweep.space import Asked, ask
from jobs.sweep.start import start


def _tune(options: argparse.Namespace) -> int:
    return tune(options.overrides, as_json=options.json)


def tune(overrides: list[str], *, as_json: bool = False) -> int:
    """Start a search and follow it to its answer. Returns the exit code, 1: no setting keeps its limits.

    Raises:
        UserError: it cannot be asked, or was not submitted.
    """
    asked = ask(overrides)
    out, launch = show.console(stderr=as_json), asked.config.launch
    earlier = reuse.find(asked.plan.points, reuse.roots_of(asked.config.results.root, asked.config.results.roots))
    for line in reuse.offer_text(earlier, taken=launch.reuse):
        out.print(line, markup=False)
    taken = reuse.taken(earlier, launch)
    rows = {past.point: past.row for past in taken}
    out.print("\n".join(_question(asked, rows)), markup=False)
    if launch.dry_run:
        believed = found(asked.search, rows)
        if as_json:
            print(json.dumps(believed))
        else:
            out.print(
                "\n".join(["by what is believed now:", *table(believed["settings"], believed["goal"])]), markup=False
            )
        out.print("dry run: the next steps depend on the row of the first. Nothing was submitted")
        return 0
    sweep = start(asked.plan, taken, search=asked.search)
    out.print(show.begun_text("search", sweep, asked.config.results.name), markup=False)
    if not launch.follow:
        out.print(f"submitted; follow it by: python -m jobs follow {sweep.path}")
        if as_json:
            print(json.dumps({"sweep": str(sweep.path)}))
        return 0
    try:
        follow(sweep, out)
    except KeyboardInterrupt:
        out.print(f"\ndetached: the search goes on. Follow it by: python -m jobs follow {sweep.path}")
        return INTERRUPTED
    answer = told(sweep)
    print(json.dumps(answer)) if as_json else tell("\n".join(lines(answer)))
    out.print(f"report: {write_report(sweep)}", markup=False)
    return 0 if answer["answer"] else 1


def _question(asked: Asked, rows: Rows) -> list[str]:
    """Return what is searched, and what the first step is after rows that are taken over."""
    search = asked.search
    step, _ = search.next(rows)
    first = f"first: {search.settings[step.candidate].candidate.name}: {step.why}" if step.candidate >= 0 else step.why
    said = [
        f"{show.count(len(search.settings), 'setting')} to choose from, {search.budget_hours:g} node-hours",
        *([f"not given, so set by the search: {', '.join(asked.usual)}"] if asked.usual else []),
        first,
        *(f"warning: {one}" for one in asked.plan.warnings),
        *(f"never started: {name}: {reason}" for name, reason in search.ruled_out.items()),
    ]
    return said


COMMANDS = (
    Command(
        "tune",
        _tune,
        "find the best setting of tune.space within tune.budget_node_hours (goal=COLUMN: the figure)",
        (OVERRIDES,),
    ),
)
