"""How far starts of the engine lie apart: kept by layout, so that a later sweep need not start thrice.

A start is remembered by what its rows show, under the setting that they are of. Two starts of one setting may be of one
sweep (`parallel.seed=1,2`) or of two sweeps on two days; the spread between them is taken as that of the layout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.core import schema
from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.core.fields import dotted, plain
from jobs.core.files import write_json
from jobs.core.foreign import SMALL, load_form
from jobs.core.load import REPEATS
from jobs.core.records import Number
from jobs.core.rundir import SweepDir
from jobs.core.tasks import read_config
from jobs.engines.layout_name import layout_name
from jobs.results.columns import HIGH, LATENCIES, RESTARTS, counts
from jobs.results.gather import Run
from jobs.results.intervals import Scatter, pooled
from jobs.results.row import FIGURES

KEPT = 64
"""Rows that are remembered of a layout: the last ones."""

KNOWN = 2
"""Degrees of freedom from which a spread is known: three starts of one setting, or two of two settings."""

COLUMNS = tuple(name for name in FIGURES if name in HIGH or (name.startswith(LATENCIES) and not name.endswith("_std")))
"""Figures of which the spread is kept."""


@dataclass(frozen=True)
class Start:
    """What one start, of a sweep in `run`, showed at one load, by column of its row.

    `service` and `load` are names of what was started, and of what it was put under.
    """

    run: str
    service: str
    load: str
    figures: Mapping[str, Number]


@dataclass(frozen=True)
class _Starts:
    starts: tuple[Start, ...]


def remember(sweep: SweepDir, configs: Mapping[str, Config], rows: Iterable[Mapping[str, Any]]) -> None:
    """Keep what one start of the engine showed. Two writers replace each other's file, never mix.

    Of the rows only those that stand on enough windows of this tool's own are kept.

    Raises:
        ConfigError: the layout has no name.
        RunError: the file cannot be written.
    """
    told = [row for row in rows if row["valid"] and not row["truncated"] and (row.get("windows") or 1) >= REPEATS]
    if not told:
        return
    path = sweep.root.starts(layout_name(configs[told[0]["point"]]))
    starts = list(_read(path))
    for row in told:
        service, load = (_digest(configs[row["point"]], part) for part in ("service", "point"))
        figures = {name: row[name] for name in COLUMNS if counts(name, row.get(name))}
        starts.append(Start(str(sweep.path.resolve()), service, load, figures))
    write_json(path, _Starts(tuple(starts[-KEPT:])))


def _read(path: Path) -> tuple[Start, ...]:
    try:
        return load_form(path, _Starts, SMALL, ours=True).starts if path.exists() else ()
    except RunError:  # torn, of another version, or another user's: nothing is known, and that is always safe
        return ()


def _digest(config: Config, part: str) -> str:
    """Return a name of the service or the load of a config, the same for every start of it."""
    keys = [key for key, scope in schema.schema().items() if scope == part and key not in RESTARTS]
    text = json.dumps({key: plain(dotted(config, key)) for key in keys}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Spreads:
    """What earlier sweeps beside a run's say of the starts of its services."""

    def __init__(self, run: Run) -> None:
        """Args: the run that is judged; its own starts speak for themselves."""
        self._run = run
        self._any = run.sweep.root.starts("x").parent.is_dir()
        self._starts: dict[str, list[Start]] = {}

    def of(self, row: Mapping[str, Any], column: str) -> Scatter | None:
        """Return the scatter of a column between single starts of a row's layout; None: it is not known."""
        services: dict[str, dict[str, list[float]]] = {}
        for one in self._of_layout(row) if self._any else ():
            if (value := one.figures.get(column)) is not None and counts(column, value):
                services.setdefault(one.service, {}).setdefault(one.load, []).append(value)
        # The loads of one service share its starts: together they know no more of starts than one of them.
        parts = []
        for loads in services.values():
            if found := pooled(list(loads.values())):
                parts.append(Scatter(found.squared, max(map(len, loads.values())) - 1))
        free = sum(part.free for part in parts)
        if free < KNOWN:
            return None
        return Scatter(sum(part.squared * part.free for part in parts) / free, free)

    def _of_layout(self, row: Mapping[str, Any]) -> list[Start]:
        service = str(row["service"])
        if service not in self._starts:
            self._starts[service] = []
            try:
                path = self._run.sweep.root.starts(layout_name(read_config(self._run.sweep, row["point"])))
            except (ConfigError, RunError, OSError):  # of another version
                return []
            own = str(self._run.sweep.path.resolve())
            self._starts[service] = [one for one in _read(path) if one.run != own]
        return self._starts[service]
