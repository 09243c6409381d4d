"""The load on a service: requests in flight, closed or open loop, and a record of each that ended."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from statistics import median

from jobs.core.config import Bench
from jobs.measure.records import RequestRecord, Status
from jobs.measure.sse import StreamParser, words_of
from jobs.measure.underload import Questions, record
from jobs.measure.wire import Connections, clock
from jobs.measure.workload import Workload

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_LONGEST_ERROR = 500


class Load:
    """Keeps requests in flight until it is cancelled, told to send no more, or `count` of them are sent.

    Closed loop (no `arrivals`): `bench.concurrency` workers, each with one request at a time. A worker whose request
    failed pauses, 50 ms at first and twice as long each time up to 1 s, so that a dead service is not flooded. Open
    loop: requests come at `arrivals`, on absolute times, so that a slow service does not thin the load out. With a
    concurrency as well, one that has come may wait for a free slot: the wait is the record's `wait_s`, and latencies
    count from its begin (`came_s`). The requests of one conversation are sent one after the other, by one worker or
    arrival.

    Args:
        connections: to the service.
        workload: what is sent.
        bench: the load.
        first: number of the first request.
        count: requests in all; None: no end.
        arrivals: times in s from the begin at which requests come; None: a closed loop.
        questions: stand among the requests; None: none do.

    Attributes:
        records: of all requests that ended, in the order of their ends; those that never got a slot are truncated.
        in_flight: when each request came that has no end yet, by index; it may still wait for a slot.
        sending: set to False to let the load run dry: no more come, and what has come is sent.
        dropping: what waits for a slot is not sent either.
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
        questions: Questions | None = None,
    ) -> None:
        self._connections, self._workload, self._bench = connections, workload, bench
        self._chat = bench.endpoint == "chat"
        self._chains = itertools.count(first // workload.turns)
        self._end = None if count is None else first + count
        self._arrivals, self._group = arrivals, asyncio.TaskGroup()
        self._slots = asyncio.Semaphore(bench.concurrency) if bench.concurrency else nullcontext()
        self._questions = questions
        self.records: list[RequestRecord] = []
        self.in_flight: dict[int, float] = {}
        self.sending, self.dropping = True, False
        self.news = asyncio.Event()
        self._due = math.inf  # of the next arrival

    async def run(self) -> None:
        """Send requests; end when `sending` is False, or all are sent, and the last answer is in."""
        self._begun = clock()
        async with self._group:
            if self._arrivals is not None:
                self._sender = self._group.create_task(self._arrive(self._arrivals, self._begun))
            else:
                for _ in range(self._bench.concurrency or 0):
                    self._group.create_task(self._work())

    def anew(self, arrivals: Iterable[float], begun: float) -> None:
        """Let the further requests of an open loop come at these times after the moment `begun`, and at no others."""
        if self.sending:
            self._sender.cancel()
            self._due = begun
            self._sender = self._group.create_task(self._arrive(arrivals, begun))

    async def arrived(self, moment: float) -> None:
        """Wait until all requests of an open loop have come that were due before a moment that is over.

        A client that is late at the end of a window would else take the last of them for requests behind it.
        """
        while self._due < moment and not self._sender.done():
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the last of them is in flight

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

        The graphs that engines compile for a batch of this size are compiled by then (torchair: one a batch size). In
        an open loop as many requests come as end by then: it has lasted twice as long as the median answer. (Not the
        longest: where far more come than are answered, that is nearly as old as the load.)
        """
        if self._arrivals is None:
            return len(self.records) >= (self._bench.concurrency or 1)
        took = [one.end_s - one.came_s for one in self.records if one.status == "ok"]
        return not took or clock() - self._begun >= 2 * median(took)

    def came_since(self, opened: float) -> bool:
        """Tell whether every slot of a closed loop has begun a request since a moment."""
        if self._arrivals is not None:
            return True
        begun = sum(came >= opened for came in self.in_flight.values())
        return begun + sum(record.came_s >= opened for record in self.records) >= (self._bench.concurrency or 1)

    async def _work(self) -> None:
        pause = _FIRST_PAUSE_S
        while self.sending and (indices := self._next()):
            if await self._chain(indices, None):
                pause = _FIRST_PAUSE_S
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _next(self) -> range:
        """Return the numbers of the next requests to be sent in a row; empty once all are sent."""
        turns = self._workload.turns
        start = next(self._chains) * turns
        return range(start, start + turns if self._end is None else min(start + turns, self._end))

    async def _arrive(self, arrivals: Iterable[float], begun: float) -> None:
        for arrival in arrivals:
            due = self._due = begun + arrival
            await asyncio.sleep(max(0.0, due - clock()))
            if not self.sending or not (indices := self._next()):
                return
            self._group.create_task(self._come(indices, due))

    async def _come(self, indices: range, due: float) -> None:
        """Send what came at the moment `due`, once there is a slot; without one it is truncated in the end."""
        self.in_flight[indices.start] = due
        sent = False
        try:
            async with self._slots:
                if sent := not self.dropping:
                    await self._chain(indices, due)
        finally:
            if not sent:
                now, first = clock(), indices.start
                asked = self._workload.asked_input(first)
                self._ended(
                    RequestRecord(first, now, None, now, status="truncated", wait_s=now - due, asked_input=asked)
                )

    def _ended(self, record: RequestRecord) -> None:
        del self.in_flight[record.index]
        self.records.append(record)
        self.news.set()

    async def _chain(self, indices: range, due: float | None) -> bool:
        """Send requests one after the other; a failed one ends the row. Returns whether all were answered.

        `due`: when the first one came; None: now.
        """
        for index in indices:
            if index > indices.start and not self.sending:
                break
            if not await self._request(index, due if index == indices.start else None):
                return False
            if self._questions and self._questions.due(index) and self.sending:
                await self._ask(self._questions, index)
        return True

    async def _ask(self, questions: Questions, index: int) -> None:
        answer = None
        start = self.in_flight[-1 - index] = clock()
        try:
            answer = await questions.ask()
        finally:
            self._ended(record(index, start, answer))

    async def _request(self, index: int, due: float | None) -> bool:
        body = self._workload.body(index)
        asked = self._workload.asked_output(index) if self._bench.ignore_eos else None
        parser = StreamParser(chat=self._chat)
        status: Status = "truncated"
        error = None
        start = clock()
        came = self.in_flight[index] = start if due is None else due
        try:
            error = await self._exchange(body, parser, asked)
            status = "failed" if error else "ok"
        finally:  # also where the request is cut off by cancellation
            times = parser.chunk_times
            self._ended(
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
                    wait_s=start - came,
                    asked_input=self._workload.asked_input(index),
                    asked_output=self._workload.asked_output(index),
                )
            )
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
