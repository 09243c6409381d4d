"""A sweep that was submitted: its state, its table, its end."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from jobs.cli import NOT_WRITTEN, RUN, Command
from jobs.cli.output import tell
from jobs.core.rundir import SweepDir, open_sweep
from jobs.results.table import FORMATS, read_table, render, write_table
from jobs.sweep.lost import all_lost

if TYPE_CHECKING:
    import pandas as pd


def _status(options: argparse.Namespace) -> int:
    from jobs.sweep import status  # here and below: each command loads what it needs itself

    found = status.describe(open_sweep(options.run))
    print(json.dumps(found, ensure_ascii=False)) if options.json else tell("\n".join(status.lines(found)))
    return 0


def _follow(options: argparse.Namespace) -> int:
    from jobs.allocation.searching import told
    from jobs.results.report import write_report
    from jobs.results.search import lines
    from jobs.sweep.follow import follow
    from jobs.sweep.show import console

    found = open_sweep(options.run)
    out = console(stderr=options.json)
    follow(found, out, bar=False if options.json else None)
    code = _print(found, options, read_table(found, {} if found.writable else all_lost(found)))
    if found.search.exists():
        out.print("\n".join(lines(told(found))), markup=False)
        written = write_report(found)  # of its rows alone; the search knows more
    else:
        written = write_report(found, out.exact)
    out.print(f"report: {written}" if found.writable else NOT_WRITTEN, markup=False)
    return code


def _table(options: argparse.Namespace) -> int:
    found = open_sweep(options.run)
    table = write_table(found, all_lost(found))
    valid = bool(table["valid"].all())
    if options.format and not options.json:
        sys.stdout.buffer.write(render(table, options.format))
        return 0 if valid else 1
    return _print(found, options, table)


def _resume(options: argparse.Namespace) -> int:
    from jobs.sweep.resume import resume
    from jobs.sweep.show import console

    found = open_sweep(options.run)
    out = console(stderr=options.json)
    points = resume(found, retry_failed=options.retry_failed, tell=lambda line: out.print(line, markup=False))
    left = "the search goes on" if points and found.search.exists() else f"{points} points are left"
    out.print(f"sweep {found.path}: {left}" + ("" if points else ", nothing to do"), markup=False)
    return _follow(options)


def _cancel(options: argparse.Namespace) -> int:
    from jobs.cluster import base

    cancelled = [job for folder in open_sweep(options.run).allocations() if (job := base.cancel(folder))]
    said = f"cancelled: {', '.join(cancelled) or 'nothing to cancel'}"
    print(json.dumps({"cancelled": cancelled})) if options.json else tell(said)
    return 0


def _print(found: SweepDir, options: argparse.Namespace, table: pd.DataFrame) -> int:
    if options.json:
        print(table.to_json(orient="records"))
    else:
        from jobs.sweep.show import console, print_table

        print_table(found, console(), table)
    return 0 if table["valid"].all() else 1


FORMAT = ("--format", {"choices": FORMATS, "help": "form of the output; without it a table for people"})
RETRY = ("--retry-failed", {"action": "store_true", "help": "run failed points again as well"})

COMMANDS = (
    Command("status", _status, "show the state of every allocation and point", (RUN,)),
    Command("follow", _follow, "show progress until the table is there, then print it", (RUN,)),
    Command("table", _table, "make the table again from the files and print it", (RUN, FORMAT)),
    Command(
        "resume", _resume, "submit what is left of a sweep; finished valid points are never run again", (RUN, RETRY)
    ),
    Command("cancel", _cancel, "cancel this sweep's own jobs and nothing else", (RUN,)),
)
