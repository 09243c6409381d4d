"""What a check looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.core.config import Config
from jobs.measure import rounds
from jobs.measure.queueing import Trend
from jobs.measure.records import RequestRecord, Window

NOTED, LIMIT = 0.1, 0.3
"""Change over the window that is noted, and beyond which its figures are those of no one service."""

NEEDED_IN_FLIGHT = 2.0
"""Mean requests in flight for each data-parallel rank below which the balancer may well need one engine alone: vLLM's
sends a request to the first of those that have least to do."""

NEEDED_NEARLY = 0.95
"""A closed loop is a little below its concurrency: between an answer and the next request."""


@dataclass(frozen=True)
class Finding:
    """What a check found; `invalid`: the figures cannot be believed, else a reader should know."""

    words: str
    invalid: bool = False


Found = Iterable[Finding]


@dataclass(frozen=True)
class Case:
    """One window that is judged.

    Args:
        config: of the point.
        window: what was measured.
        figures: its summary (`statistics.summarize`).
        trend: of its queue.
        probes: one-token requests that our own watch sent from `window.begun_s` to `window.ended_s`.
    """

    config: Config
    window: Window
    figures: Mapping[str, Any]
    trend: Trend
    probes: int = 0

    @cached_property
    def counted(self) -> list[RequestRecord]:
        """The requests of the window."""
        return [record for record in self.window.records if record.in_window]

    @cached_property
    def whole(self) -> list[RequestRecord]:
        """Those of them that were answered whole."""
        return [record for record in self.counted if record.status == "ok"]

    @cached_property
    def in_flight(self) -> float:
        """Requests under way, the mean over the window."""
        return rounds.in_flight(self.window)

    @property
    def alike(self) -> bool:
        """Whether requests are equal; those of a trace may be."""
        bench = self.config.bench
        return bench.lengths == "fixed" and bench.workload not in ("sharegpt", "multi_turn")

    @property
    def of_equals(self) -> bool:
        """Whether a closed loop sends equal requests, so that its rounds tell of the service alone."""
        return self.alike and not self.config.bench.is_open


def first_error(records: Iterable[RequestRecord]) -> str:
    """Return the words of the first request that failed with some."""
    return next((record.error for record in records if record.error), "no words")
