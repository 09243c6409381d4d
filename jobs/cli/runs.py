"""A sweep that was submitted: its state, its table, its end."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from jobs.cli import RUN, Verb
from jobs.cluster import slurm
from jobs.core.files import read_json
from jobs.core.rundir import SweepDir
from jobs.results.report import write_report
from jobs.results.table import FORMATS, read_table, render, write_table
from jobs.sweep import launch, show, status
from jobs.sweep.follow import follow
from jobs.sweep.lost import all_lost

if TYPE_CHECKING:
    import pandas as pd


def _status(options: argparse.Namespace) -> int:
    found = status.describe(_sweep(options))
    print(json.dumps(found, ensure_ascii=False) if options.json else "\n".join(status.lines(found)))
    return 0


def _follow(options: argparse.Namespace) -> int:
    found = _sweep(options)
    out = show.console(stderr=options.json)
    follow(found, out, bar=False if options.json else None)
    code = _print(found, options, read_table(found))
    out.print(f"report: {write_report(found)}", markup=False)
    return code


def _table(options: argparse.Namespace) -> int:
    found = _sweep(options)
    table = write_table(found, all_lost(found))
    valid = bool(table["valid"].all())
    if options.format and not options.json:
        sys.stdout.buffer.write(render(table, options.format))
        return 0 if valid else 1
    return _print(found, options, table)


def _resume(options: argparse.Namespace) -> int:
    found = _sweep(options)
    launch.finish(found, show.console(stderr=options.json), retry_failed=options.retry_failed)
    return _follow(options)


def _cancel(options: argparse.Namespace) -> int:
    cancelled = [read_json(f.job)["job_id"] for f in _sweep(options).allocations() if slurm.cancel(f)]
    print(
        json.dumps({"cancelled": cancelled})
        if options.json
        else f"cancelled: {', '.join(cancelled) or 'nothing to cancel'}"
    )
    return 0


def _print(found: SweepDir, options: argparse.Namespace, table: pd.DataFrame) -> int:
    if options.json:
        print(table.to_json(orient="records"))
    else:
        launch.print_table(found, show.console(), table)
    return 0 if table["valid"].all() else 1


def _sweep(options: argparse.Namespace) -> SweepDir:
    return launch.open_sweep(options.run)


FORMAT = ("--format", {"choices": FORMATS, "help": "form of the output; without it a table for people"})
RETRY = ("--retry-failed", {"action": "store_true", "help": "run failed points again as well"})

VERBS = (
    Verb("status", _status, "show the state of every allocation and point", (RUN,)),
    Verb("follow", _follow, "show progress until the table is there, then print it", (RUN,)),
    Verb("table", _table, "make the table again from the files and print it", (RUN, FORMAT)),
    Verb("resume", _resume, "submit what is left of a sweep; finished valid points are never run again", (RUN, RETRY)),
    Verb("cancel", _cancel, "cancel this sweep's own jobs and nothing else", (RUN,)),
)
