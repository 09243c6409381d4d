"""Whether a row may be believed. Each check has its reason; the first one that fails stands in the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.config import Config
from jobs.measure.records import Window


def invalid_reason(config: Config, window: Window, figures: Mapping[str, Any]) -> str | None:
    """Return why the figures of this window cannot be believed, or None.

    Args:
        config: of the point.
        window: what was measured.
        figures: its summary (`statistics.summarize`).
    """
    if not figures["completed"]:
        errors = [record.error for record in window.records if record.error]
        why = f": {errors[0]}" if errors else ""
        if window.closed_s <= window.opened_s:
            return f"the window never opened: no answer within bench.warmup_s and limits.drain_s{why}"
        return f"no request of the window was completed{why}"
    if figures["failed"]:
        errors = [record.error for record in window.records if record.error and record.in_window]
        return f"{figures['failed']} requests failed: {errors[0] if errors else 'no words'}"
    if not figures["output_tok_s"]:
        return "no token arrived in the window"
    if window.truncated:
        return "the window was cut short"
    if figures["truncated_requests"]:
        return f"{figures['truncated_requests']} requests had no whole answer within limits.drain_s after the window"
    served, ranks = window.engine_tokens, config.parallel.data_parallel_size
    load = config.bench.concurrency or ranks
    silent = [str(rank) for rank in range(ranks) if not served.get(str(rank))]
    if served and silent and load >= ranks:
        return f"data-parallel rank {', '.join(silent)} served no token in the window"
    return None
