"""What this tool does around an external client: the warm-up before it, and the watch on the service beside it.

Such a client gives figures of its own; whether the service was warm, whose requests it served, what its caches found
and whether its queue grew is seen from here, as for the window client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.measure import client, npu
from jobs.measure.clients import busy
from jobs.measure.clients.run import External
from jobs.measure.npu import Reading
from jobs.measure.records import Sample, Target, Window
from jobs.measure.series import Scraper, finished_between, grown, result, samples
from jobs.measure.wire import Connections, clock

SCRAPE_S = 5.0

Client = Callable[[int], Awaitable[External]]
"""Runs the client with prompts of this seed offset."""


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
    config: Config,
    target: Target,
    run_client: Client,
    *,
    seed_offset: int,
    stop: asyncio.Event,
    on_phase: Callable[[str], None],
) -> Seen:
    """Warm the service up, then run the client and watch the service.

    Args:
        config: of the point.
        target: the service.
        run_client: runs it once.
        seed_offset: number that no other window on this service has, where its engine caches prefixes; else 0.
        stop: once set, it ends within seconds.
        on_phase: told "warmup"; the client itself tells "window".

    Raises:
        RunError: the data set cannot be read, or the client cannot be run.
    """
    begun = clock()
    cold = await client.warm(
        config.bench, config.limits, config.model, target, seed_offset=seed_offset, stop=stop, on_phase=on_phase
    )  # fmt: skip
    warmed = clock()
    if cold:
        window = Window(warmed, warmed, warmed - begun, 0.0, (), {}, 0.0, truncated=True)
        return Seen(External(None, cold, {}, 0.0, truncated=True), window, ())
    readings: list[Reading] = []
    usages: list[busy.Usage] = []
    watches = [asyncio.create_task(npu.watch(readings)), asyncio.create_task(busy.watch(usages, busy.children()))]
    found: External | RunError
    try:
        with closing(Connections(target.base_url, target.authorization)) as connections:
            async with asyncio.TaskGroup() as group:
                scraper = Scraper(group, connections, SCRAPE_S)
                before = scraper.scrape()
                await asyncio.wait((before,))
                polling = group.create_task(scraper.run())
                try:
                    found = await run_client(seed_offset)
                except RunError as error:  # raised below: a task group would wrap it
                    found = error
                polling.cancel()
                after = scraper.scrape()
                await scraper.end(SCRAPE_S)
    finally:
        for watch in watches:
            watch.cancel()
    if isinstance(found, RunError):
        raise found
    series = samples(scraper.pages)
    growth = grown(result(before), result(after))
    opened, closed = traffic(series) or (warmed, clock())
    window = Window(
        opened, closed, warmed - begun, 0.0, (), growth.tokens, 0.0,
        truncated=found.truncated, growth=growth, begun_s=warmed, ended_s=clock(),
        finished=finished_between(result(before), result(after)), series=series,
    )  # fmt: skip
    return Seen(found, window, tuple(readings), busy.share(usages, opened, closed))


def made(series: Sequence[Sample]) -> list[tuple[float, float]]:
    """Return the tokens of all engines together so far, by moment in s."""
    totals: dict[float, float] = {}
    for sample in series:
        if sample.generated_tokens is not None:
            totals[sample.time_s] = totals.get(sample.time_s, 0.0) + sample.generated_tokens
    return sorted(totals.items())


def traffic(series: Sequence[Sample]) -> tuple[float, float] | None:
    """Return between which readings tokens were made: a client loads for seconds before its first request."""
    points = made(series)
    if len(points) < 2 or points[0][1] == points[-1][1]:
        return None
    begin = max(time for time, tokens in points if tokens == points[0][1])
    end = min(time for time, tokens in points if tokens == points[-1][1])
    return begin, end
