"""One-token requests: proof that an engine answers. `/health` is no proof (facts measured on real vLLM)."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.core.config import Config
from jobs.measure.metrics import generated_tokens, growth
from jobs.measure.records import Target
from jobs.measure.wire import Connections, no_answer, request_text


async def one_token(opened: Connections, config: Config, api: Target, rank: int, limit_s: float) -> str | None:
    """Ask one data-parallel engine for one token. Returns None, or what went wrong.

    The request is pinned by X-data-parallel-rank. vLLM 0.9.1 ignores the header (it came with #24386): then the
    engines' own balancer decides, and only `silent_ranks` tells who answered.
    """
    low, _ = config.model.shape.token_ids
    replica, engine = api.place(rank)
    body = {"model": api.model, "prompt": [low + rank] * 4, "max_tokens": 1, "ignore_eos": True}
    pinned = f"X-data-parallel-rank: {engine}\r\n"
    try:
        status, text = await request_text(opened, "/v1/completions", limit_s, body, replica, pinned)
    except OSError as error:
        return no_answer(error, limit_s)
    return None if status == 200 else f"HTTP {status}: {text[:300]}"


async def counters(opened: Connections, limit_s: float) -> dict[str, float]:
    """Return the generated tokens of each engine so far; empty where the service does not tell."""
    return await generated_tokens(opened, limit_s) or {}


def silent_ranks(before: Mapping[str, float], after: Mapping[str, float], asked: int, size: int) -> list[int]:
    """Return the data-parallel ranks of which nothing proves that they answered.

    Args:
        before, after: counters of generated tokens by rank.
        asked: tokens that were asked for and answered in between.
        size: number of data-parallel ranks.

    vLLM 0.9.1 with more than one rank shows the last rank's counter only (mended by #21257). Ranks without a
    counter have answered if the service gave more tokens than the counters that are there account for. A
    service that shows no counter at all proves nothing, and nothing is held against it.
    """
    if not after:
        return []
    grown = growth(before, after)
    hidden = [rank for rank in range(size) if str(rank) not in after]
    silent = [rank for rank in range(size) if rank not in hidden and grown[str(rank)] <= 0]
    return sorted(silent + (hidden if asked <= sum(grown.values()) else []))
