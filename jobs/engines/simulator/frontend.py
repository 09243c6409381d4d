"""Between the HTTP answers and the engines: balancing, routing of tokens, figures, and the page /metrics of vLLM 0.9.1
(v1/metrics/loggers.py)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jobs.engines.simulator.answers import Answer, Order
from jobs.engines.simulator.engine import Output
from jobs.engines.simulator.faults import ENGINE_DEAD
from jobs.engines.simulator.log import Log
from jobs.engines.simulator.scheduler import Figures, Request

PUBLISH_S = 0.1
"""How often vLLM's coordinator tells the front end the engines' queues (v1/engine/coordinator.py)."""

REASONS = ("stop", "length", "abort")

_LOG_S = 10.0


@dataclass
class EngineMetrics:
    """What the front end has seen of one data-parallel rank; it keeps the last figures of a dead one."""

    last: Figures = field(default_factory=Figures)
    prompt_tokens: int = 0
    generation_tokens: int = 0
    success: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))


_SCALARS: tuple[tuple[str, str, Callable[[EngineMetrics], float]], ...] = (
    ("gauge", "num_requests_running", lambda m: m.last.running),
    ("gauge", "num_requests_waiting", lambda m: m.last.waiting),
    ("gauge", "gpu_cache_usage_perc", lambda m: m.last.usage),
    ("counter", "gpu_prefix_cache_queries_total", lambda m: m.last.prefix_queries),
    ("counter", "gpu_prefix_cache_hits_total", lambda m: m.last.prefix_hits),
    ("counter", "num_preemptions_total", lambda m: m.last.preemptions),
    ("counter", "prompt_tokens_total", lambda m: m.prompt_tokens),
    ("counter", "generation_tokens_total", lambda m: m.generation_tokens),
)


def render(engines: Iterable[tuple[int, EngineMetrics]], model: str) -> str:
    """Return the page for the engines given, by number; `model` is the label model_name."""
    shown = list(engines)
    out: list[str] = []

    def line(name: str, engine: int, value: float, more: str = "") -> None:
        out.append(f'vllm:{name}{{engine="{engine}"{more},model_name="{model}"}} {float(value)}\n')

    for kind, name, value in _SCALARS:
        out.append(f"# TYPE vllm:{name} {kind}\n")
        for engine, m in shown:
            line(name, engine, value(m))
    out.append("# TYPE vllm:request_success_total counter\n")
    for engine, m in shown:
        for reason, count in m.success.items():
            line("request_success_total", engine, count, f',finished_reason="{reason}"')
    return "".join(out)


class Backend(Protocol):
    """An engine, here or behind the RPC connection."""

    def add(self, request: Request) -> None:
        """Queue a request."""

    def abort(self, keys: Iterable[int]) -> None:
        """Forget requests."""


@dataclass(slots=True)
class _Flight:
    engine: int
    answer: Answer
    order: Order
    begun: bool = False


class Frontend:
    """Knows every request that is not answered yet, and the engine that has it.

    An engine that has gone silent is not noticed: its requests wait for ever and its last figures stay.

    Args:
        backends: one for each data-parallel rank, in order.
        log: gets the line that vLLM writes every ten seconds.
    """

    def __init__(self, backends: Sequence[Backend], log: Log) -> None:
        self.metrics = [EngineMetrics() for _ in backends]
        self.dead = False
        self._backends = backends
        self._log = log
        self._flights: dict[int, _Flight] = {}
        self._keys = itertools.count(1)
        self._known = [[0, 0] for _ in backends]

    def submit(self, order: Order, pinned: int | None, answer: Answer) -> int:
        """Send a request to an engine.

        Args:
            pinned: data-parallel rank that must serve it; None: the least loaded one.
            answer: gets the tokens.

        Returns:
            The key for `cancel`.
        """
        engine = self._least_loaded() if pinned is None else pinned
        key = next(self._keys)
        self._flights[key] = _Flight(engine, answer, order)
        self._backends[engine].add(Request(key, order.prompt, order.limit, order.reason, order.hashes))
        return key

    def cancel(self, key: int) -> None:
        """Abort a request whose client is gone; nothing where it has been answered."""
        flight = self._flights.pop(key, None)
        if flight:
            self.metrics[flight.engine].success["abort"] += 1
            self._backends[flight.engine].abort([key])

    def receive(self, output: Output) -> None:
        """Hand the output of one engine step to those who wait for it."""
        metrics = self.metrics[output.rank]
        metrics.last = output.figures
        metrics.generation_tokens += len(output.tokens)
        reasons = dict(output.finished)
        for key in output.tokens:
            flight = self._flights.get(key)
            if flight is None:
                continue
            if not flight.begun:
                flight.begun = True
                metrics.prompt_tokens += flight.order.prompt
            if reason := reasons.get(key):
                del self._flights[key]
                metrics.success[reason] += 1
            flight.answer.token(reason)
        for key in output.failed:
            flight = self._flights.pop(key, None)
            if flight:
                flight.answer.fail(output.error)

    def die(self) -> None:
        """Take the news that an engine is dead: every request fails, none is taken any more."""
        if not self.dead:
            self.dead = True
            self._log.error("async_llm.py:419", f"AsyncLLM output_handler failed.\nEngineDeadError: {ENGINE_DEAD}")
        for key in list(self._flights):
            self._flights.pop(key).answer.fail(ENGINE_DEAD)

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
                now = (m.prompt_tokens, m.generation_tokens)
                rates = [(new - old) / _LOG_S for new, old in zip(now, before[index], strict=True)]
                before[index] = now
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
