"""When a service is ready: /health, the served model, and a token from every data-parallel engine.

/health alone stays 200 while the engines of the other node are dead, and before the first request has shown
that the engines can run at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import aiohttp

from jobs.allocation.probe import counters, one_token, silent_ranks
from jobs.cluster.ports import listeners
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.process import name_of
from jobs.core.waiting import aside
from jobs.measure.records import Target

POLL_S = 0.25


async def wait_ready(config: Config, api: Target, on_state: Callable[[str], None], owns: Callable[[int], bool]) -> None:
    """Return when the service is ready. Its key is sent to nobody else.

    Args:
        config: of the service; `limits.load_s` and `limits.first_token_s` apply.
        api: where it is.
        on_state: told "healthy" and "ready" as they happen.
        owns: tells whether a process is of our engine.

    Raises:
        RunError: a limit was exceeded, the wrong model is served, or a data-parallel rank does not answer.
    """
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(api.base_url, timeout=timeout) as session:  # /health asks for no key
        await _until(
            lambda: _healthy(session, api, owns), config.limits.load_s, "limits.load_s", "/health was not 200 in time"
        )
    # Who listened before the answer may have gone since. While our engine listens, nobody else can.
    await aside(check_listener, urlsplit(api.base_url).port or 0, owns)
    async with aiohttp.ClientSession(api.base_url, headers=api.authorization, timeout=timeout) as session:
        on_state("healthy")
        await _check_model(session, api.model)
        await probe_all(session, config, api)
        on_state("ready")


async def probe_all(session: aiohttp.ClientSession, config: Config, api: Target) -> None:
    """Get one token from every data-parallel engine; requests go on until each one has answered.

    Raises:
        RunError: an engine refuses, or `limits.first_token_s` is over.
    """
    size, limit = config.parallel.data_parallel_size, config.limits.first_token_s
    before, asked, late = await counters(session), 0, set(range(size))

    async def ask(rank: int) -> str | None:
        error = await one_token(session, config, api, rank, limit)
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
                silent = silent_ranks(before, await counters(session), asked, size)
                if not silent:
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        who = ", ".join(f"data-parallel rank {rank}" for rank in sorted(late)) if len(late) < size else ""
        raise RunError(
            "limits.first_token_s",
            limit,
            f"{who or 'not every data-parallel rank'} answered {'no' if who else 'a'} one-token request in time",
            "See the logs of the ranks; raise the limit if the first graph compilation takes longer.",
        ) from None


async def _healthy(session: aiohttp.ClientSession, api: Target, owns: Callable[[int], bool]) -> bool:
    if await aside(check_listener, urlsplit(api.base_url).port or 0, owns):
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.get("/health") as response:
                return response.status == 200
    return False


def check_listener(port: int, owns: Callable[[int], bool]) -> bool:
    """Look who listens where the API will be. Returns whether anybody does, as far as can be told.

    An engine binds its port at its start and listens after its load: until then any user could listen beside it. A
    container's engine may be root's, and then nobody but root sees its processes.

    Raises:
        RunError: it is neither this user nor root, or a process that is not of our engine.
    """
    found = listeners(port)
    for one in found or ():
        who = f"user {one.uid}" if one.uid not in (os.geteuid(), 0) else None
        if not who and (pids := one.pids()) and not any(map(owns, pids)):
            who = f"process {pids[0]} {name_of(pids[0])}, which is not of this service,"
        if who:
            reason, remedy = f"{who} listens there in the engine's place", "Set engine.port to another port"
            raise RunError("engine.port", port, reason, f"{remedy}, and find out what that is.")
    return found is None or bool(found)


async def _check_model(session: aiohttp.ClientSession, model: str) -> None:
    try:
        async with session.get("/v1/models") as response:
            answer = await response.json()
        served = [item["id"] for item in answer["data"]]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
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
