"""`python -m jobs decide A B`: which of two settings is faster, in the fewest measurements; or (`--bisect`) since which
value it is slower.

Its sweeps are named after the two settings, and end by themselves with the answer. So the same command follows one that
runs, goes on where one was ended, and finds the answer in the rows where it is there already.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jobs.cli import Command
from jobs.core.errors import ConfigError, RunError
from jobs.core.files import write_json
from jobs.core.rundir import SweepDir
from jobs.results.pairs import of_sweep, read_question, standing
from jobs.results.pairs_text import Found, as_json, bisected, lines
from jobs.results.sequential import errors_of, first_worse
from jobs.sweep import record, show
from jobs.sweep.contest import Budget, Contest, Past, ask, runs, settings_of, share, versions_of
from jobs.sweep.follow import follow
from jobs.sweep.resume import resume
from jobs.sweep.start import start


class Undecided(Exception):
    """A step of a bisection has no answer."""


def _decide(options: argparse.Namespace) -> int:
    difference, budget = share(options.difference), Budget(options.node_hours, options.pairs)
    budget.check()
    out = show.console(stderr=options.json)
    if options.bisect:
        return _bisect(options, difference, budget, out)
    contest = ask(settings_of(options.overrides, options.common), options.goal, difference)
    contest.check(budget)
    _warn(contest, budget, out)
    if contest.configs[0].launch.dry_run:
        return _show_first(contest, budget, out, options)
    found = _answer(contest, budget, out)
    if options.json:
        print(json.dumps(as_json(found)))
    else:
        out.print("\n".join(lines(found)), markup=False)
    return 1 if found.is_open else 0


def _answer(contest: Contest, budget: Budget, out: Any) -> Found:
    """Measure pairs until they decide, or the budget is spent.

    Raises:
        KeyboardInterrupt: Ctrl-C; the sweep that runs goes on.
        RunError: a sweep cannot be started.
    """
    told: set[str] = set()
    why = ""

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            out.print(line, markup=False)

    while True:
        with contest.alone(tell):
            past = contest.past(tell)
            for one in past:
                if one.stale:
                    tell(f"not counted: the rows of {one.sweep.path}: {one.stale}")
            counting = tuple(one for one in past if not one.stale)
            now = contest.standing(counting)
            if now.decision.answer != "open" or now.broken:
                why = now.over
            sweep = None if why else _next(contest, past, counting, budget, out)
        if sweep is None:
            asked = (contest.names, contest.goal, contest.difference, contest.by_windows)
            why = why or "the budget is spent"
            return Found(*asked, now, why, contest.hours(counting), tuple(one.sweep for one in counting))
        why = _followed(sweep, out)


def _next(
    contest: Contest, past: Sequence[Past], counting: tuple[Past, ...], budget: Budget, out: Any
) -> SweepDir | None:
    """Return the sweep that runs, that was ended and now goes on, or that is begun; None: the budget is spent."""
    last = counting[-1] if counting else None
    if last and runs(last.sweep):
        out.print(f"it runs already: {last.sweep.path}")
        return last.sweep
    if last and not contest.by_windows:
        before = counting[:-1]
        most = contest.affordable(budget, sum(len(one.pairs) for one in before), contest.hours(before))
        most = min(most, len(last.question.pairs))
        if len(last.pairs) < most:
            write_json(last.sweep.question, replace(last.question, most=most))
            out.print(f"going on with {last.sweep.path}: {len(last.pairs)} of at most {most} pairs are measured")
            try:
                resume(last.sweep, retry_failed=False)
            except RunError:
                if not runs(last.sweep):  # else a `resume` of its own was first
                    raise
            return last.sweep
    count = contest.affordable(budget, sum(len(one.pairs) for one in counting), contest.hours(counting))
    if count < 1:
        return None
    made = contest.plan(0 if contest.by_windows else sum(len(one.question.pairs) for one in past), count)
    sweep = start(made, question=contest.question(made, count, counting))
    out.print(f"sweep {sweep.path}: {_at_most(contest, count)}")
    return sweep


def _followed(sweep: SweepDir, out: Any) -> str:
    """Follow a sweep to its end. Returns why it ended before its answer and its last pair; empty: it did not."""
    try:
        follow(sweep, out)
    except KeyboardInterrupt:
        out.print(f"\ndetached: {sweep.path} goes on to the answer; the same command follows it")
        raise
    asked = read_question(sweep)  # one that ran already may have been asked something else
    pairs = of_sweep(sweep, asked) if asked else []
    if asked and standing(asked, pairs).over:
        return ""
    reason = next((pair for pair in reversed(pairs) if isinstance(pair, str)), "")
    return f"{sweep.path} ended after {show.count(len(pairs), 'pair')}{reason and f': {reason}'}"


def _at_most(contest: Contest, count: int) -> str:
    kind = "windows of one service, by turns" if contest.by_windows else "starts of A and B, in balanced order"
    hours = contest.load_hours + count * contest.pair_hours
    return f"at most {show.count(count, 'pair')} ({kind}), about {hours:.2f} node-hours; it ends with the answer"


def _warn(contest: Contest, budget: Budget, out: Any) -> None:
    if (count := contest.affordable(budget, 0, 0.0)) < contest.least:
        words = f"the budget has {show.count(count, 'pair')}, and nothing is decided before {contest.least}"
        out.print(f"warning: {words}: {contest.load_hours + contest.least * contest.pair_hours:.2f} node-hours")


def _show_first(contest: Contest, budget: Budget, out: Any, options: argparse.Namespace) -> int:
    count = contest.affordable(budget, 0, 0.0)
    made = contest.plan(0, count if contest.by_windows else 1)
    if options.json:
        print(json.dumps(record.as_json(made), ensure_ascii=False))
    show.print_plan(made, out)
    out.exact("\n" + show.commands_text(made))
    out.print(_at_most(contest, count))
    out.print("dry run: this is the first pair. Nothing was submitted")
    return 0


def _bisect(options: argparse.Namespace, difference: float, budget: Budget, out: Any) -> int:
    """Find the first value that is slower than the first one. Returns the exit code."""
    if options.overrides:
        reason = "a bisection has no A and B: its first value is A"
        raise ConfigError("A B", " ".join(options.overrides), reason, "What all values have goes after --with.")
    versions = versions_of(options.bisect, options.common)
    contests = [ask((versions[0], one), options.goal, difference) for one in versions[1:]]
    if len({one.name for one in contests}) < len(contests):
        raise ConfigError("--bisect", options.bisect, "a value stands in it twice", "Give each one once.")
    for contest in contests:
        contest.check(budget)
    _warn(contests[-1], budget, out)
    if contests[0].configs[0].launch.dry_run:
        return _show_first(contests[-1], budget, out, options)
    steps: list[Found] = []

    def worse(place: int) -> bool:
        left = None if budget.hours is None else budget.hours - sum(one.hours for one in steps)
        contest = replace(contests[place - 1], errors=errors_of(len(versions)))
        out.print(f"step {len(steps) + 1}: {contest.names[1]} beside {contest.names[0]}")
        steps.append(_answer(contest, replace(budget, hours=left), out))
        if steps[-1].is_open:
            raise Undecided
        return steps[-1].now.decision.answer == "worse"

    place, is_open = None, False
    try:
        place = first_worse(len(versions), worse)
    except Undecided:
        is_open = True
    first = contests[place - 1].names[1] if place else None
    if options.json:
        answer = "open" if is_open else "found" if first else "none"
        print(json.dumps({"answer": answer, "first": first, "steps": [as_json(one) for one in steps]}))
    else:
        out.print("\n".join(bisected(first, steps)), markup=False)
    return 1 if is_open else 0


COMMANDS = (
    Command(
        "decide",
        _decide,
        "A or B, in the fewest measurements: two settings, images or releases; or the first value that is slower",
        (
            (
                "overrides",
                {"nargs": "*", "metavar": "A B", "help": "two settings, each in quotes: 'KEY=VALUE KEY=VALUE'"},
            ),
            ("--with", {"dest": "common", "nargs": "+", "default": [], "metavar": "OVERRIDE", "help": "of A and B"}),
            ("--difference", {"required": True, "metavar": "D", "help": "that is to be found: 3%% or 0.03"}),
            ("--goal", {"default": "output_tok_per_s", "metavar": "COLUMN", "help": "figure that is compared"}),
            ("--node-hours", {"type": float, "metavar": "N", "help": "budget, the queue apart"}),
            ("--pairs", {"type": int, "metavar": "N", "help": "most pairs that are measured"}),
            ("--bisect", {"metavar": "KEY=V1,V2,...", "help": "find the first value that is slower than V1"}),
        ),
    ),
)
