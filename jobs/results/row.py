"""One row of the sweep table: its columns and their order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.core.config import Bench, Config
from jobs.core.files import write_json
from jobs.core.rundir import SweepDir
from jobs.measure.objective import SPREAD_COLUMNS
from jobs.measure.records import Window
from jobs.measure.statistics import of_series, summarize
from jobs.results.fingerprint import NAMES

SCHEMA_VERSION = 4
"""Stands in every row as `schema_version`. A new column needs no new version; a changed meaning does."""

NOT_RUN = "not run: "
"""Begins the reason of a row whose point was never measured; a resume runs it."""

HEAD = ("point", "service")
STATE = ("engine", "release", "valid", "invalid_reason", "truncated", "notes")
_EMPTY = Window(0.0, 1.0, 0.0, 0.0, (), {}, 0.0, truncated=False)
FIGURES = (*summarize(_EMPTY, Bench()), *of_series(_EMPTY))
"""Names of the figures of a window, in their order."""

POINT = (
    *("windows", *SPREAD_COLUMNS, "saturated", "slo_kept", "found_concurrency", "found_request_rate"),
    *("probes", "needle_score", "head_npu_power_w"),
)
"""What several windows, a search, the questions and the hardware add."""

SERVICE = (
    "engine_tokens",
    "kv_cache_tokens",
    "predicted_kv_tokens",
    "queue_s",
    "stage_s",
    "load_s",
    "warmup_s",
    "measure_s",
    "teardown_s",
    "nodes",
    "job_id",
    "attempt",
    "reused_from",
    "price_per_m_output_tok",
    "schema_version",
)


def columns(swept: tuple[str, ...]) -> list[str]:
    """Return all columns in order; `swept` are the full dotted names of the swept keys."""
    return [*HEAD, *swept, *STATE, *FIGURES, *POINT, *SERVICE, *NAMES]


def is_finished(row: Mapping[str, Any] | None, *, retry_failed: bool) -> bool:
    """Return whether a resume leaves this row alone: a valid one always, a failed one unless it is to be retried."""
    if row is None or row["truncated"] or str(row["invalid_reason"]).startswith(NOT_RUN):
        return False
    return bool(row["valid"]) or not retry_failed


def blank(point: str, service: str, engine: str | None, release: str | None) -> dict[str, Any]:
    """Return an invalid row without figures."""
    row: dict[str, Any] = dict.fromkeys(columns(()))
    return row | {
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
    return row | {"price_per_m_output_tok": price(config.results.price_node_hour, row["nodes"], row["output_tok_s"])}


def write_rows(sweep: SweepDir, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows into the directories of their points.

    Raises:
        RunError: the disk is full, or closed to us.
    """
    for row in rows:
        write_json(sweep.point(row["point"]).row, row)


def price(node_hour: float | None, nodes: int | None, output_tok_s: float | None) -> float | None:
    """Return the price of a million output tokens; None where the price of a node-hour or the rate is unknown.

    Args:
        node_hour: price of one node for one hour, in any currency (`results.price_node_hour`).
        nodes: nodes that the service holds.
        output_tok_s: output tokens a second.
    """
    if node_hour is None or not nodes or not output_tok_s:
        return None
    return node_hour * nodes / 3600 / output_tok_s * 1e6


def tokens_text(engine_tokens: Mapping[str, int]) -> str | None:
    """Return tokens by data-parallel rank as JSON text, the form of the column `engine_tokens`."""
    return json.dumps(dict(engine_tokens)) if engine_tokens else None
