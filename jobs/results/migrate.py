"""The version of a row's form, and the steps from older ones: rows of past sweeps stay readable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jobs.measure.statistics import enough

SCHEMA_VERSION = 4
"""Stands in every row as `schema_version`. A new column needs no new version; a changed meaning does."""


def _from_1(row: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had neither a version nor a price."""
    return {**row, "price_per_m_output_tok": row.get("price_per_m_output_tok")}


def _from_2(row: dict[str, Any]) -> dict[str, Any]:
    """Version 2 did not say in its name whose NPUs' power it is, and its `measure_s` held the questions as well."""
    return {("head_npu_power_w" if name == "npu_power_w" else name): value for name, value in row.items()}


def _from_3(row: dict[str, Any]) -> dict[str, Any]:
    """Version 3 showed percentiles of too few values, and times between tokens of 0 for answers in one piece."""
    found = dict(row)
    completed, length = row.get("completed"), row.get("output_tokens_mean")
    for name, value in row.items():
        figure, _, share = name.rpartition("_p")
        if figure in ("tpot_ms", "itl_ms") and value == 0:
            found[name] = None
        if figure.endswith("_ms") and share.isdigit() and completed is not None:
            # Each answer has as many gaps as tokens but one.
            count = completed * max(1.0, (length or 2.0) - 1) if figure == "itl_ms" else completed
            found[name] = found[name] if enough(int(count), float(share)) else None
    return found


STEPS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2, 3: _from_3}
"""From a version to the next one."""


def migrate(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row in today's form. A row of a later version is left as it is: its known columns still hold."""
    found = dict(row)
    version = found.get("schema_version") or 1
    while version in STEPS:
        found = STEPS[version](found)
        version += 1
    return found | {"schema_version": version}
