"""A service for hand tests: start it, and say how to reach it."""

from __future__ import annotations

import argparse
import json

from rich.console import Console

from jobs.allocation import serving
from jobs.cli import OVERRIDES, RUN, Command
from jobs.cli.output import INTERRUPTED, tell
from jobs.core.errors import RunError
from jobs.core.rundir import SweepDir, open_sweep
from jobs.results.table import read_table
from jobs.sweep import show
from jobs.sweep.batch import one_service
from jobs.sweep.follow import follow
from jobs.sweep.start import start


def _serve(options: argparse.Namespace) -> int:
    made = one_service(options.overrides)
    out = show.console(stderr=True)
    out.print(show.plan_text(made))
    return _wait(start(made, serve=True), options, out)


def _reach(options: argparse.Namespace) -> int:
    return _wait(open_sweep(options.run), options, show.console(stderr=True))


def _wait(found: SweepDir, options: argparse.Namespace, out: Console) -> int:
    """Wait until the service can be reached, and say how."""
    out.print(f"sweep {found.path}", markup=False)
    try:
        follow(found, out, bar=False if options.json else None, until=lambda: serving.ready(found) is not None)
    except KeyboardInterrupt:
        out.print(f"\ndetached: it goes on. How to reach it: python -m jobs reach {found.path}", markup=False)
        return INTERRUPTED
    folder = serving.ready(found)
    if folder is None:
        reasons = [str(reason) for reason in read_table(found)["invalid_reason"].dropna()]
        remedy = "See its directory, or python -m jobs diagnose."
        raise RunError("serve", found.path, "; ".join(reasons) or "it has ended", remedy)
    if options.json:
        print(json.dumps(serving.read(folder) | {"sweep": str(found.path)}))
    else:
        tell(serving.text(folder))
    return 0


COMMANDS = (
    Command(
        "serve", _serve, "keep one service up for hand tests until cancelled, and say how to reach it", (OVERRIDES,)
    ),
    Command("reach", _reach, "say how to reach a service for hand tests, once it is ready", (RUN,)),
)
