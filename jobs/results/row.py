"""One row of the sweep table: its columns and their order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import write_json
from jobs.core.foreign import SMALL, load_visible, refused
from jobs.core.rundir import SweepDir
from jobs.measure import speculation
from jobs.measure.objective import COUNTED, SPREAD_COLUMNS, TOGETHER
from jobs.measure.records import NEVER
from jobs.measure.statistics import COLUMNS, of_series
from jobs.results.fingerprint import NAMES

SCHEMA_VERSION = 5
"""Stands in every row as `schema_version`. A new column needs no new version; a changed meaning does."""

DISTRIBUTION = "ascend-serving-sweep"
"""The tool's name among installed packages."""

NOT_RUN = "not run: "
"""Begins the reason of a row whose point was never measured; a resume runs it."""

HEAD = ("point", "service")
STATE = ("engine", "release", "valid", "invalid_reason", "truncated", "notes")
FORECAST = ("forecast_ttft_ms_mean", "forecast_tpot_ms_mean", "forecast_output_tok_per_s", "unexpected")
"""What was predicted for a point, and what lies outside of that (jobs/forecast/observed.py)."""

FIGURES = (*COLUMNS, *of_series(NEVER), *speculation.COLUMNS)
"""Names of the figures of a window, in their order."""

POINT = (
    *("windows", *SPREAD_COLUMNS, "saturated", "slo_kept", *COUNTED, TOGETHER, "found_concurrency"),
    *("found_request_rate", "probes", "needle_score", "checks", "checks_wrong_share", "head_npu_power_w"),
    *FORECAST,
    "dataset_digest",
)
"""What several windows, a search, the questions and the hardware add, and what was predicted."""

SERVICE = (
    *("engine_tokens", "kv_cache_tokens", "predicted_kv_tokens"),
    *("queue_s", "stage_s", "stage_gb_s", "load_s", "load_gb_s", "warmup_s", "measure_s", "teardown_s"),
    *("nodes", "job_id", "attempt", "reused_from", "price_per_m_output_tok", "schema_version"),
)

_NUMBERS = frozenset((*FIGURES, *POINT, *SERVICE)) - {
    *("engine_tokens", "job_id", "reused_from", "spec_by_position", "unexpected", "dataset_digest")
}


def columns(swept: tuple[str, ...]) -> list[str]:
    """Return all columns in order; `swept` are the full dotted names of the swept keys."""
    return [*HEAD, *swept, *STATE, *FIGURES, *POINT, *SERVICE, *NAMES]


def outdated(row: Mapping[str, Any], sweep: SweepDir) -> str | None:
    """Return why a row of a sweep is not read: an older version wrote it, with other names or meanings; else None."""
    version = row.get("schema_version")
    if not isinstance(version, int) or version >= SCHEMA_VERSION:  # every version wrote one: without it a row is torn
        return None
    written = f"its rows have schema version {version}, written by {_writer(sweep)}"
    return f"{written}; this version reads {SCHEMA_VERSION} and later"


def check_version(row: Mapping[str, Any], sweep: SweepDir) -> None:
    """Refuse a row that an older version of the tool wrote. RunError: in one line, with the version that wrote it."""
    if reason := outdated(row, sweep):
        raise RunError("RUN", sweep.path, reason, "Read it with the version that wrote it, or measure again.")


def _writer(sweep: SweepDir) -> str:
    """Return the version of the tool that started a sweep, as its provenance.json has it."""
    try:
        made = load_visible(sweep.provenance, SMALL)
        version, commit = made["packages"].get(DISTRIBUTION), (made.get("commit") or "")[:10]
    except (RunError, KeyError, TypeError, AttributeError):
        version = commit = None
    return f"version {version or '(not recorded)'} of the tool" + (f" (commit {commit})" if commit else "")


TEXTS = (
    *(*HEAD, "engine", "release", "invalid_reason", "notes", "engine_tokens", "job_id", "reused_from"),
    *("spec_by_position", "unexpected", "dataset_digest", *NAMES),
)
FLAGS = ("valid", "truncated", "saturated")
COUNTS = ("completed", "failed", "truncated_requests", "windows", "nodes", "attempt")
MOST = 10_000_000
"""Requests of a row: sums run over them."""

LONGEST = 100_000
"""Letters of one cell."""


def read_row(path: Path) -> dict[str, Any]:
    """Read a row, by whichever version or user it was written.

    Raises:
        RunError: it is missing, cannot be read, or is not a row.
    """
    row = load_visible(path, SMALL)
    if not isinstance(row, dict) or type(row.get("valid")) is not bool:
        raise refused(path, "it is not a row")
    row.setdefault("truncated", False)
    row.setdefault("invalid_reason", None)
    for name, value in row.items():
        if value is None or ((kind := type(value)) is float and name not in _OTHERS and -_LARGEST < value < _LARGEST):
            continue  # most of a row
        if not (kind is str and name in _TEXTS and len(value) <= LONGEST) and not _fits(name, value):
            raise refused(path, f"it is not a row: {name[:40]} has another form")
        if type(value) is float and not math.isfinite(value):
            row[name] = None
    return row


_TEXTS, _WORDS, _COUNTS = frozenset(TEXTS), frozenset((*TEXTS, *FLAGS)), frozenset(COUNTS)
_OTHERS = _WORDS | _COUNTS
_LARGEST = 2.0**63


def _fits(name: str, value: Any) -> bool:
    kind = type(value)  # of JSON there are no others: ten thousand rows have millions of cells
    if kind is bool:
        return name not in _TEXTS
    if kind is str:
        return len(value) <= LONGEST and (name in _TEXTS or name not in _NUMBERS)
    if name in _WORDS or (kind is not int and kind is not float):
        return False
    if name in _COUNTS and not (kind is int and 0 <= value <= MOST):
        return kind is float and math.isnan(value)
    return abs(value) < 2**63 or not math.isfinite(value)


def row_of(sweep: SweepDir, point: str) -> dict[str, Any] | None:
    """Return the row of a point; None: there is none, or none that counts."""
    try:
        return read_row(sweep.point(point).row)
    except RunError:
        return None


def is_finished(row: Mapping[str, Any] | None, *, retry_failed: bool) -> bool:
    """Return whether a resume leaves this row alone: a valid one always, a failed one unless it is to be retried."""
    if row is None or row["truncated"] or str(row["invalid_reason"]).startswith(NOT_RUN):
        return False
    return bool(row["valid"]) or not retry_failed


_NO_FIGURES: dict[str, Any] = dict.fromkeys(columns(()))


def blank(point: str, service: str, engine: str | None, release: str | None) -> dict[str, Any]:
    """Return an invalid row without figures."""
    return _NO_FIGURES | {
        "point": point,
        "service": service,
        "engine": engine,
        "release": release,
        "valid": False,
        "truncated": False,
        "schema_version": SCHEMA_VERSION,
    }


def make_row(point: str, service: str, config: Config, **known: Any) -> dict[str, Any]:
    """Return a row with what is known; a missing figure is None, and a row is invalid until it is said valid."""
    row = blank(point, service, config.engine.name, config.engine.release)
    unknown = known.keys() - row.keys()
    if unknown:
        raise KeyError(f"no such column: {sorted(unknown)}")
    row |= known
    return row | {
        "price_per_m_output_tok": price(config.results.price_node_hour, row["nodes"], row["output_tok_per_s"])
    }


def write_rows(sweep: SweepDir, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows into the directories of their points. RunError: the disk is full, or closed to us."""
    for row in rows:
        write_json(sweep.point(row["point"]).row, row)


def price(node_hour: float | None, nodes: int | None, output_tok_per_s: float | None) -> float | None:
    """Return the price of a million output tokens; None where the price of a node-hour or the rate is unknown.

    `node_hour` is in any currency (`results.price_node_hour`), for each of the nodes that the service holds.
    """
    if node_hour is None or not nodes or not output_tok_per_s:
        return None
    return node_hour * nodes / 3600 / output_tok_per_s * 1e6


def tokens_text(engine_tokens: Mapping[str, int]) -> str | None:
    """Return tokens by data-parallel rank as JSON text, the form of the column `engine_tokens`."""
    return json.dumps(dict(engine_tokens)) if engine_tokens else None
