"""What a column is: the part of a swept key in a comparison, the load of a row, the better end of a figure.

Settings are compared with one another; load is what a setting is put under; rows of different work do not compare.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from jobs.core import schema
from jobs.core.errors import ConfigError, nearest
from jobs.core.files import read_lines
from jobs.core.load import open_loop
from jobs.results.gather import Run
from jobs.results.row import FIGURES, FORECAST, POINT, SERVICE

LOADS = ("bench.concurrency", "bench.request_rate")
RATE = "bench.request_rate"
SEED = "bench.seed"

OFFERED = ("output_tok_per_s", "total_tok_per_s", "request_per_s")
"""Figures that at an offered rate are that rate, while the service keeps up: they make no setting the better one."""

RESTARTS = ("parallel.seed",)
"""Keys that make another start of the engine and nothing else: rows that differ in them are one setting, again."""

HOW = (
    *("bench.warmup_s", "bench.window_s", "bench.hold_load", "bench.seed", "bench.num_requests"),
    *("bench.repeats", "bench.slo", "bench.search"),
)
"""Keys (or beginnings) that say how long and how carefully is measured, not what."""

WORK = ("engine.name", "model.name", "model.path")
"""Keys outside of `bench` that make another kind of work: another model, or no real engine."""


def is_work(key: str) -> bool:
    """Return whether rows that differ in this key did different work (lengths, client, endpoint, model, ...)."""
    if key in WORK:
        return True
    asked = schema.schema().get(key) != "sweep"
    return key.startswith("bench.") and asked and key not in LOADS and not key.startswith(HOW)


def changes_work(key: str) -> bool:
    """Return whether a key, or group, of another value changes the work or how it is measured: no setting to serve."""
    return is_work(key) or f"{key}.name" in WORK or key.startswith(HOW)


def setting_text(keys: tuple[str, ...], values: Mapping[str, Any]) -> str:
    """Return keys with their values in one line."""
    return " ".join(f"{key}={values[key]}" for key in keys)


def by_preset(swept: Iterable[str], told: Sequence[Mapping[str, str]], taken: Container[str]) -> dict[str, str]:
    """Return for each swept key the column in which people see it: its own, or the group whose presets chose it.

    Args:
        swept: full dotted names.
        told: for each row what its keys are told by (jobs/core/planfile.py, `presets`).
        taken: names of other columns. Keys of the work keep their own: rows compare by them.
    """
    groups = {key: {one.get(key, "").partition("=")[0] for one in told} for key in swept}
    return {
        key: key if len(names) != 1 or is_work(key) or (name := min(names)) in taken else name or key
        for key, names in groups.items()
    }


def preset_of(told: Mapping[str, str], key: str) -> str:
    """Return the name of the preset that chose a key."""
    return told[key].partition("=")[2]


def row_name(row: Mapping[Any, Any], keys: tuple[str, ...]) -> str:
    """Return a row's point with its values of these keys."""
    return f"{row['point']} ({setting_text(keys, row)})" if keys else str(row["point"])


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


def is_offered(run: Run, row: Mapping[str, Any]) -> bool:
    """Return whether the load of a row was offered: an open loop, at a rate or by a trace, and no search."""
    search, rate, workload = (run.value(row, key) for key in ("bench.search", RATE, "bench.workload"))
    return search is None and open_loop(search, rate, workload)


LOW = (
    *("ttft_", "tpot_", "itl_", "e2el_", "wait_", "price_"),
    *("failed", "truncated_requests", "preemptions", "waiting_mean", "kv_use_max", "client_cpu_share", "client_lag_"),
    *("head_npu_power_w", "queue_s", "stage_s", "load_s", "warmup_s", "measure_s", "teardown_s", "probes"),
)
"""Columns, or their beginnings (ending in `_`), in which less is better."""

HIGH = (
    *("completed", "request_per_s", "goodput_per_s", "output_tok_per_s", "total_tok_per_s", "tok_per_s_per_user"),
    "found_concurrency",
    *("found_request_rate", "needle_score", "kv_cache_tokens", "predicted_kv_tokens", "prefix_hit_share"),
    *("spec_acceptance", "spec_tokens_per_step", "stage_gb_s", "load_gb_s"),
)
"""Columns in which more is better."""

NO_FIGURES = (
    *("engine_tokens", "job_id", "attempt", "nodes", "saturated", "slo_kept", "slo_requests", "slo_misses"),
    *("slo_together", "dataset_digest", "reused_from", "schema_version"),
    *FORECAST,
    *("spec_tokens", "spec_by_position", "spec_text"),
)
"""Columns beside figures that are none."""

LATENCIES = ("ttft_ms_", "tpot_ms_", "itl_ms_", "e2el_ms_")

STARRED = (
    *("ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50", "e2el_ms_p50", "price_per_m_output_tok"),
    *("output_tok_per_s", "tok_per_s_per_user", "goodput_per_s", "found_concurrency", "found_request_rate"),
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


def check_objective(column: str, key: str = "results.objective") -> None:
    """Raise ConfigError where `results.objective`, typed as `key`, names no figure of a row."""
    columns = [name for name in (*FIGURES, *POINT, *SERVICE) if name not in NO_FIGURES]
    if column not in columns:
        raise ConfigError(
            key, column, "there is no such figure", nearest(column, columns, [*STARRED, "other numbers of the table"])
        )


def counts(column: str, value: object) -> bool:
    """Return whether a value can be compared: a number, and no latency or price of 0, which is an absent one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return False
    return value > 0 or not column.startswith((*LATENCIES, "price_"))
