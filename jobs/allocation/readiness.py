"""When a service is ready: /health, the served model, and a token from every data-parallel engine.

/health alone stays 200 while the engines of the other node are dead, and before the first request has shown
that the engines can run at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace

from jobs.allocation.probe import counters, one_token, silent_ranks
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.waiting import aside
from jobs.measure.records import Target
from jobs.measure.wire import Connections, request_text

POLL_S = 0.25

_LIMIT_S = 5.0
"""Of a request that costs an engine nothing."""


async def wait_ready(config: Config, api: Target, on_state: Callable[[str], None], listens: Callable[[], bool]) -> None:
    """Return when the service is ready. Its key is sent to nobody else.

    `on_state` is told "healthy" and "ready" as they happen; `listens` tells whether our engine's API is there, and
    raises RunError where somebody else's is.

    Raises:
        RunError: a limit was exceeded, the wrong model is served, or a data-parallel rank does not answer.
    """
    with contextlib.closing(Connections.to(replace(api, api_key=None))) as without_key:  # /health asks for none
        await _until(
            lambda: _healthy(without_key, listens), config.limits.load_s, "limits.load_s", "/health was not 200 in time"
        )
    # Who listened before the answer may have gone since. While our engine listens, nobody else can.
    await aside(listens)
    with contextlib.closing(Connections.to(api)) as opened:
        on_state("healthy")
        for at in range(opened.addresses):
            await _check_model(opened, at, api.model)
        await probe_all(opened, config, api)
        on_state("ready")


async def probe_all(opened: Connections, config: Config, api: Target) -> None:
    """Get one token from every data-parallel engine; requests go on until each one has answered.

    Raises:
        RunError: an engine refuses, or `limits.first_token_s` is over.
    """
    size, limit = config.parallel.engines, config.limits.first_token_s
    before, asked, late = await counters(opened, _LIMIT_S), 0, set(range(size))

    async def ask(rank: int) -> str | None:
        error = await one_token(opened, config, api, rank, limit)
        if error is None:
            late.discard(rank)
        return error

    try:
        async with asyncio.timeout(limit):
            while True:
                errors = await asyncio.gather(*(ask(rank) for rank in range(size)))
                asked += size
                for rank, error in enumerate(errors):
                    if error:
                        name = f"data-parallel rank {rank}"
                        raise RunError(name, error, "it did not answer a one-token request", "See its log.")
                silent = silent_ranks(before, await counters(opened, _LIMIT_S), asked, size)
                if not silent:
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        who = ", ".join(f"data-parallel rank {rank}" for rank in sorted(late)) if len(late) < size else ""
        reason = f"{who or 'not every data-parallel rank'} answered {'no' if who else 'a'} one-token request in time"
        remedy = "See the logs of the ranks; raise the limit if the first graph compilation takes longer."
        raise RunError("limits.first_token_s", limit, reason, remedy) from None


async def _healthy(opened: Connections, listens: Callable[[], bool]) -> bool:
    if not await aside(listens):
        return False
    return all(await asyncio.gather(*(_is_healthy(opened, at) for at in range(opened.addresses))))


async def _is_healthy(opened: Connections, at: int) -> bool:
    with contextlib.suppress(OSError):
        status, _ = await request_text(opened, "/health", _LIMIT_S, at=at)
        return status == 200
    return False


async def _check_model(opened: Connections, at: int, model: str) -> None:
    try:
        _, text = await request_text(opened, "/v1/models", _LIMIT_S, at=at)
        served = [item["id"] for item in json.loads(text)["data"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"the service did not list its models: {error or type(error).__name__}"
        raise RunError("/v1/models", model, reason, "See the log of rank 0.") from None
    if model not in served:
        raise RunError("model.served_model_name", model, f"the service offers {served}", "Is this our service?")


async def _until(ask: Callable[[], Awaitable[bool]], limit_s: float, key: str, reason: str) -> None:
    try:
        async with asyncio.timeout(limit_s):
            while not await ask():
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise RunError(key, limit_s, reason, "See the logs of the ranks, or raise the limit.") from None
