"""The window client: warm the service up, measure a window of steady load, drain.

The window opens while the load already runs and closes while it still runs, so that it holds no ramp at either
end. Latencies count for the requests that *come* in [opened, closed); the load stays on until each of them has
its answer (`bench.hold_load`), so the last ones meet the same load as the first. Requests that our own limits
cut off are truncated, never failed, and stand in no latency figure.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jobs.core.config import Bench, Model
from jobs.core.errors import ConfigError
from jobs.core.fields import from_root
from jobs.core.sweep_settings import Limits
from jobs.core.waiting import first_of
from jobs.measure import dataset, underload
from jobs.measure.arrivals import poisson
from jobs.measure.heartbeat import Heartbeat
from jobs.measure.load import Load
from jobs.measure.prose import Prose
from jobs.measure.records import Answer, Target, Window
from jobs.measure.series import PERIOD_S, Page, Scraper, fresh, is_busy, of_window, result, samples, totals
from jobs.measure.tokenizer import Tokenizer
from jobs.measure.underload import Questions
from jobs.measure.wire import Connections, clock
from jobs.measure.workload import Item, Workload

_SCRAPE_S = 5.0
_SCRAPE_AFTER_STOP_S = 0.5

_READINGS = 10
"""Of the last page, until it tells of all that came."""

_SETTLES = 3
"""Readings of the first page, until it tells of no request: others may have some there."""

_APART = 1 << 30
"""Number of the first warm-up request where the measured ones are counted from 0: none is sent twice."""

_USUAL_CONCURRENCY = 8
"""Requests in flight while a trace is warmed up, where the config does not say."""

_HOUR_S, _REQUEST_S = 3600.0, 60.0


def _silent(phase: str) -> None:
    """Ignore the news."""


async def measure(
    bench: Bench,
    limits: Limits,
    model: Model,
    target: Target,
    *,
    number: int = 1,
    seed_offset: int = 0,
    idle: Answer | None = None,
    stop: asyncio.Event | None = None,
    on_phase: Callable[[str], None] = _silent,
) -> Window:
    """Measure one window on a running service.

    The warm-up lasts `bench.warmup_s`, and longer until the first answer is in (or every slot has failed), but no
    longer than `limits.warmup_s` more: then the window never opens. For the rest of that time it also waits until
    every slot has had an answer. A request has no time limit of its own, since a long prefill takes minutes;
    `limits.drain_s` after the closing all that is left is cut off.

    With `bench.num_requests`, and for traces, the window holds exactly these requests, from the first start to the
    last end, after a warm-up with others that has run dry: there the ramps are a part of the question.

    Args:
        bench: the load.
        limits: `warmup_s`, `window_s` (of a fixed number of requests) and `drain_s` are used.
        model: ordinary token ids for the prompts.
        target: the service.
        number: of the window in its point, from 1: each has arrivals of its own (see arrivals.py).
        seed_offset: keeps prompts apart from those of other windows (see workload.py); 0: none.
        idle: the idle service's answer to the question that stands among the load; None: none does.
        stop: once set, sending stops at once and what was measured so far comes back within about a second.
        on_phase: told "warm", "measuring" and "drain" as they begin.

    Raises:
        ConfigError: neither concurrency nor request_rate is given.
        RunError: the data set cannot be read.
    """
    traced = bench.workload == "trace"
    if bench.concurrency is None and bench.request_rate is None and not traced:
        raise ConfigError("bench.concurrency", None, "there is no load without it", "Set it, or bench.request_rate.")
    stop = stop or asyncio.Event()
    with closing(Connections.to(target)) as connections:
        if (items := await _items(bench, model, target, connections, stop)) is None:
            return _never_opened(clock(), clock())
        workload = Workload(bench, model, target.model, items=items, seed_offset=seed_offset)
        questions = Questions(connections, target, bench, idle) if idle and underload.wanted(bench) else None
        begun = clock()
        async with asyncio.TaskGroup() as group:
            scraper = Scraper(group, connections, _SCRAPE_S)
            before = await _first_page(scraper)
            polling = group.create_task(scraper.run())
            beating = group.create_task((heart := Heartbeat()).run())
            run = _WindowRun(bench, limits, connections, workload, stop, on_phase, scraper, number, questions)
            window = await (_counted(run) if traced or bench.num_requests else _timed(run))
            polling.cancel()
            beating.cancel()
            return replace(await _told(_placed(window, heart, questions), scraper, before, stop), begun_s=begun)


async def _first_page(scraper: Scraper) -> asyncio.Task[Page | None]:
    """Read the page from which is counted, before the load begins: a busy service would count its first answers in it.

    Nothing of ours is under way yet. A page that tells of requests may not have counted the last window's to their end.
    """
    for left in reversed(range(_SETTLES)):
        page = scraper.scrape()
        await asyncio.wait({page}, timeout=_SCRAPE_S)
        if not left or not is_busy(result(page)):
            break
        await asyncio.sleep(PERIOD_S)
    return page


async def _told(window: Window, scraper: Scraper, before: asyncio.Task[Page | None], stop: asyncio.Event) -> Window:
    """Return the window with what the service's counters say of it.

    A page that tells of less than came is read again, since it may be some seconds old; of copies no total is taken.
    """
    tokens = np.sort(np.concatenate([np.empty(0), *(record.chunk_times for record in window.records)]))
    whole = [record for record in window.records if record.status == "ok"]
    came = {"finished": len(whole), "generated": sum(record.output_tokens or 0 for record in whole)}
    for left in reversed(range(_READINGS)):
        after = scraper.scrape()
        await scraper.end(_SCRAPE_AFTER_STOP_S if stop.is_set() else _SCRAPE_S)
        (pages, aged_s), told = fresh(scraper.pages, tokens), totals(result(before), result(after))
        late = any(told[name] is not None and told[name] < count for name, count in came.items())
        if aged_s or not (late and left) or stop.is_set():
            break
        await asyncio.sleep(PERIOD_S)
    growth = replace(of_window(pages, window), aged_s=aged_s)
    return replace(
        window, ended_s=clock(), series=samples(pages), growth=growth, engine_tokens=growth.tokens,
        **({} if aged_s else told),
    )  # fmt: skip


async def _items(
    bench: Bench, model: Model, target: Target, connections: Connections, stop: asyncio.Event
) -> Sequence[Item] | Prose | None:
    """Return what the point's prompts are made of (dataset.py); None: it is to stop, and a tokenizer may be slow."""
    tokenizer = Tokenizer(connections, target.model, Path(from_root(model.path)))
    found = await first_of(dataset.load(bench, tokenizer), stop)
    return found.result() if found else None


def _placed(window: Window, heart: Heartbeat, questions: Questions | None) -> Window:
    """Return the window with all that is known once it is over, and each record in it or beside it."""
    inside = (not r.check and window.holds(r.came_s) for r in window.records)
    return replace(
        window,
        checked=questions.checked if questions else None,
        lags=heart.lags(window.opened_s, window.closed_s + window.drain_s),
        records=tuple(replace(r, in_window=here) for r, here in zip(window.records, inside, strict=True)),
    )


async def warm(
    bench: Bench,
    limits: Limits,
    model: Model,
    target: Target,
    *,
    seed_offset: int,
    stop: asyncio.Event,
    on_phase: Callable[[str], None] = _silent,
) -> str | None:
    """Put a load like that of a point on a service before somebody else's client measures it, and let it run dry.

    What engines compile at their first full batches is compiled by then. Arguments and errors are those of `measure`.
    Returns None where the service is warm, else why it is not.
    """
    with closing(Connections.to(target)) as connections:
        if (items := await _items(bench, model, target, connections, stop)) is None:
            return "the window was cut short"
        workload = Workload(bench, model, target.model, items=items, seed_offset=seed_offset).apart()
        async with asyncio.TaskGroup() as group:
            run = _WindowRun(
                bench, limits, connections, workload, stop, on_phase, Scraper(group, connections, _SCRAPE_S)
            )
            load = run.load(first=_APART)
            async with run.sending(load):
                await run.warm_up(load)
                load.sending, load.dropping = False, True
                await load.until(lambda: not load.in_flight, stop, limits.drain_s)
    if stop.is_set():
        return "the window was cut short"
    if any(record.status == "ok" for record in load.records):
        return None
    error = next((f": {record.error}" for record in load.records if record.error), "")
    return f"the window never opened: no answer within bench.warmup_s and limits.drain_s{error}"


@dataclass(frozen=True)
class _WindowRun:
    """What both kinds of window need."""

    bench: Bench
    limits: Limits
    connections: Connections
    workload: Workload
    stop: asyncio.Event
    on_phase: Callable[[str], None]
    scraper: Scraper
    number: int = 0
    questions: Questions | None = None

    def load(self, *, first: int = 0, questions: Questions | None = None) -> Load:
        """Return the load before the window, and in a closed loop in it."""
        arrivals = poisson(self.bench, self.number, warming=True) if self.bench.request_rate else None
        return Load(self.connections, self.workload, self.bench, first=first, arrivals=arrivals, questions=questions)

    @asynccontextmanager
    async def sending(self, load: Load) -> AsyncIterator[asyncio.Task[None]]:
        """Send a load, and cut off what is left of it at the end; `stop` ends the sending at once."""
        async with asyncio.TaskGroup() as group:
            running, passing = group.create_task(load.run()), group.create_task(self._pass_on(load))
            running.add_done_callback(lambda _: load.news.set())
            yield running
            passing.cancel()
            running.cancel()

    async def _pass_on(self, load: Load) -> None:
        await self.stop.wait()
        load.sending = False
        load.news.set()

    async def warm_up(self, load: Load) -> float | None:
        """Return the moment at which the service is warm; None: it does not answer under this load."""
        self.on_phase("warm")
        await load.until(lambda: False, self.stop, self.bench.warmup_s)
        began, answers = clock(), len(load.records)
        warm = await load.until(load.warm, self.stop, self.limits.warmup_s)
        if warm:
            await load.until(load.filled, self.stop, max(0.0, self.limits.warmup_s - (clock() - began)))
        if not warm or self.stop.is_set():
            return None
        # An answer that ended the wait opens the window: what its slot has sent since then came in it.
        return load.records[-1].end_s if len(load.records) > answers and load.filled() else clock()


def _never_opened(begun: float, opened: float) -> Window:
    return Window(opened, opened, opened - begun, 0.0, (), {}, 0.0, truncated=True)


async def _timed(run: _WindowRun) -> Window:
    """Measure a window of time in a load that was there before and goes on after it."""
    load = run.load(questions=run.questions)
    async with run.sending(load):
        window = await _phases(run, load)
    return replace(window, records=tuple(load.records))  # with what was cut off at the end


async def _phases(run: _WindowRun, load: Load) -> Window:
    """Lead the load through its phases."""
    bench, stop, begun = run.bench, run.stop, clock()
    opened, cpu = await run.warm_up(load), time.process_time()
    if opened is None:
        return _never_opened(begun, clock())

    run.on_phase("measuring")
    if bench.request_rate:
        load.anew(poisson(bench, run.number), opened)
    run.scraper.scrape()
    await load.until(lambda: False, stop, opened + bench.window_s - clock())
    closed = min(opened + bench.window_s, clock())
    if not load.came_since(opened):
        await load.until(lambda: load.came_since(opened), stop, run.limits.drain_s)
        closed = clock()
    cpu = time.process_time() - cpu
    run.scraper.scrape()
    if bench.request_rate:
        await load.arrived(closed)

    run.on_phase("drain")
    load.sending = load.sending and bench.hold_load
    await load.until(lambda: not any(opened <= s < closed for s in load.in_flight.values()), stop, run.limits.drain_s)
    drained = clock()
    return Window(opened, closed, opened - begun, drained - closed, (), {}, cpu, truncated=stop.is_set())


async def _counted(run: _WindowRun) -> Window:
    """Measure a fixed number of requests, all of them."""
    bench, workload, stop, begun = run.bench, run.workload, run.stop, clock()
    warming = replace(run, bench=_for_warm_up(bench, workload), workload=workload.apart()).load(first=_APART)
    async with run.sending(warming):
        warm = await run.warm_up(warming) is not None
        warming.sending, warming.dropping = False, True
        await warming.until(lambda: not warming.in_flight, stop, run.limits.drain_s)

    opened, cpu = clock(), time.process_time()
    if stop.is_set() or not warm:
        return replace(_never_opened(begun, opened), records=tuple(warming.records))
    run.on_phase("measuring")
    run.scraper.scrape()
    count = len(workload.arrivals) if workload.arrivals is not None else bench.num_requests
    arrivals = _arrivals(bench, workload, run.number)
    load = Load(run.connections, workload, bench, count=count, arrivals=arrivals, questions=run.questions)
    limit = run.limits.window_s or usual_limit_s(count or 0, bench.concurrency, arrivals)
    async with run.sending(load) as running:
        while not stop.is_set() and (left := opened + limit - clock()) > 0:
            if not await _hears(load, running, stop, min(run.limits.drain_s, left)):
                break
        late = not (stop.is_set() or running.done()) and clock() >= opened + limit
    closed, cpu = max([clock(), *(record.end_s for record in load.records)]), time.process_time() - cpu
    run.scraper.scrape()
    run.on_phase("drain")
    records = (*warming.records, *load.records)
    truncated = stop.is_set()
    return Window(
        opened, closed, opened - begun, 0.0, records, {}, cpu, truncated=truncated, late_s=limit if late else None
    )


async def _hears(load: Load, running: asyncio.Task[None], stop: asyncio.Event, limit_s: float) -> bool:
    """Wait for the next answer; return False at the end, or when none has come for so long that the rest is cut off."""
    heard = len(load.records)
    more = await load.until(lambda: running.done() or len(load.records) > heard, stop, limit_s)
    return not running.done() and (more or not load.in_flight)


def usual_limit_s(count: int, concurrency: int | None, arrivals: Sequence[float] | None) -> float:
    """Return how long a fixed number of requests may take where no limit is set, in seconds.

    An hour, twice the time of the arrivals, and a minute for each request that one slot has to send.
    """
    last = arrivals[-1] if arrivals else 0.0
    return _HOUR_S + 2 * last + (_REQUEST_S * count / concurrency if concurrency else 0.0)


def _arrivals(bench: Bench, workload: Workload, number: int) -> tuple[float, ...] | None:
    """Return the times of all requests; None: a closed loop."""
    if workload.arrivals is not None:
        return workload.arrivals
    if bench.request_rate is None:
        return None
    return tuple(itertools.islice(poisson(bench, number), bench.num_requests))


def _for_warm_up(bench: Bench, workload: Workload) -> Bench:
    """Return the load before a fixed number of requests: that of the point, or a closed loop before a trace."""
    if workload.arrivals is None:
        return bench
    return replace(bench, request_rate=None, concurrency=bench.concurrency or _USUAL_CONCURRENCY)
