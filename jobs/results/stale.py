"""Rows that an allocation proves to be of another time than their points are asked for."""

from __future__ import annotations

from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import write_json
from jobs.core.rundir import SweepDir
from jobs.core.tasks import read_config
from jobs.results.fingerprint import Fingerprint
from jobs.results.row import NOT_RUN, read_row

STALE = NOT_RUN + "stale: "
"""Begins the reason of a row that was taken over and that the allocation then proved to be of another time."""


def _kind(config: Config) -> tuple[str, ...]:
    """Points of one kind run the same program on the same checkpoint."""
    return (config.engine.name, *config.engine.command, config.model.path, str(config.container))


def retire(sweep: SweepDir, config: Config, now: Fingerprint) -> list[str]:
    """Take back valid rows that differ from what this allocation's node sees. Returns one sentence for each.

    The launching host may not see a driver; the nodes do. A resume runs these points again. Rows of another engine or
    checkpoint than that of `config`, which runs now, are left alone.
    """
    said = []
    for name in sorted(sweep.point_names()):
        path = sweep.point(name).row
        try:
            row = read_row(path)
        except RunError:
            continue
        if row["valid"] and (changes := now.changes(row)) and _kind(read_config(sweep, name)) == _kind(config):
            since = f" since {row['reused_from']}" if row.get("reused_from") else ""
            write_json(path, row | {"valid": False, "invalid_reason": STALE + ", ".join(changes) + since})
            said.append(f"point {name}: {STALE}{', '.join(changes)}{since}")
    return said
