"""The load on a service: requests in flight, closed or open loop, and a record of each that ended."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable

from jobs.core.config import Bench
from jobs.measure.records import RequestRecord, Status
from jobs.measure.sse import StreamParser, words_of
from jobs.measure.wire import Connections, clock
from jobs.measure.workload import Workload, poisson

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_LONGEST_ERROR = 500


class Load:
    """Keeps requests in flight until it is cancelled, told to send no more, or `count` of them are sent.

    Closed loop (no `bench.request_rate`): `bench.concurrency` workers, each with one request at a time. A worker
    whose request failed pauses, 50 ms at first and twice as long each time up to 1 s, so that a dead service is
    not flooded. Open loop: Poisson arrivals on absolute times, or those of the workload. With a concurrency as well,
    an arrival may wait for a free slot: the wait is the record's `queue_s` and no part of its latencies, as in
    `vllm bench serve`. The requests of one conversation are sent one after the other, by one worker or arrival.

    Args:
        connections: to the service.
        workload: what is sent.
        bench: the load.
        first: number of the first request.
        count: requests in all; None: no end.
        arrivals: times in s at which requests are sent, instead of those of `bench`.

    Attributes:
        records: of all requests that ended, in the order of their ends.
        in_flight: start of every request under way, by index.
        sending: set to False to let the load run dry.
        news: set whenever a request ended.
    """

    def __init__(
        self,
        connections: Connections,
        workload: Workload,
        bench: Bench,
        *,
        first: int = 0,
        count: int | None = None,
        arrivals: Iterable[float] | None = None,
    ) -> None:
        self._connections, self._workload, self._bench = connections, workload, bench
        self._chat = bench.endpoint == "chat"
        self._chains = itertools.count(first // workload.turns)
        self._end = None if count is None else first + count
        rate = bench.request_rate
        self._arrivals = poisson(bench.seed, rate) if arrivals is None and rate is not None else arrivals
        self.records: list[RequestRecord] = []
        self.in_flight: dict[int, float] = {}
        self.sending = True
        self.news = asyncio.Event()

    async def run(self) -> None:
        """Send requests; end when `sending` is False, or all are sent, and the last answer is in."""
        bench = self._bench
        async with asyncio.TaskGroup() as group:
            if self._arrivals is not None:
                await self._arrive(group, self._arrivals, bench.concurrency)
            else:
                for _ in range(bench.concurrency or 0):
                    group.create_task(self._work())

    async def until(self, met: Callable[[], bool], stop: asyncio.Event, limit_s: float) -> bool:
        """Wait until `met()` holds, `stop` is set or `limit_s` is over; return `met()`. It is asked at each news."""
        try:
            async with asyncio.timeout(limit_s):
                while not (met() or stop.is_set()):
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            pass
        return met()

    def warm(self) -> bool:
        """Tell whether an answer has come in, or every slot has failed at least once (the service is dead)."""
        failures = sum(record.status == "failed" for record in self.records)
        return failures < len(self.records) or failures >= (self._bench.concurrency or 1)

    def filled(self) -> bool:
        """Tell whether the service has worked on a full load: every slot of a closed loop has had an answer.

        The graphs that engines compile for a batch of this size are compiled by then (torchair: one a batch size).
        """
        return self._arrivals is not None or len(self.records) >= (self._bench.concurrency or 1)

    async def _work(self) -> None:
        pause = _FIRST_PAUSE_S
        while self.sending and (indices := self._next()):
            if await self._chain(indices, 0.0):
                pause = _FIRST_PAUSE_S
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _next(self) -> range:
        """Return the numbers of the next requests to be sent in a row; empty once all are sent."""
        turns = self._workload.turns
        start = next(self._chains) * turns
        return range(start, start + turns if self._end is None else min(start + turns, self._end))

    async def _arrive(self, group: asyncio.TaskGroup, arrivals: Iterable[float], cap: int | None) -> None:
        slots = asyncio.Semaphore(cap) if cap else None
        begun = clock()
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, begun + arrival - clock()))
            if not self.sending or not (indices := self._next()):
                return
            group.create_task(self._chain(indices, 0.0) if slots is None else self._wait_for(slots, indices))

    async def _wait_for(self, slots: asyncio.Semaphore, indices: range) -> None:
        arrived = clock()
        async with slots:
            if self.sending:
                await self._chain(indices, clock() - arrived)

    async def _chain(self, indices: range, queue_s: float) -> bool:
        """Send requests one after the other; a failed one ends the row. Returns whether all were answered."""
        for index in indices:
            if index > indices.start and not self.sending:
                break
            if not await self._request(index, queue_s if index == indices.start else 0.0):
                return False
        return True

    async def _request(self, index: int, queue_s: float) -> bool:
        body = self._workload.body(index)
        asked = self._workload.asked_output(index) if self._bench.ignore_eos else None
        parser = StreamParser(chat=self._chat)
        status: Status = "truncated"
        error = None
        start = self.in_flight[index] = clock()
        try:
            error = await self._exchange(body, parser, asked)
            status = "failed" if error else "ok"
        finally:  # also where the request is cut off by cancellation
            del self.in_flight[index]
            times = parser.chunk_times
            self.records.append(
                RequestRecord(
                    index=index,
                    start_s=start,
                    first_token_s=float(times[0]) if len(times) else None,
                    end_s=clock(),
                    chunk_times=times,
                    prompt_tokens=parser.prompt_tokens,
                    output_tokens=parser.output_tokens,
                    status=status,
                    error=error,
                    queue_s=queue_s,
                    asked_input=self._workload.asked_input(index),
                )
            )
            self.news.set()
        return status == "ok"

    async def _exchange(self, body: bytes, parser: StreamParser, asked: int | None) -> str | None:
        """Send one request, feed its answer to the parser and return what was wrong, or None."""
        try:
            status, refusal = await self._connections.request("POST", self._workload.path, body, parser.feed)
        except OSError as error:
            return parser.error or str(error) or type(error).__name__
        if status != 200:
            return f"HTTP {status}: {_words(refusal.decode(errors='replace'))}"
        return parser.fault(asked)


def _words(text: str) -> str:
    try:
        message = json.loads(text)
    except ValueError:
        message = None
    return (words_of(message) if isinstance(message, dict) else text)[:_LONGEST_ERROR]
