"""Between the HTTP answers and the engines: balancing, routing of tokens, figures."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jobs.engines.simulator.engine import Output
from jobs.engines.simulator.log import Log
from jobs.engines.simulator.metrics import EngineMetrics
from jobs.engines.simulator.player import ENGINE_DEAD
from jobs.engines.simulator.scheduler import Request

PUBLISH_S = 0.1
"""How often vLLM's coordinator tells the front end the engines' queues (v1/engine/coordinator.py)."""

_LOG_S = 10.0


class Backend(Protocol):
    """An engine, here or behind the RPC connection."""

    def add(self, request: Request) -> None:
        """Queue a request."""

    def abort(self, keys: Iterable[int]) -> None:
        """Forget requests."""


class Listener(Protocol):
    """Who waits for the tokens of one request."""

    def token(self, reason: str | None) -> None:
        """Take one token; `reason` is set with the last one."""

    def fail(self, words: str) -> None:
        """Take the news that no further token comes."""


@dataclass(slots=True)
class _Flight:
    engine: int
    listener: Listener
    prompt: int
    asked: int
    arrived: float
    latest: float = 0.0
    made: int = 0


class Frontend:
    """Knows every request that is not answered yet, and the engine that has it.

    An engine that has gone silent is not noticed: its requests wait for ever and its last figures stay.

    Args:
        backends: one for each data-parallel rank, in order.
        max_model_len: for the buckets of the histograms.
        log: gets the line that vLLM writes every ten seconds.
    """

    def __init__(self, backends: Sequence[Backend], max_model_len: int, log: Log) -> None:
        self.metrics = [EngineMetrics(max_model_len) for _ in backends]
        self.dead = False
        self._backends = backends
        self._log = log
        self._flights: dict[int, _Flight] = {}
        self._keys = itertools.count(1)
        self._known = [[0, 0] for _ in backends]

    def submit(
        self, prompt: int, limit: int, reason: str, hashes: tuple[int, ...], pinned: int | None, listener: Listener
    ) -> int:
        """Send a request to an engine.

        Args:
            prompt: its tokens.
            limit: tokens to make.
            reason: finish reason once they are made.
            hashes: of the whole blocks of its prompt; empty without prefix caching.
            pinned: data-parallel rank that must serve it; None: the least loaded one.
            listener: gets the tokens.

        Returns:
            The key for `cancel`.
        """
        engine = self._least_loaded() if pinned is None else pinned
        key = next(self._keys)
        self._flights[key] = _Flight(engine, listener, prompt, limit, time.monotonic())
        self._backends[engine].add(Request(key, prompt, limit, reason, hashes))
        return key

    def cancel(self, keys: Iterable[int]) -> None:
        """Abort requests whose client is gone."""
        for key in keys:
            flight = self._flights.pop(key, None)
            if flight:
                self.metrics[flight.engine].success["abort"] += 1
                self._backends[flight.engine].abort([key])

    def receive(self, output: Output) -> None:
        """Hand the output of one engine step to those who wait for it."""
        now = time.monotonic()
        metrics = self.metrics[output.rank]
        metrics.last = output
        reasons = dict(output.finished)
        flights = self._flights
        metrics.generation_tokens += len(output.tokens)
        step_tokens = len(output.tokens)
        for key in output.tokens:
            flight = flights.get(key)
            if flight is None:
                continue
            if flight.made:
                metrics.per_token.add(now - flight.latest)
            else:
                metrics.prompt_tokens += flight.prompt
                metrics.first_token.add(now - flight.arrived)
                step_tokens += flight.prompt
            flight.made += 1
            flight.latest = now
            reason = reasons.get(key)
            if reason:
                del flights[key]
                self._count(metrics, flight, reason, now)
            flight.listener.token(reason)
        if output.tokens:
            metrics.step_tokens.add(step_tokens)
        for key in output.failed:
            flight = flights.pop(key, None)
            if flight:
                flight.listener.fail(output.error)

    def die(self) -> None:
        """Take the news that an engine is dead: every request fails, none is taken any more."""
        if not self.dead:
            self.dead = True
            self._log.error("async_llm.py:419", f"AsyncLLM output_handler failed.\nEngineDeadError: {ENGINE_DEAD}")
        for key in list(self._flights):
            self._flights.pop(key).listener.fail(ENGINE_DEAD)

    async def publish(self) -> None:
        """Bring the engines' queues up to date for the balancer, for ever."""
        while True:
            await asyncio.sleep(PUBLISH_S)
            self._known = [[m.last.waiting, m.last.running] for m in self.metrics]

    async def report(self) -> None:
        """Write vLLM's line on each engine every ten seconds, for ever; not for one that idles."""
        before = [(m.prompt_tokens, m.generation_tokens) for m in self.metrics]
        quiet = [True] * len(before)
        while True:
            await asyncio.sleep(_LOG_S)
            for index, m in enumerate(self.metrics):
                rates = [(now - then) / _LOG_S for now, then in
                         zip((m.prompt_tokens, m.generation_tokens), before[index], strict=True)]  # fmt: skip
                before[index] = (m.prompt_tokens, m.generation_tokens)
                level = "DEBUG" if quiet[index] and not any(rates) else "INFO"
                quiet[index] = not any(rates)
                hits = m.last.prefix_hits / m.last.prefix_queries if m.last.prefix_queries else 0.0
                self._log.write(
                    level,
                    "loggers.py:118",
                    f"Engine {index:03d}: Avg prompt throughput: {rates[0]:.1f} tokens/s, Avg generation throughput: "
                    f"{rates[1]:.1f} tokens/s, Running: {m.last.running} reqs, Waiting: {m.last.waiting} reqs, GPU KV "
                    f"cache usage: {m.last.usage * 100:.1f}%, Prefix cache hit rate: {hits * 100:.1f}%",
                )

    def _least_loaded(self) -> int:
        """Choose as vLLM does (v1/engine/core_client.py): fewest waiting, then running, by counts 0.1 s old."""
        index = min(range(len(self._known)), key=lambda i: self._known[i])
        counts = self._known[index]
        counts[0 if counts[0] else 1] += 1
        return index

    @staticmethod
    def _count(metrics: EngineMetrics, flight: _Flight, reason: str, now: float) -> None:
        metrics.success[reason] += 1
        metrics.end_to_end.add(now - flight.arrived)
        metrics.prompt_length.add(flight.prompt)
        metrics.output_length.add(flight.made)
        metrics.asked_length.add(flight.asked)
