"""Which end of a figure is better: one table for the verdict, comparisons, stars and studies."""

from __future__ import annotations

from jobs.core.errors import ConfigError, nearest
from jobs.results.row import FIGURES, POINT, SERVICE

LOW = (
    *("ttft_", "tpot_", "itl_", "e2el_", "price_"),
    *("failed", "truncated_requests", "preemptions", "waiting_mean", "kv_use_max", "client_cpu_share"),
    *("head_npu_power_w", "queue_s", "stage_s", "load_s", "warmup_s", "measure_s", "teardown_s", "probes"),
)
"""Columns, or their beginnings (ending in `_`), in which less is better."""

HIGH = (
    *("completed", "request_s", "goodput_s", "output_tok_s", "total_tok_s", "tok_s_per_user", "found_concurrency"),
    *("found_request_rate", "needle_score", "kv_cache_tokens", "predicted_kv_tokens", "prefix_hit_share"),
)
"""Columns in which more is better."""

NO_FIGURES = ("engine_tokens", "job_id", "attempt", "nodes", "saturated", "slo_kept", "reused_from", "schema_version")
"""Columns beside figures that are none."""

LATENCIES = ("ttft_ms_", "tpot_ms_", "itl_ms_", "e2el_ms_")

STARRED = (
    *("ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50", "e2el_ms_p50", "price_per_m_output_tok"),
    *("output_tok_s", "tok_s_per_user", "goodput_s", "found_concurrency", "found_request_rate"),
)
"""Columns of the tables in which the best value is marked."""


def low_is_best(column: str) -> bool:
    """Return whether less is better in this column; the ends of a spread (`_min`, `_max`) go by their figure."""
    name = _figure(column)
    return any(name.startswith(one) if one.endswith("_") else name == one for one in LOW)


def high_is_best(column: str) -> bool:
    """Return whether more is better in this column. Of some (means of lengths, counts of windows) neither end is."""
    return _figure(column) in HIGH


def _figure(column: str) -> str:
    return column if column in LOW else column.removesuffix("_min").removesuffix("_max")


def check(column: str) -> None:
    """Raise ConfigError where `results.objective` names no figure of a row."""
    columns = [name for name in (*FIGURES, *POINT, *SERVICE) if name not in NO_FIGURES]
    if column not in columns:
        raise ConfigError("results.objective", column, "there is no such figure", nearest(column, columns))


def counts(column: str, value: object) -> bool:
    """Return whether a value can be compared: a number, and no latency or price of 0, which is an absent one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return False
    return value > 0 or not column.startswith((*LATENCIES, "price_"))
