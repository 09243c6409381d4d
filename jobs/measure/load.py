"""The load on a service: requests in flight, closed or open loop, and a record of each that ended."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable

from jobs.config import Bench
from jobs.measure.arrivals import poisson
from jobs.measure.records import RequestRecord, Status
from jobs.measure.sse import StreamParser, words_of
from jobs.measure.wire import Connections, clock
from jobs.measure.workload import Workload

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_LONGEST_ERROR = 500


class Load:
    """Keeps requests in flight until it is cancelled or told to send no more.

    Closed loop (no `bench.request_rate`): `bench.concurrency` workers, each with one request at a time. A worker
    whose request failed pauses, 50 ms at first and twice as long each time up to 1 s, so that a dead service is
    not flooded. Open loop: Poisson arrivals on absolute times. With a concurrency as well, an arrival may wait
    for a free slot: the wait is the record's `queue_s` and no part of its latencies, as in `vllm bench serve`.

    Attributes:
        records: of all requests that ended, in the order of their ends.
        in_flight: start of every request under way, by index.
        sending: set to False to let the load run dry.
        news: set whenever a request ended.
    """

    def __init__(self, connections: Connections, workload: Workload, bench: Bench) -> None:
        self._connections, self._workload, self._bench = connections, workload, bench
        self._chat = bench.endpoint == "chat"
        self._asked = bench.output_tokens if bench.ignore_eos else None
        self._indices = itertools.count()
        self.records: list[RequestRecord] = []
        self.in_flight: dict[int, float] = {}
        self.sending = True
        self.news = asyncio.Event()

    async def run(self) -> None:
        """Send requests; end when `sending` is False and the last answer is in."""
        bench = self._bench
        async with asyncio.TaskGroup() as group:
            if bench.request_rate is not None:
                await self._arrive(group, bench.request_rate, bench.concurrency)
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

    async def _work(self) -> None:
        pause = _FIRST_PAUSE_S
        while self.sending:
            if await self._request(0.0):
                pause = _FIRST_PAUSE_S
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _arrive(self, group: asyncio.TaskGroup, rate: float, cap: int | None) -> None:
        slots = asyncio.Semaphore(cap) if cap else None
        begun = clock()
        for arrival in poisson(self._bench.seed, rate):
            await asyncio.sleep(max(0.0, begun + arrival - clock()))
            if not self.sending:
                return
            group.create_task(self._request(0.0) if slots is None else self._wait_for(slots))

    async def _wait_for(self, slots: asyncio.Semaphore) -> None:
        arrived = clock()
        async with slots:
            if self.sending:
                await self._request(clock() - arrived)

    async def _request(self, queue_s: float) -> bool:
        index = next(self._indices)
        body = self._workload.body(index)
        parser = StreamParser(chat=self._chat)
        status: Status = "truncated"
        error = None
        start = self.in_flight[index] = clock()
        try:
            error = await self._exchange(body, parser)
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
                )
            )
            self.news.set()
        return status == "ok"

    async def _exchange(self, body: bytes, parser: StreamParser) -> str | None:
        """Send one request, feed its answer to the parser and return what was wrong, or None."""
        try:
            status, refusal = await self._connections.request("POST", self._workload.path, body, parser.feed)
        except OSError as error:
            return parser.error or str(error) or type(error).__name__
        if status != 200:
            return f"HTTP {status}: {_words(refusal.decode(errors='replace'))}"
        return parser.fault(self._asked)


def _words(text: str) -> str:
    try:
        message = json.loads(text)
    except ValueError:
        message = None
    return (words_of(message) if isinstance(message, dict) else text)[:_LONGEST_ERROR]
