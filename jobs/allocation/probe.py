"""One-token requests: proof that an engine answers. `/health` is no proof (facts measured on real vLLM)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import aiohttp

from jobs.core.config import Config
from jobs.measure.metrics import GENERATED, engine_counters, growth
from jobs.measure.records import Target


async def one_token(
    session: aiohttp.ClientSession, config: Config, api: Target, rank: int, limit_s: float
) -> str | None:
    """Ask one data-parallel engine for one token. Returns None, or what went wrong.

    The request is pinned by X-data-parallel-rank. vLLM 0.9.1 ignores the header (it came with #24386): then the
    engines' own balancer decides, and only `silent_ranks` tells who answered.
    """
    low, _ = config.model.shape.token_ids
    body = {"model": api.model, "prompt": [low + rank] * 4, "max_tokens": 1, "ignore_eos": True}
    try:
        async with session.post(
            "/v1/completions",
            json=body,
            headers={"X-data-parallel-rank": str(rank)},
            timeout=aiohttp.ClientTimeout(total=limit_s),
        ) as response:
            text = await response.text()
            return None if response.status == 200 else f"HTTP {response.status}: {text[:300]}"
    except TimeoutError:
        return f"no answer within {limit_s:g} s"
    except aiohttp.ClientError as error:
        return str(error) or type(error).__name__


async def counters(session: aiohttp.ClientSession) -> dict[str, float]:
    """Return the generated tokens of each engine so far; empty where the service does not tell."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with session.get("/metrics") as response:
            if response.status == 200:
                return engine_counters(await response.text(), GENERATED)
    return {}


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
