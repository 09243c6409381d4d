"""What the service said of itself while it was measured: `/metrics` once a second, beside the load.

Pages are kept as they came and read after the window: parsing them would take turns from the load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jobs.measure import metrics
from jobs.measure.records import Drafts, Growth, Prefills, Sample, Times, Window, by_moment
from jobs.measure.wire import Connections, clock

PERIOD_S = 1.0

ON_ITS_WAY_S = 0.5
"""A token that was counted has come after so long."""

LEAST_SPAN = 0.5
"""Part of a window that two pages have to be apart: of less they say little of it."""


@dataclass(frozen=True)
class Page:
    """The lines of one page that matter, and the moments at which they were asked for and had come.

    `made_s`: moment since which it may have been made; None: since it was asked for.
    """

    time_s: float
    text: str
    came_s: float
    made_s: float | None = None

    @property
    def span_s(self) -> tuple[float, float]:
        """Between which moments the page was made."""
        return self.time_s if self.made_s is None else self.made_s, self.came_s


def fresh(pages: Sequence[Page], tokens: Times) -> tuple[list[Page], float]:
    """Return the pages without copies, and how old a copy was at most, s; 0: there was none.

    A copy says the same although tokens came meanwhile: what stands between gives an old page again. The page after it
    may be as old as the last copy. `tokens`: when they came, in order.
    """
    kept: list[Page] = []
    made, aged = None, 0.0
    for page in pages:
        same = bool(kept and page.text) and page.text == kept[-1].text
        since, until = np.searchsorted(tokens, (kept[-1].came_s + ON_ITS_WAY_S, page.time_s)) if same else (0, 0)
        if since < until:
            made, aged = page.time_s, max(aged, page.time_s - kept[-1].came_s)
        else:
            kept.append(replace(page, made_s=made))
            made = None
    return kept, aged


def of_window(pages: Sequence[Page], window: Window) -> Growth:
    """Return what was counted between the pages that are nearest to the two ends of a window."""
    ends = ([(abs(page.time_s - end), page) for page in pages] for end in (window.opened_s, window.closed_s))
    first, last = (min(one, key=lambda pair: pair[0])[1] if one else None for one in ends)
    if first and last and last.time_s - first.time_s > LEAST_SPAN * window.seconds:
        return grown(first, last)
    return Growth({})


def is_busy(page: Page | None) -> bool:
    """Return whether a page tells of requests that run or wait."""
    gauges = (metrics.RUNNING, metrics.WAITING)
    return page is not None and any(any(metrics.engine_counters(page.text, name).values()) for name in gauges)


def samples(pages: Sequence[Page]) -> tuple[Sample, ...]:
    """Return one sample for each engine of each page."""
    out: list[Sample] = []
    for page in pages:
        columns: list[Mapping[str, float]] = [
            metrics.engine_counters(page.text, *names)
            for names in (
                (metrics.RUNNING,),
                (metrics.WAITING,),
                metrics.KV_USE,
                (metrics.PREEMPTIONS,),
                (metrics.GENERATED,),
            )
        ]
        engines = sorted({engine for column in columns for engine in column})
        out.extend(Sample(page.time_s, engine, *(column.get(engine) for column in columns)) for engine in engines)
    return tuple(out)


def generated(series: Sequence[Sample]) -> list[tuple[float, float]]:
    """Return the tokens of all engines together so far, by moment in s."""
    return sorted(by_moment((sample.time_s, sample.generated_tokens) for sample in series).items())


def traffic(series: Sequence[Sample]) -> tuple[float, float] | None:
    """Return between which readings tokens were made: a client loads for seconds before its first request."""
    points = generated(series)
    if len(points) < 2 or points[0][1] == points[-1][1]:
        return None
    begin = max(time for time, tokens in points if tokens == points[0][1])
    end = min(time for time, tokens in points if tokens == points[-1][1])
    return begin, end


class Scraper:
    """Reads pages beside the load, in the task group `group`, never in its way; each for `limit_s` at most."""

    def __init__(self, group: asyncio.TaskGroup, connections: Connections, limit_s: float) -> None:
        self._group, self._connections, self._limit_s = group, connections, limit_s
        self._tasks: list[asyncio.Task[Page | None]] = []

    def scrape(self) -> asyncio.Task[Page | None]:
        """Start one reading."""
        task = self._group.create_task(self._read())
        self._tasks.append(task)
        return task

    async def run(self) -> None:
        """Start a reading a second, for ever; a service that is late with one is not asked for the next."""
        while True:
            await asyncio.sleep(PERIOD_S)
            if all(task.done() for task in self._tasks):
                self.scrape()

    async def end(self, limit_s: float) -> None:
        """Give the readings under way so long, then drop them."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=limit_s)
            for task in late:
                task.cancel()

    @property
    def pages(self) -> list[Page]:
        """All pages so far."""
        return [page for task in self._tasks if (page := result(task))]

    async def _read(self) -> Page | None:
        now = clock()
        text = await metrics.read_page(self._connections, self._limit_s)
        return None if text is None else Page(now, text, clock())


def result(task: asyncio.Task[Page | None]) -> Page | None:
    """Return the page of a reading; None where there is none, or not yet."""
    return task.result() if task.done() and not task.cancelled() else None


def grown(before: Page | None, after: Page | None) -> Growth:
    """Return what was counted between two pages."""
    if before is None or after is None:
        return Growth({})

    def total(*names: str) -> int | None:
        return between(before, after, lambda text: metrics.engine_counters(text, *names))

    tokens = metrics.growth(metrics.generated(before.text), metrics.generated(after.text))
    if tokens and (renumbered(before, after) or not metrics.tells_engines(after.text)):
        tokens = {metrics.ALL: between(before, after, metrics.generated) or 0}
    return Growth(
        tokens, total(metrics.PREEMPTIONS), total(*metrics.PREFIX_QUERIES), total(*metrics.PREFIX_HITS),
        before.span_s, after.span_s, _drafts(before, after), prefills=_prefills(before, after),
    )  # fmt: skip


def _prefills(before: Page, after: Page) -> dict[str, Prefills]:
    """Return what each engine read between two pages; one that does not tell, or began anew, is left out."""
    names = (metrics.PREFILL_S, metrics.PREFILLS, metrics.READ)
    then, now = ([metrics.engine_counters(page.text, name) for name in names] for page in (before, after))
    told = [engine for engine in sorted(now[0]) if all(engine in one for one in (*then, *now))]
    grown = {engine: [new[engine] - old[engine] for old, new in zip(then, now, strict=True)] for engine in told}
    return {engine: Prefills(*counts) for engine, counts in grown.items() if min(counts) > 0}


def _drafts(before: Page, after: Page) -> Drafts | None:
    """Return what was drafted between two pages, by the engines that tell all of it; None where none does."""
    told = [set(metrics.speculation(after.text, what)) for what in ("draft_tokens", "accepted_tokens")]
    drafts = set(metrics.speculation(after.text, "drafts"))
    both = set.intersection(*told, *([drafts] if drafts else []))
    whole = set.union(*told, drafts) == both

    def total(what: str) -> int | None:
        def read(text: str) -> Mapping[str, float]:
            return {
                engine: value for engine, value in metrics.speculation(text, what).items() if whole or engine in both
            }

        return between(before, after, read)

    tokens, accepted = total("draft_tokens"), total("accepted_tokens")
    if tokens is None or accepted is None:
        return None
    one, two = (metrics.speculation(page.text, "accepted_tokens_per_pos") for page in (before, after))
    grown_by = metrics.growth(one, two) if whole else {}  # places are told of all engines together
    places = tuple(grown_by.get(str(place), 0) for place in range(1 + max(map(int, grown_by), default=-1)))
    return Drafts(tokens, accepted, total("drafts"), places, total("emitted_tokens"))


def totals(before: Page | None, after: Page | None) -> dict[str, Any]:
    """Return by how much counters grew over a whole run, by the names of `Window`; None: not told."""
    reads = (metrics.finished, metrics.generated, metrics.aborted, metrics.prompted)
    return {read.__name__: between(before, after, read) for read in reads}


def between(before: Page | None, after: Page | None, read: Callable[[str], Mapping[str, float]]) -> int | None:
    """Return how far the counters of all engines rose together; None where a page is missing or does not tell."""
    if before is None or after is None or not (now := read(after.text)):
        return None
    then = read(before.text)
    rose, by_engine = sum(now.values()) - sum(then.values()), sum(metrics.growth(then, now).values())
    if rose < 0 or round(rose) == by_engine:  # to look whether engines are the same takes two pages more
        return by_engine
    return round(rose) if renumbered(before, after) else by_engine


def renumbered(before: Page, after: Page) -> bool:
    """Return whether engines have other numbers on the second page, or one page alone tells them: their sum is left."""
    one, two = (metrics.generated(page.text).keys() for page in (before, after))
    other = bool(one - two) and bool(two - one)
    return other or (metrics.tells_engines(before.text) != metrics.tells_engines(after.text))
