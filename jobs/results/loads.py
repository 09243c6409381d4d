"""The load under which the figures of a row were measured: what was set, or what a search came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.core.files import read_lines
from jobs.results.gather import Run
from jobs.results.keys import LOADS

FOUND = {"concurrency": "found_concurrency", "request_rate": "found_request_rate"}
"""Kind of search (`bench.search`) to the column of what it found."""


def key_of(run: Run, row: Mapping[str, Any]) -> str:
    """Return the config key of a row's load."""
    search = run.value(row, "bench.search")
    if search in FOUND:
        return f"bench.{search}"
    # With a rate, a concurrency is only the cap of what is in flight.
    return next((key for key in reversed(LOADS) if run.value(row, key) is not None), LOADS[0])


def load_of(run: Run, row: Mapping[str, Any]) -> Any:
    """Return the load of the window that stands in a row.

    Of a search that is what it found, not where it began; where it found none, the line of that window tells.
    None: it cannot be told.
    """
    search = run.value(row, "bench.search")
    if search not in FOUND:
        return run.value(row, key_of(run, row))
    found = row.get(FOUND[search])
    if found:
        return found
    return next((line.get(search) for _, line in lines_in_row(run, row)), None)


def lines_in_row(run: Run, row: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return number and line (windows.jsonl) of each window that stands in a row; empty where they do not tell."""
    lines = read_lines(run.sweep.point(row["point"]).windows)
    return [(number, line) for number, line in enumerate(lines, 1) if isinstance(line, dict) and line.get("in_row")]
