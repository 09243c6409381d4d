"""What a swept key is: a setting of the service, the load on it, or the work that is asked of it.

Settings are compared with one another; load is what a setting is put under; rows of different work do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.core import schema

LOADS = ("bench.concurrency", "bench.request_rate")
RATE = "bench.request_rate"

RESTARTS = ("parallel.seed",)
"""Keys that make another start of the engine and nothing else: rows that differ in them are one setting, again."""

HOW = (
    *("bench.warmup_s", "bench.window_s", "bench.hold_load", "bench.seed", "bench.num_requests"),
    *("bench.slo", "bench.search"),
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


def words(keys: tuple[str, ...], values: Mapping[str, Any]) -> str:
    """Return keys with their values in one line."""
    return " ".join(f"{key}={values[key]}" for key in keys)
