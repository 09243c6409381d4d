"""The window client: warm the service up, measure a window of steady load, drain.

The window opens while the load already runs and closes while it still runs, so that it holds no ramp at either
end. Latencies count for the requests that *start* in [opened, closed); the load stays on until each of them has
its answer (`bench.hold_load`), so the last ones meet the same load as the first. Requests that our own limits
cut off are truncated, never failed, and stand in no latency figure (issue 2, Measure).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from jobs.config import Bench, Limits, Model
from jobs.errors import ConfigError
from jobs.measure.load import Load
from jobs.measure.metrics import generated_tokens, growth
from jobs.measure.records import RequestRecord, Target, Window
from jobs.measure.wire import Connections, clock
from jobs.measure.workload import Workload

__all__ = ["RequestRecord", "Target", "Window", "measure"]

_SCRAPE_S = 5.0
_SCRAPE_AFTER_STOP_S = 0.5


def _silent(phase: str) -> None:
    """Ignore the news."""


async def measure(
    bench: Bench,
    limits: Limits,
    model: Model,
    target: Target,
    *,
    stop: asyncio.Event | None = None,
    on_phase: Callable[[str], None] = _silent,
) -> Window:
    """Measure one point on a running service.

    The warm-up lasts `bench.warmup_s`, and longer until the first answer is in (or every slot has failed), but no
    longer than `limits.drain_s` more: then the window never opens. A request has no time limit of its own, since
    a long prefill takes minutes; `limits.drain_s` after the closing all that is left is cut off.

    Args:
        bench: the load.
        limits: `drain_s` is used.
        model: ordinary token ids for the prompts.
        target: the service.
        stop: once set, sending stops at once and what was measured so far comes back within about a second.
        on_phase: told "warmup", "window" and "drain" as they begin.

    Raises:
        ConfigError: neither concurrency nor request_rate is given.
    """
    if bench.concurrency is None and bench.request_rate is None:
        raise ConfigError("bench.concurrency", None, "there is no load without it", "Set it, or bench.request_rate.")
    stop = stop or asyncio.Event()
    with closing(Connections(target.base_url, _headers(target))) as connections:
        load = Load(connections, Workload(bench, model, target.model), bench)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(load.run()), group.create_task(_pass_on(stop, load))]
            window = await _phases(bench, limits, load, stop, on_phase, _Scraper(group, connections))
            for task in tasks:
                task.cancel()
    return replace(window, records=tuple(_placed(record, window) for record in load.records))


def _headers(target: Target) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if target.api_key is not None:
        headers["Authorization"] = f"Bearer {target.api_key}"
    return headers


async def _pass_on(stop: asyncio.Event, load: Load) -> None:
    await stop.wait()
    load.sending = False
    load.news.set()


class _Scraper:
    """Reads the engines' counters beside the load, never in its way."""

    def __init__(self, group: asyncio.TaskGroup, connections: Connections) -> None:
        self._group, self._connections = group, connections
        self._tasks: list[asyncio.Task[dict[str, float] | None]] = []

    def scrape(self) -> None:
        """Start one reading."""
        self._tasks.append(self._group.create_task(generated_tokens(self._connections, _SCRAPE_S)))

    async def growth(self, limit_s: float) -> dict[str, int]:
        """Return the tokens of each engine from the first reading to the last; empty where one is missing."""
        _, late = await asyncio.wait(self._tasks, timeout=limit_s)
        for task in late:
            task.cancel()
        first, last = (None if task in late else task.result() for task in (self._tasks[0], self._tasks[-1]))
        return {} if first is None or last is None else growth(first, last)


async def _phases(
    bench: Bench,
    limits: Limits,
    load: Load,
    stop: asyncio.Event,
    on_phase: Callable[[str], None],
    scraper: _Scraper,
) -> Window:
    """Lead the load through its phases; the records are put in by the caller once the last request is cut."""
    begun = clock()
    on_phase("warmup")
    await load.until(lambda: False, stop, bench.warmup_s)
    warm = await load.until(load.warm, stop, limits.drain_s)
    opened, cpu = clock(), time.process_time()
    if stop.is_set() or not warm:
        return Window(opened, opened, opened - begun, 0.0, (), {}, 0.0, truncated=True)

    on_phase("window")
    scraper.scrape()
    await load.until(lambda: False, stop, bench.window_s)
    closed, cpu = min(opened + bench.window_s, clock()), time.process_time() - cpu
    scraper.scrape()

    on_phase("drain")
    load.sending = load.sending and bench.hold_load
    await load.until(lambda: not any(opened <= s < closed for s in load.in_flight.values()), stop, limits.drain_s)
    drained = clock()
    tokens = await scraper.growth(_SCRAPE_AFTER_STOP_S if stop.is_set() else _SCRAPE_S)
    return Window(opened, closed, opened - begun, drained - closed, (), tokens, cpu, truncated=stop.is_set())


def _placed(record: RequestRecord, window: Window) -> RequestRecord:
    return replace(record, in_window=window.opened_s <= record.start_s < window.closed_s)
