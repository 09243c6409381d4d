"""One-token requests: proof that an engine answers. `/health` is no proof (facts measured on real vLLM)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from jobs.core.config import Config
from jobs.measure.metrics import GENERATED, engine_counters, growth, joined
from jobs.measure.records import Target

Sessions = Sequence[aiohttp.ClientSession]
"""One to each address of a service: several where each node has a whole one (replicas)."""


@asynccontextmanager
async def sessions(api: Target, limit_s: float, headers: Mapping[str, str]) -> AsyncIterator[Sessions]:
    """Open sessions to all addresses of a service; `limit_s`: of a request, s."""
    async with AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=limit_s)
        opened = [aiohttp.ClientSession(url, headers=headers, timeout=timeout) for url in api.base_urls]
        yield [await stack.enter_async_context(one) for one in opened]


async def one_token(sessions: Sessions, config: Config, api: Target, rank: int, limit_s: float) -> str | None:
    """Ask one data-parallel engine for one token. Returns None, or what went wrong.

    The request is pinned by X-data-parallel-rank. vLLM 0.9.1 ignores the header (it came with #24386): then the
    engines' own balancer decides, and only `silent_ranks` tells who answered.
    """
    low, _ = config.model.shape.token_ids
    replica, engine = api.place(rank)
    body = {"model": api.model, "prompt": [low + rank] * 4, "max_tokens": 1, "ignore_eos": True}
    try:
        async with sessions[replica].post(
            "/v1/completions",
            json=body,
            headers={"X-data-parallel-rank": str(engine)},
            timeout=aiohttp.ClientTimeout(total=limit_s),
        ) as response:
            text = await response.text()
            return None if response.status == 200 else f"HTTP {response.status}: {text[:300]}"
    except TimeoutError:
        return f"no answer within {limit_s:g} s"
    except aiohttp.ClientError as error:
        return str(error) or type(error).__name__


async def counters(sessions: Sessions, api: Target) -> dict[str, float]:
    """Return the generated tokens of each engine so far; empty where the service does not tell."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        return engine_counters(joined(await asyncio.gather(*map(_page, sessions)), api.engines), GENERATED)
    return {}


async def _page(session: aiohttp.ClientSession) -> str:
    async with session.get("/metrics") as response:
        return await response.text() if response.status == 200 else ""


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
