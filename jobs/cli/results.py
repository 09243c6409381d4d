"""What came out: one table of many sweeps, the report, comparisons, exports."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli import NOT_WRITTEN, RUN, Command
from jobs.cli.output import tell
from jobs.core.files import public, write_bytes, write_text
from jobs.core.rundir import open_sweep
from jobs.results import page
from jobs.results.compare import compare, left_out, text
from jobs.results.export import TARGETS, export
from jobs.results.fingerprint import NAMES
from jobs.results.gather import collect, read_run, read_runs, unlike
from jobs.results.report import data
from jobs.results.search import answer_of, lines
from jobs.results.table import FORMATS, render
from jobs.sweep import show

if TYPE_CHECKING:
    import pandas as pd


def _collect(options: argparse.Namespace) -> int:
    runs, skipped = read_runs(options.runs)
    table = collect(runs)
    form = "json" if options.json else options.format
    content = b"" if table.empty and not runs else render(table, form or "csv")
    if options.out:
        write_bytes(options.out, content, public())
    elif form:
        sys.stdout.buffer.write(content)
    elif runs:
        out = show.console()
        fixed = unlike(runs)
        shown = fixed if len(fixed) <= MOST_FIXED else ()
        swept = ("run", *dict.fromkeys([*(key for run in runs for key in run.swept), *shown]))
        out.print(show.table_view(table, swept, out.width if out.is_terminal else None))
        if reasons := show.reasons_text(table, swept):
            out.print(reasons, markup=False)
        for line in _apart(table, [] if shown else fixed):
            out.print(line, markup=False)
    for one in skipped:
        tell(f"skipped {one.what}: {one.reason}", file=sys.stderr)
    return 0 if runs else 1


MOST_FIXED = 6
"""Keys that no sweep swept and that differ between sweeps: more of them are not for a terminal's table."""


def _apart(table: pd.DataFrame, keys: Sequence[str]) -> Iterator[str]:
    """Yield in what sweeps differ beside the table's columns: their keys, and what they ran on."""
    if keys:
        yield f"the sweeps differ in {len(keys)} more keys, each a column of --format csv: {', '.join(keys)}"
    for name in NAMES:
        seen: dict[str, dict[str, None]] = {}
        for run, value in table[["run", name]].dropna().itertuples(index=False):
            seen.setdefault(str(value), {})[run] = None
        if len(seen) > 1:
            yield f"{name} differs: " + "; ".join(f"{value} in {', '.join(runs)}" for value, runs in seen.items())


def _report(options: argparse.Namespace) -> int:
    found = open_sweep(options.run)
    if options.json:
        print(json.dumps(data(read_run(found.path)), ensure_ascii=False))
        return 0
    shown = data(read_run(found.path))
    if found.writable:
        write_text(found.report, page.render(shown))
    if answer := answer_of(found):
        tell("\n".join(lines(answer)))
    for sentence in () if answer else shown["verdict"]["sentences"]:
        print(page.worded(sentence))
    tell(f"report: {found.report}" if found.writable else NOT_WRITTEN)
    return 0


def _compare(options: argparse.Namespace) -> int:
    pairs = compare(options.a, options.b, options.key, anyway=options.anyway)
    print(json.dumps([asdict(pair) for pair in pairs], default=str)) if options.json else tell(text(pairs))
    for one in left_out(options.a, options.b, options.key):
        tell(f"not compared: {one}", file=sys.stderr)
    return 0


def _export(options: argparse.Namespace) -> int:
    written = export(read_run(open_sweep(options.run).path), options.to, options.out)
    if options.json:
        print(json.dumps({"to": options.to, "written": [str(path) for path in written]}))
    else:
        tell("\n".join(f"written: {path}" for path in written) or "nothing to export: no valid row")
    return 0


RUNS = ("runs", {"nargs": "+", "type": Path, "metavar": "RUN", "help": "directories of sweeps, also of other users"})
FORMAT = ("--format", {"choices": FORMATS, "help": "form of the output; without it a table for people"})
OUT = ("--out", {"type": Path, "metavar": "FILE", "help": "write here (csv unless --format says otherwise)"})
SIDE = {"type": Path, "help": "directory of a sweep, or of a point in it (runs/<sweep>/points/<point>)"}
KEY = ("--key", {"metavar": "KEY", "help": "pair points that are equal in all but this key"})
ANYWAY = ("--anyway", {"action": "store_true", "help": "compare even if the two did different work"})
TO = ("--to", {"choices": TARGETS, "required": True, "help": "for which tool"})
EXPORT_OUT = ("--out", {"type": Path, "metavar": "DIR", "help": "directory to write to; RUN/export by default"})

COMMANDS = (
    Command("collect", _collect, "merge sweeps into one table", (RUNS, FORMAT, OUT)),
    Command("report", _report, "write report.html beside the table, and say who won", (RUN,)),
    Command(
        "compare",
        _compare,
        "differences of two sweeps or points with their intervals",
        (("a", {**SIDE, "metavar": "A"}), ("b", {**SIDE, "metavar": "B"}), KEY, ANYWAY),
    ),
    Command("export", _export, "write results for other tools", (RUN, TO, EXPORT_OUT)),
)
