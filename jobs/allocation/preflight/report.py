"""The table for people: one line a check, one column a node, and below it what is wrong and what to do."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.allocation.preflight.findings import CHECKS, NO_NPUS, Finding, State, worst

STYLE: dict[State, str] = {"pass": "green", "fail": "bold red", "warn": "yellow", "not-run": "dim"}
WIDTH = 200
"""Of the table in a log, characters."""

TAG: dict[State, str] = {"pass": "pass", "fail": "FAIL", "warn": "warn", "not-run": "not run"}


def table(findings: Sequence[Finding], nodes: Sequence[str]) -> Table:
    """Return the table of all checks. What is about the nodes together stands in every column."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    view.add_column("check", no_wrap=True)
    for node in nodes:
        view.add_column(node, no_wrap=True)
    view.add_column("what it asks")
    for check, what in CHECKS.items():
        mine = [one for one in findings if one.check == check]
        if mine:
            cells = [_cell([one for one in mine if one.node in ("", node)]) for node in nodes]
            view.add_row(check, *cells, what.text)
    return view


def _cell(found: Sequence[Finding]) -> Text:
    if not found:
        return Text("-", style="dim")
    state = worst(found)
    count = sum(one.state == state for one in found)
    return Text(f"{TAG[state]} x{count}" if state in ("fail", "warn") and count > 1 else TAG[state], style=STYLE[state])


def text(findings: Sequence[Finding], nodes: Sequence[str]) -> str:
    """Return the table as plain text, for a log."""
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None).print(table(findings, nodes))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())


def details(findings: Sequence[Finding], *, all_of: bool = True) -> list[Text]:
    """Return one line for each failure and warning, and with `all_of` for each reason for which checks did not run."""
    lines = [
        Text.assemble((TAG[one.state], STYLE[one.state]), f" {one}")
        for state in ("fail", "warn")
        for one in findings
        if one.state == state
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in findings:
        if one.state == "not-run" and all_of:
            checks = reasons.setdefault((one.node, one.reason), [])
            if one.check not in checks:
                checks.append(one.check)
    for (node, reason), checks in reasons.items():
        where = f"{node}: " if node else ""
        lines.append(Text.assemble((TAG["not-run"], STYLE["not-run"]), f" {where}{', '.join(checks)}: {reason}"))
    return lines


def summary(findings: Sequence[Finding], seconds: float) -> str:
    """Return one line: how many checks came to what, and how long it took. A check counts by its worst finding."""
    states = Counter(worst([one for one in findings if one.check == check]) for check in {f.check for f in findings})
    words: dict[State, str] = {
        "pass": "{} passed",
        "warn": "{} with warnings",
        "fail": "{} failed",
        "not-run": "{} not run",
    }
    parts = [word.format(states[state]) for state, word in words.items() if states[state]]
    without = " (engine has no NPUs)" if any(one.reason == NO_NPUS for one in findings) else ""
    return f"preflight: {', '.join(parts)}{without} in {seconds:.1f} s"
