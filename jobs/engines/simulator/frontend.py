"""Between the HTTP answers and the engines: balancing, routing of tokens, figures, and the page /metrics of vLLM 0.9.1
(v1/metrics/loggers.py)."""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from jobs.engines.simulator.answers import Answer, Order
from jobs.engines.simulator.engine import Output
from jobs.engines.simulator.faults import ENGINE_DEAD
from jobs.engines.simulator.log import Log
from jobs.engines.simulator.scheduler import Request

PUBLISH_S = 0.1
"""How often vLLM's coordinator tells the front end the engines' queues (v1/engine/coordinator.py)."""

REASONS = ("stop", "length", "abort")

_LOG_S = 10.0

_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_TPOT = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


def one_two_five(limit: int) -> tuple[float, ...]:
    """Return the buckets 1, 2, 5, 10, ... up to `limit`."""
    return tuple(n for scale in range(len(str(limit))) for digit in (1, 2, 5) if (n := digit * 10**scale) <= limit)


class Histogram:
    """Counts of values by bucket."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass
class EngineMetrics:
    """What the front end has seen of one data-parallel rank; it keeps the last figures of a dead one."""

    max_model_len: int
    last: Output = field(default_factory=lambda: Output(0))
    prompt_tokens: int = 0
    generation_tokens: int = 0
    success: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))

    def __post_init__(self) -> None:
        lengths = one_two_five(self.max_model_len)
        self.histograms = {
            "request_prompt_tokens": Histogram(lengths),
            "request_generation_tokens": Histogram(lengths),
            "iteration_tokens_total": Histogram(_STEP),
            "request_params_max_tokens": Histogram(lengths),
            "time_to_first_token_seconds": Histogram(_TTFT),
            "time_per_output_token_seconds": Histogram(_TPOT),
            "e2e_request_latency_seconds": Histogram(_LATENCY),
        }

    def add(self, name: str, value: float) -> None:
        """Count a value in one of the histograms."""
        self.histograms[name].add(value)


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


def render(engines: Iterable[tuple[int, EngineMetrics]], model: str, blocks: int, block_size: int) -> str:
    """Return the page for the engines given.

    Args:
        engines: number and figures of each engine that is shown.
        model: label model_name.
        blocks: KV cache blocks of all engines together (vLLM 0.9.1 adds them up).
        block_size: tokens of a block.
    """
    shown = list(engines)
    out: list[str] = []

    def kind(name: str, kind: str) -> None:
        out.append(f"# TYPE vllm:{name} {kind}\n")

    def line(name: str, engine: int, value: float, more: str = "") -> None:
        out.append(f'vllm:{name}{{engine="{engine}"{more},model_name="{model}"}} {float(value)}\n')

    for type_, name, value in _SCALARS:
        kind(name, type_)
        for engine, m in shown:
            line(name, engine, value(m))
    kind("request_success_total", "counter")
    for engine, m in shown:
        for reason, count in m.success.items():
            line("request_success_total", engine, count, f',finished_reason="{reason}"')
    for name in EngineMetrics(1).histograms:
        kind(name, "histogram")
        for engine, m in shown:
            histogram = m.histograms[name]
            bounds = (*(str(float(bound)) for bound in histogram.bounds), "+Inf")
            for bound, count in zip(bounds, accumulate(histogram.counts), strict=True):
                line(f"{name}_bucket", engine, count, f',le="{bound}"')
            line(f"{name}_count", engine, sum(histogram.counts))
            line(f"{name}_sum", engine, histogram.total)
    if shown:
        kind("cache_config_info", "gauge")
        out.append(f'vllm:cache_config_info{{block_size="{block_size}",engine="0",num_gpu_blocks="{blocks}"}} 1.0\n')
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
        self._flights[key] = _Flight(engine, answer, order, time.monotonic())
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
                metrics.add("time_per_output_token_seconds", now - flight.latest)
            else:
                metrics.prompt_tokens += flight.order.prompt
                metrics.add("time_to_first_token_seconds", now - flight.arrived)
                step_tokens += flight.order.prompt
            flight.made += 1
            flight.latest = now
            reason = reasons.get(key)
            if reason:
                del flights[key]
                self._count(metrics, flight, reason, now)
            flight.answer.token(reason)
        if output.tokens:
            metrics.add("iteration_tokens_total", step_tokens)
        for key in output.failed:
            flight = flights.pop(key, None)
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

    @staticmethod
    def _count(metrics: EngineMetrics, flight: _Flight, reason: str, now: float) -> None:
        metrics.success[reason] += 1
        metrics.add("e2e_request_latency_seconds", now - flight.arrived)
        metrics.add("request_prompt_tokens", flight.order.prompt)
        metrics.add("request_generation_tokens", flight.made)
        metrics.add("request_params_max_tokens", flight.order.limit)
