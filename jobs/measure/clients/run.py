"""Run an external client against a ready service: bounded in time, ended with the service, judged by its file.

Such a client gives figures of its own. Whether the service was warm, whose requests it served, what its caches found
and whether its queue grew is seen from here, as for the window client.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.log import last_words, read_tail
from jobs.core.waiting import first_of
from jobs.measure import client, metrics, telemetry
from jobs.measure.clients import base, judge
from jobs.measure.clients.base import ClientSite
from jobs.measure.clients.result import Result
from jobs.measure.records import Target, Window
from jobs.measure.series import Page, Scraper, between, grown, result, samples, traffic
from jobs.measure.telemetry import Reading, Usage
from jobs.measure.wire import Connections, clock

LOG = "client.log"
SCRAPE_S = 5.0
STOP_S = 2.0

SEEDS_APART = 1_000_003
"""Distance of the seeds of two offsets: the clients know no offset, and prompts of one seed are the same prompts."""


@dataclass(frozen=True)
class External:
    """What a run left behind. `reason` says why it cannot be believed; None: it can."""

    result: Result | None
    reason: str | None
    engine_tokens: Mapping[str, int]
    seconds: float
    truncated: bool = False


@dataclass(frozen=True)
class ExternalRun:
    """The external client of one point, to be run once at its site; the config's model path is the one that it sees.

    `folder` takes log and results; what an earlier attempt left in it is removed. `tag` is that of its processes.
    """

    config: Config
    site: ClientSite
    folder: Path
    tag: str

    async def once(
        self, target: Target, seed_offset: int, stop: asyncio.Event, on_phase: Callable[[str], None]
    ) -> External:
        """Run the client with prompts that are others than those of other offsets; `stop` ends it, once set.

        `on_phase` is told "measuring" when it begins.
        """
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        bench, program = self.config.bench, base.of(self.config)
        config = replace(self.config, bench=replace(bench, seed=bench.seed + SEEDS_APART * seed_offset))
        count = base.request_count(bench)
        argv = await program.write(config, target, self.site.place(self.folder), count)
        on_phase("measuring")
        before = await _counters(target)
        began = time.monotonic()
        try:
            how = await self._ended(argv, environment(self.site.inherited, target), stop)
        finally:
            try:
                await self.site.close(self.folder)
            finally:
                program.forget_secrets(target, self.folder)
        seconds = time.monotonic() - began
        after = await _counters(target)
        tokens = {} if before is None or after is None else metrics.growth(before, after)
        if stop.is_set():
            return External(None, "the window was cut short", tokens, seconds, truncated=True)
        try:
            result = program.read(self.folder, count)
        except RunError as error:
            said = await asyncio.to_thread(last_words, read_tail(self.folder / LOG))
            reason = f"{bench.client} left no result ({how}): {error.reason}; its last words: {said}"
            return External(None, reason, tokens, seconds)
        return External(result, how if "limit" in how else judge.fault(config, result, tokens), tokens, seconds)

    async def _ended(self, argv: Sequence[str], env: Mapping[str, str], stop: asyncio.Event) -> str:
        """Start the client and wait for its end, the limit, or `stop`. Returns how it ended."""
        limit_s = self.config.limits.client_s
        running = await self.site.start(argv, env, self.folder / LOG, self.tag)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await first_of(running.wait(), stop)
        finally:
            ended = running.ended
            left = await running.stop(STOP_S)
        if left:
            return f"limit: it could not be ended: {'; '.join(left)}"
        return str(ended) if ended or stop.is_set() else f"limits.client_s={limit_s:g} is over"


def environment(inherited: Mapping[str, str], target: Target) -> dict[str, str]:
    """Return the environment of a client: offline, no proxy on the way to the service, no terminal to paint on."""
    env = {name: value for name, value in inherited.items() if name != "TERM"}
    env |= {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return env | {"OPENAI_API_KEY": target.api_key or "none"}


async def _counters(target: Target) -> dict[str, float] | None:
    with closing(Connections(target.base_url, target.authorization)) as connections:
        return await metrics.generated_tokens(connections, SCRAPE_S)


@dataclass(frozen=True)
class Seen:
    """A run, and what the service said of itself meanwhile.

    Attributes:
        run: what the client left behind.
        window: without records; from the first token that an engine made to the last, by readings a second apart.
        readings: of the head's NPUs.
        cpu_share: of the client's busiest thread in the window; None: not known.
    """

    run: External
    window: Window
    readings: tuple[Reading, ...]
    cpu_share: float | None = None


async def measure(
    run: ExternalRun, target: Target, *, seed_offset: int, stop: asyncio.Event, on_phase: Callable[[str], None]
) -> Seen:
    """Warm the service up, then run the client and watch the service.

    Args:
        run: the client of the point.
        target: the service.
        seed_offset: number that no other window on this service has, where its engine caches prefixes; else 0.
        stop: once set, it ends within seconds.
        on_phase: told "warm" and "measuring" as they begin.

    Raises:
        RunError: the data set cannot be read, or the client cannot be run.
    """
    begun, config = clock(), run.config
    cold = await client.warm(
        config.bench, config.limits, config.model, target, seed_offset=seed_offset, stop=stop, on_phase=on_phase
    )  # fmt: skip
    warmed = clock()
    if cold:
        window = Window(warmed, warmed, warmed - begun, 0.0, (), {}, 0.0, truncated=True)
        return Seen(External(None, cold, {}, 0.0, truncated=True), window, ())
    readings: list[Reading] = []
    usages: list[Usage] = []
    power = asyncio.create_task(telemetry.watch_npus(readings))
    processor = asyncio.create_task(telemetry.watch_threads(usages, telemetry.children()))
    try:
        found, pages, before, after = await _watched(run, target, seed_offset, stop, on_phase)
    finally:
        power.cancel()
        processor.cancel()
    series, counted = samples(pages), grown(before, after)
    opened, closed = traffic(series) or (warmed, clock())
    window = Window(
        opened, closed, warmed - begun, 0.0, (), counted.tokens, 0.0,
        truncated=found.truncated, growth=counted, begun_s=warmed, ended_s=clock(),
        finished=between(before, after, metrics.finished), series=series,
    )  # fmt: skip
    return Seen(found, window, tuple(readings), telemetry.busiest(usages, opened, closed))


async def _watched(
    run: ExternalRun, target: Target, seed_offset: int, stop: asyncio.Event, on_phase: Callable[[str], None]
) -> tuple[External, list[Page], Page | None, Page | None]:
    """Run the client. Returns what it left, and the service's pages: all, the one before it and the one after."""
    found: External | RunError
    with closing(Connections(target.base_url, target.authorization)) as connections:
        async with asyncio.TaskGroup() as group:
            scraper = Scraper(group, connections, SCRAPE_S)
            before = scraper.scrape()
            await asyncio.wait((before,))
            polling = group.create_task(scraper.run())
            try:
                found = await run.once(target, seed_offset, stop, on_phase)
            except RunError as error:  # raised below: a task group would wrap it
                found = error
            polling.cancel()
            after = scraper.scrape()
            await scraper.end(SCRAPE_S)
    if isinstance(found, RunError):
        raise found
    return found, scraper.pages, result(before), result(after)
