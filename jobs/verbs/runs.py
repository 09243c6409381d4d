"""A sweep that was submitted: its state, its table, its end."""

from __future__ import annotations

import argparse
import json

from jobs import jobstate, show, sweep
from jobs.follow import follow
from jobs.results.table import read_table, write_table
from jobs.rundir import SweepDir, read_json
from jobs.verbs import RUN, Verb


def _status(options: argparse.Namespace) -> int:
    found = _sweep(options)
    allocations = [
        {
            "allocation": int(folder.path.parent.name),
            "attempt": int(folder.path.name),
            "job_id": read_json(folder.job)["job_id"] if folder.job.exists() else None,
            "state": jobstate.job_state(folder),
        }
        for folder in found.allocations()
    ]
    table = read_table(found)
    points = json.loads(table[["point", "service", "valid", "invalid_reason"]].to_json(orient="records"))
    if options.json:
        print(json.dumps({"allocations": allocations, "points": points}))
        return 0
    for item in allocations:
        print(f"allocation {item['allocation']} attempt {item['attempt']}: job {item['job_id']} {item['state']}")
    for item in points:
        print(f"point {item['point']} (service {item['service']}): {item['invalid_reason'] or 'valid'}")
    return 0


def _follow(options: argparse.Namespace) -> int:
    found = _sweep(options)
    valid = follow(found, show.console(stderr=options.json), bar=False if options.json else None)
    return _print(found, options, valid)


def _table(options: argparse.Namespace) -> int:
    found = _sweep(options)
    return _print(found, options, bool(write_table(found)["valid"].all()))


def _resume(options: argparse.Namespace) -> int:
    found = _sweep(options)
    sweep.finish(found, show.console(stderr=options.json), retry_failed=options.retry_failed)
    return _follow(options)


def _cancel(options: argparse.Namespace) -> int:
    cancelled = [read_json(f.job)["job_id"] for f in _sweep(options).allocations() if jobstate.cancel(f)]
    print(
        json.dumps({"cancelled": cancelled})
        if options.json
        else f"cancelled: {', '.join(cancelled) or 'nothing to cancel'}"
    )
    return 0


def _print(found: SweepDir, options: argparse.Namespace, valid: bool) -> int:
    if options.json:
        print(read_table(found).to_json(orient="records"))
    else:
        sweep.print_table(found, show.console())
    return 0 if valid else 1


def _sweep(options: argparse.Namespace) -> SweepDir:
    return sweep.open_sweep(options.run)


RETRY = ("--retry-failed", {"action": "store_true", "help": "run failed points again as well"})

VERBS = (
    Verb("status", _status, "show the state of every allocation and point", (RUN,)),
    Verb("follow", _follow, "show progress until the table is there, then print it", (RUN,)),
    Verb("table", _table, "make the table again from the files and print it", (RUN,)),
    Verb("resume", _resume, "submit what is left of a sweep; finished valid points are never run again", (RUN, RETRY)),
    Verb("cancel", _cancel, "cancel this sweep's own jobs and nothing else", (RUN,)),
)
