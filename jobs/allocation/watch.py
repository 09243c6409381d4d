"""Watch the engines of a service while it is used: a hang shows neither in /health nor in stale counters.

Every data-parallel rank must give a sign of life: its token counter grows, or it answers a one-token request that
is pinned to it (facts measured on real vLLM: a stopped engine leaves /health at 200 and its counters stale).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.allocation.probe import counters, one_token
from jobs.core.config import Config
from jobs.core.layout import local_sizes, node_of
from jobs.measure.records import Target
from jobs.measure.wire import Connections, request_text

TICK_S = 1.0

READING_S = 1.0
"""A page of counters that takes longer tells nothing: the next one is read, or the engine is probed."""

SECONDS_PER_TOKEN = 1e-3
"""Allowance for a full-length prefill ahead of the probe: published R1 prefill of 131,072 tokens takes 46 to 100 s."""

LIMIT = " (limits.probe_s)"

Fail = Callable[[int, str], None]
"""Told the node's rank and the reason, once."""


def probe_limit_s(config: Config, ahead: int | None = None) -> float:
    """Return how long a one-token request may take on a busy engine, in seconds.

    `ahead`: tokens that it may have to read before it makes one; None: anything up to max_model_len.
    """
    longest = config.parallel.max_model_len
    return config.limits.probe_s + (longest if ahead is None else min(ahead, longest)) * SECONDS_PER_TOKEN


def tokens_ahead(config: Config) -> int | None:
    """Return the tokens that an engine may read without making one while a point is measured; None: unknown.

    An engine makes a token at the latest when a step of max_num_batched_tokens, or the longest prompt that is cut over
    several steps, is read; a request that was preempted reads its own output again. Nobody else has requests in flight
    where the service has its own key.
    """
    bench, batch = config.bench, config.parallel.max_num_batched_tokens
    known = not bench.is_external and bench.workload in ("random", "shared_prefix") and bench.lengths == "fixed"
    alone = config.engine.api_key and bench.quality == "off"
    if not (known and alone and batch):
        return None
    request = bench.input_tokens + bench.output_tokens
    step = max(request, batch)
    return min(step, bench.concurrency * request) if bench.concurrency and not bench.search else step


@dataclass
class Watch:
    """Signs of life of every engine of one service; `probed` are the tokens that our own probes asked for.

    `ahead`: tokens that an engine may have to read before it answers a probe; None: up to max_model_len.
    """

    config: Config
    api: Target
    fail: Fail
    probed: list[tuple[float, int]] = field(default_factory=list)
    ahead: int | None = None

    async def run(self) -> None:
        """Watch until cancelled, or until an engine gave no sign of life."""
        with contextlib.closing(Connections.to(self.api)) as opened:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._idle(opened))
                for rank in range(self.config.parallel.engines):
                    group.create_task(self._engine(opened, rank))

    async def _counters(self, opened: Connections) -> dict[str, float]:
        return await counters(opened, max(5.0, self.config.limits.heartbeat_s / 2))

    async def _idle(self, opened: Connections) -> None:
        """End a service that nobody uses: an allocation must not be held for nothing (`limits.idle_s`)."""
        limit = self.config.limits.idle_s
        served, since = -1.0, time.monotonic()
        while True:
            now = sum((await self._counters(opened)).values()) - len(self.probed)
            if now > served:
                served, since = now, time.monotonic()
            elif time.monotonic() - since > limit:
                self.fail(0, f"no request ran for {limit:g} s (limits.idle_s)")
                return
            await asyncio.sleep(min(limit / 4, 10 * TICK_S))

    async def _engine(self, opened: Connections, rank: int) -> None:
        """Watch one engine: probe it whenever its counter stood still for half the heartbeat limit."""
        patience = self.config.limits.heartbeat_s / 2
        reading = max(READING_S, patience / 4)
        last, alive = (await self._counters(opened)).get(str(rank)), time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = None
            # A head that stands still must not delay the probe. Python 3.11's wait_for would lose a cancellation that
            # comes together with the answer, and whoever stops the service would wait for this task for ever.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(reading):
                    now = (await self._counters(opened)).get(str(rank))
            if now is not None and now != last:
                last, alive = now, time.monotonic()
            if time.monotonic() - alive < patience:
                continue
            failed = await self._probe(opened, rank, probe_limit_s(self.config, self.ahead))
            if failed:
                self.fail(*failed)
                return
            alive = time.monotonic()

    async def _probe(self, opened: Connections, rank: int, limit_s: float) -> tuple[int, str] | None:
        """Return None if an engine answers a probe, or its counter shows that it is busy with others.

        Else which node failed, and why: if the API server answers nothing at all, it is at fault and not the engine.
        """
        replica, _ = self.api.place(rank)
        begun, growth = time.monotonic(), asyncio.create_task(self._growth(opened, rank))
        health = asyncio.create_task(_answers(opened, replica, limit_s))
        try:
            error = await one_token(opened, self.config, self.api, rank, limit_s)
            if error is None:
                self.probed.append((time.monotonic(), rank))
                return None
            # A probe that was refused at once tells nothing of a busy engine: give its counter one tick in all.
            await asyncio.wait({growth}, timeout=max(0.0, begun + TICK_S - time.monotonic()))
            if growth.done():
                return None
            if health.done() and health.result():
                node = node_of(local_sizes(self.config), rank)
                return node, f"data-parallel rank {rank} gave no sign of life: {error}{LIMIT}"
            return replica, f"its API server gave no sign of life: no answer within {limit_s:g} s{LIMIT}"
        finally:
            growth.cancel()
            health.cancel()

    async def _growth(self, opened: Connections, rank: int) -> None:
        """Return once an engine's counter has grown since this call; what it did before is no sign of life now."""
        first: float | None = None
        while True:
            now = (await self._counters(opened)).get(str(rank))
            if first is None:
                first = now
            elif now is not None and now != first:
                return
            await asyncio.sleep(TICK_S)

    def tokens_between(self, opened_s: float, closed_s: float) -> dict[str, int]:
        """Return the tokens of our own probes by data-parallel rank, in a span of the monotonic clock."""
        found: dict[str, int] = {}
        for moment, rank in self.probed:
            if opened_s <= moment < closed_s:
                found[str(rank)] = found.get(str(rank), 0) + 1
        return found


async def _answers(opened: Connections, replica: int, limit_s: float) -> bool:
    """Return whether the API server of a replica answers anything at all."""
    with contextlib.suppress(OSError):
        return bool(await request_text(opened, "/health", limit_s, at=replica))
    return False
