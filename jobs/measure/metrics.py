"""The service's own counters and gauges, read from its `/metrics` page (Prometheus text format)."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from jobs.measure.wire import Connections

GENERATED = "vllm:generation_tokens_total"
"""Tokens that an engine has generated since its start; label `engine` is the data-parallel rank (vLLM)."""

FINISHED = "vllm:request_success_total"
"""Requests that came to their end, by finish reason."""

PROMPTED = "vllm:prompt_tokens_total"
"""Tokens of the prompts that were read."""

PREEMPTIONS = "vllm:num_preemptions_total"
PREFIX_QUERIES = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
PREFIX_HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
"""Prompt tokens that were looked up and found; vLLM 0.9.1 still says gpu_ (v1/metrics/loggers.py)."""

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""Share of the KV cache that is held, 0 to 1."""

PREFILL_S, PREFILLS = "vllm:request_prefill_time_seconds_sum", "vllm:request_prefill_time_seconds_count"
READ = "vllm:request_prompt_tokens_sum"
"""Of requests that came to their end: from when each was taken up to its first token, s; how many; their prompts."""

_SPEC = "vllm:spec_decode_num_"

_WANTED = (
    PREFILL_S, PREFILLS, READ,
    GENERATED, FINISHED, PROMPTED, PREEMPTIONS, *PREFIX_QUERIES, *PREFIX_HITS, RUNNING, WAITING, *KV_USE, _SPEC,
)  # fmt: skip
_BEGINNINGS = tuple(name.encode() for name in _WANTED)
_SAMPLE = re.compile(r"^(?P<name>[^\s{]+)(?:\{(?P<labels>.*)\})?\s+(?P<value>[-+.\deE]+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ABORTED = 'finished_reason="abort"'


def engine_counters(
    text: str, *names: str, has: str = "", lacks: str | None = None, label: str = "engine"
) -> dict[str, float]:
    """Return the value of a metric for each value of its label `engine`, summed over all other labels.

    A sample without that label counts for engine "0": a service of one engine may leave it out. Lines that are
    no samples are passed over, and so are NaN and infinity, which nothing can be counted by.

    Args:
        names: of the metric; the first one that the page has is taken.
        has, lacks: samples whose labels do not hold the first text, or hold the second, are passed over.
        label: that tells the values apart.
    """
    for name in names:
        sums: dict[str, float] = defaultdict(float)
        for line in text.splitlines():
            if not line.startswith(name):
                continue
            sample = _SAMPLE.match(line.strip())
            if not sample or sample["name"] != name:
                continue
            written = sample["labels"] or ""
            if has in written and not (lacks and lacks in written):
                labels = dict(_LABEL.findall(written))
                sums[labels.get(label, "0")] += float(sample["value"])
        if sums:
            return dict(sums)
    return {}


def finished(text: str) -> dict[str, float]:
    """Return the requests of each engine that came to their end so far; those that were broken off do not count."""
    return engine_counters(text, FINISHED, lacks=_ABORTED)


def aborted(text: str) -> dict[str, float]:
    """Return the requests of each engine that were broken off so far; not every release counts them."""
    return engine_counters(text, FINISHED, has=_ABORTED)


def prompted(text: str) -> dict[str, float]:
    """Return the tokens of the prompts that each engine read so far."""
    return engine_counters(text, PROMPTED)


def generated(text: str) -> dict[str, float]:
    """Return the tokens that each engine generated so far."""
    return engine_counters(text, GENERATED)


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int]:
    """Return how far each engine's counter rose, by engine number.

    An engine that was not there before counts from zero. So does one whose counter fell: it was restarted.
    """
    return {
        engine: round(value - before.get(engine, 0.0) if value >= before.get(engine, 0.0) else value)
        for engine, value in sorted(after.items())
    }


def speculation(text: str, what: str) -> dict[str, float]:
    """Return what speculative decoding has counted so far: of each engine, or by position for what is "per_pos".

    `what` is the counter's name without what all of them have; `_total` is the client library's, which not all use.
    """
    label = "position" if what.endswith("per_pos") else "engine"
    return engine_counters(text, f"{_SPEC}{what}_total", f"{_SPEC}{what}", label=label)


def joined(pages: Sequence[str], engines: int) -> str:
    """Return the pages of replicas as one: each numbers its `engines` from 0, and all are numbered through."""
    first, *others = pages
    return "\n".join([first, *(_numbered(page, number * engines) for number, page in enumerate(others, 1))])


def _numbered(page: str, first: int) -> str:
    return re.sub(r'\bengine="(\d+)"', lambda match: f'engine="{first + int(match[1])}"', page)


async def read_page(connections: Connections, limit_s: float) -> str | None:
    """Return the lines of the page that are of use here; None where the service does not give it in `limit_s`."""
    pages = await asyncio.gather(*(_read(connections, limit_s, at) for at in range(connections.addresses)))
    told = [page for page in pages if page is not None]
    return joined(told, connections.engines) if len(told) == len(pages) else None


async def _read(connections: Connections, limit_s: float, at: int) -> str | None:
    """Return the lines of one address.

    A page of a service with many engines has thousands of lines: choosing them by their bytes keeps the turn of
    the event loop, and with it the stamps of the load, short.
    """
    pieces: list[bytes] = []
    try:
        async with asyncio.timeout(limit_s):
            status, _ = await connections.request("GET", "/metrics", b"", lambda data, _: pieces.append(data), at)
    except OSError:
        return None
    if status != 200:
        return None
    lines = b"".join(pieces).split(b"\n")
    return b"\n".join(line for line in lines if line.startswith(_BEGINNINGS)).decode(errors="replace")


async def generated_tokens(connections: Connections, limit_s: float) -> dict[str, float] | None:
    """Return the generated tokens of each engine so far; None where the service does not tell in `limit_s`."""
    page = await read_page(connections, limit_s)
    return None if page is None else generated(page)


ALL = "all"
"""Stands for the number of an engine where a page does not tell engines apart."""


def tells_engines(text: str) -> bool:
    """Return whether the samples of a page say of which engine they are."""
    return 'engine="' in text


def complete(tokens: Mapping[str, int], arrived: int, size: int) -> dict[str, int]:
    """Return tokens by rank, with the one rank that shows no counter taken from what arrived at the client."""
    if ALL in tokens:
        return {"0": tokens[ALL]} if size == 1 else dict(tokens)
    missing = [rank for rank in range(size) if str(rank) not in tokens]
    if not tokens or len(missing) != 1:
        return dict(tokens)
    rest = max(0, arrived - sum(tokens.values()))
    return dict(sorted({**tokens, str(missing[0]): rest}.items()))
