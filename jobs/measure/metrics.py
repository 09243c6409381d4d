"""The service's own counters, read from its `/metrics` page (Prometheus text format)."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping

from jobs.measure.wire import Connections

GENERATED = "vllm:generation_tokens_total"
"""Tokens that an engine has generated since its start; label `engine` is the data-parallel rank (vLLM)."""

_SAMPLE = re.compile(r"^(?P<name>[^\s{]+)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def engine_counters(text: str, name: str) -> dict[str, float]:
    """Return the value of metric `name` for each value of its label `engine`, summed over all other labels.

    A sample without that label counts for engine "0": a service of one engine may leave it out. Lines that are
    no samples are passed over.
    """
    sums: dict[str, float] = defaultdict(float)
    for line in text.splitlines():
        if not line.startswith(name):
            continue
        sample = _SAMPLE.match(line.strip())
        if sample and sample["name"] == name:
            labels = dict(_LABEL.findall(sample["labels"] or ""))
            sums[labels.get("engine", "0")] += float(sample["value"])
    return dict(sums)


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int]:
    """Return how far each engine's counter rose, by engine number.

    An engine that was not there before counts from zero. So does one whose counter fell: it was restarted.
    """
    return {
        engine: round(value - before.get(engine, 0.0) if value >= before.get(engine, 0.0) else value)
        for engine, value in sorted(after.items())
    }


async def generated_tokens(connections: Connections, limit_s: float) -> dict[str, float] | None:
    """Return the generated tokens of each engine so far; None where the service does not tell in `limit_s`."""
    page: list[bytes] = []
    try:
        async with asyncio.timeout(limit_s):
            status, _ = await connections.request("GET", "/metrics", b"", lambda data, _: page.append(data))
    except OSError:
        return None
    return engine_counters(b"".join(page).decode(errors="replace"), GENERATED) if status == 200 else None
