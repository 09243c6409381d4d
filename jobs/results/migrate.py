"""The version of a row's form, and the steps from older ones: rows of past sweeps stay readable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SCHEMA_VERSION = 3
"""Stands in every row as `schema_version`. A new column needs no new version; a changed meaning does."""


def _from_1(row: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had neither a version nor a price."""
    return {**row, "price_per_m_output_tok": row.get("price_per_m_output_tok")}


def _from_2(row: dict[str, Any]) -> dict[str, Any]:
    """Version 2 did not say in its name whose NPUs' power it is, and its `measure_s` held the questions as well."""
    return {("head_npu_power_w" if name == "npu_power_w" else name): value for name, value in row.items()}


STEPS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
"""From a version to the next one."""


def migrate(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row in today's form. A row of a later version is left as it is: its known columns still hold."""
    found = dict(row)
    version = found.get("schema_version") or 1
    while version in STEPS:
        found = STEPS[version](found)
        version += 1
    return found | {"schema_version": version}
