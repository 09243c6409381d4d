"""What the scripts in sbatch/ call."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from jobs.cli import OVERRIDES, Command
from jobs.core.rundir import AllocationDir
from jobs.sweep import batch


def _prepare(options: argparse.Namespace) -> int:
    folder = batch.prepare(options.overrides, options.script, serve=options.serve)
    found = {"sweep": str(folder.sweep.path), "allocation": str(folder.path)}
    print(json.dumps(found) if options.json else folder.path)
    return 0


def _rest(options: argparse.Namespace) -> int:
    job_id = batch.rest(AllocationDir(options.allocation))
    if options.json:
        print(json.dumps({"job_id": job_id}))
    return 0


COMMANDS = (
    Command(
        "prepare",
        _prepare,
        "in a batch job: make plan and run directory, print the allocation's directory for"
        " `python -m jobs.allocation.rank`",
        (
            OVERRIDES,
            ("--serve", {"action": "store_true", "help": "one service for hand tests; nothing is measured"}),
            ("--script", {"type": Path, "help": "the batch script, kept with the record"}),
        ),
    ),
    Command(
        "rest",
        _rest,
        "in a batch job: submit what the time limit left as a new job",
        (("allocation", {"type": Path, "metavar": "ALLOCATION_DIR", "help": "as `prepare` printed it"}),),
    ),
)
