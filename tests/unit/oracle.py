"""An oracle: a service whose every send time is known, measured by the real `PointRun` in virtual time.

The client's sockets and its server's are in one event loop whose clock stands still while there is anything to read,
and then jumps to the next timer. So a window of 120 s takes a second or two, what the service did is known to the
microsecond, and the load of the machine changes nothing. A case is five lines:

    def test_a_queue_is_not_hidden() -> None:
        seen = measure(queue(slots=8, first_s=0.5, gap_s=0.5), "bench.request_rate=2.4", "bench.output_tokens=8")
        assert seen.figures["saturated"] is True and seen.reason is None
        assert seen.figures["ttft_ms_p50"] == pytest.approx(...)   # of seen.answers, which hold the true times

**A behaviour** is `async def behave(answer)`: what the service does with one request. `steady` and `queue` make the
usual ones. Others are written with `answer`: `await answer.at(moment)`, `answer.chunk(tokens)`, `answer.end()`,
`answer.write(bytes)`, `answer.refuse(503, "...")`, `answer.reset()`, and `answer.engine`, its engine's counters.
`answer.stub.now` is the virtual time; `answer.stub.opened` the moment at which the window was opened, None before.

**/metrics** has the true counters of `engines` engines (`engines=0`: there is no such page). A service that lies, or
has strangers on it, is `page=lambda engines: page_of(...)`, with changed copies of them, or any text.

**Beside the load** `beside=` runs a coroutine function with the stub: strangers, a service that gets slower, or
`stub.stall(2.0)`, a client that stood still: what was due meanwhile arrives at its end, while `sent_s` says when it
was sent in truth.

Times of records and answers are of one clock, the loop's; each look at it moves it by `virtual.TICK_S`, so that no
two moments are equal.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from core_help import config
from virtual import VirtualLoop, in_virtual_time

from jobs.core.config import Config
from jobs.measure.point import Measured, OfService, PointRun
from jobs.measure.records import RequestRecord, Target, Window

SANE = "量子纠缠是两个粒子的状态彼此相关，测量其中一个就会知道另一个的结果，无论它们相距多远。"

Behaviour = Callable[["Answer"], Awaitable[None]]


@dataclass
class Engine:
    """What one engine counts, as /metrics shows it."""

    number: int
    running: int = 0
    waiting: int = 0
    generated: int = 0
    finished: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    kv_use: float = 0.1
    prefill_s: float = 0.0
    prompts: int = 0


def page_of(engines: Sequence[Engine]) -> str:
    """Return a page of /metrics in vLLM's words."""
    names = {
        "num_requests_running": "running",
        "num_requests_waiting": "waiting",
        "generation_tokens_total": "generated",
        "num_preemptions_total": "preemptions",
        "prefix_cache_queries_total": "prefix_queries",
        "prefix_cache_hits_total": "prefix_hits",
        "kv_cache_usage_perc": "kv_use",
        "request_prefill_time_seconds_sum": "prefill_s",
        "request_prefill_time_seconds_count": "finished",
        "request_prompt_tokens_sum": "prompts",
    }
    lines = []
    for engine in engines:
        labels = f'engine="{engine.number}",model_name="oracle"'
        lines += [f"vllm:{name}{{{labels}}} {float(getattr(engine, attribute))}" for name, attribute in names.items()]
        lines.append(f'vllm:request_success_total{{{labels},finished_reason="length"}} {float(engine.finished)}')
    return "\n".join(lines) + "\n"


@dataclass(eq=False)
class Answer:
    """One request as the service saw it, and the means to answer it.

    Attributes:
        number: of the request, from 0, in the order of arrival.
        asked: its body.
        came_s: moment of its arrival.
        sent_s: moment at which each token chunk was due and sent.
        tokens: of each chunk.
        ended_s: moment of the last byte; None: it was never answered whole.
        engine: that serves it.
        taken_s: moment at which it took it up; None: when it came.
    """

    stub: Stub
    connection: _Served
    number: int
    asked: dict[str, Any]
    came_s: float
    engine: Engine
    sent_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ended_s: float | None = None
    taken_s: float | None = None
    _opened: bool = False

    @property
    def output_tokens(self) -> int:
        """Length that was asked for."""
        return int(self.asked["max_tokens"])

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt: token ids, else words."""
        prompt = self.asked.get("prompt") or " ".join(message["content"] for message in self.asked["messages"])
        return len(prompt.split()) if isinstance(prompt, str) else len(prompt)

    async def at(self, moment: float) -> None:
        """Wait until a moment of the virtual clock; the next chunk counts as sent then."""
        self._due = moment
        await asyncio.sleep(max(0.0, moment - self.stub.now))

    def write(self, data: bytes) -> None:
        """Send bytes of the body, in a piece of their own."""
        if not self._opened:
            self._opened = True
            self.connection.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
        self.connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def event(self, message: Any) -> None:
        """Send one event."""
        self.write(b"data: " + json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n")

    def chunk(self, tokens: int = 1, text: str = "a") -> None:
        """Send one chunk of so many tokens."""
        if "messages" in self.asked:
            if not self.sent_s:
                self.event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
            choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        else:
            choice = {"index": 0, "text": text, "finish_reason": None}
        self.event({"choices": [choice]})
        self.sent_s.append(self._due)
        self.tokens.append(tokens)
        self.engine.generated += tokens

    def end(self, usage: int | None = None) -> None:
        """Send usage (None: the true number of tokens) and the end of the answer."""
        output = sum(self.tokens) if usage is None else usage
        self.event({"choices": [], "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": output}})
        self.write(b"data: [DONE]\n\n")
        self.connection.write(b"0\r\n\r\n")
        self.ended_s = self._due
        self.engine.finished += 1
        self.engine.prompts += self.prompt_tokens
        self.engine.prefill_s += (self.sent_s or [self._due])[0] - (self.taken_s or self.came_s)

    def refuse(self, status: int, text: str) -> None:
        """Answer with another status."""
        self.connection.reply(status, text.encode())

    def reset(self) -> None:
        """Break the connection."""
        self.connection.transport.abort()

    def __post_init__(self) -> None:
        self._due = self.came_s


def steady(first_s: float, gap_s: float, *, tokens_a_chunk: int = 1) -> Behaviour:
    """Return a service with a place for everybody: the first chunk after `first_s`, the others `gap_s` apart."""

    async def behave(answer: Answer) -> None:
        await _emit(answer, answer.came_s, first_s, gap_s, tokens_a_chunk)

    return behave


def queue(slots: int, first_s: float, gap_s: float) -> Behaviour:
    """Return a service of so many slots; who finds none waits, first come, first served. Times as in `steady`."""
    free = asyncio.Semaphore(slots)

    async def behave(answer: Answer) -> None:
        answer.engine.running -= 1
        answer.engine.waiting += 1
        try:
            await free.acquire()
        finally:
            answer.engine.waiting -= 1
            answer.engine.running += 1
        answer.taken_s = answer.stub.now
        try:
            await _emit(answer, answer.stub.now, first_s, gap_s, 1)
        finally:
            free.release()

    return behave


async def _emit(answer: Answer, start_s: float, first_s: float, gap_s: float, tokens_a_chunk: int) -> None:
    left, moment = answer.output_tokens, start_s + first_s
    while left > 0:
        await answer.at(moment)
        answer.chunk(min(left, tokens_a_chunk))
        left -= tokens_a_chunk
        moment += gap_s
    answer.end()


class Stub:
    """The service.

    Attributes:
        answers: all requests of the load, in the order of arrival.
        engines: what its engines count.
        opened: moment at which the last window was opened; None: none was.
        stop: ends the point, once set.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        behave: Behaviour,
        engines: int,
        page: Callable[[Sequence[Engine]], str | None],
        route: Callable[[int], int] | None,
        says: Callable[[int], str],
        replicas: int = 1,
        tokenizer: Callable[[str, bool], Sequence[int] | None] | None = None,
        counts: Callable[[str], int] | None = None,
    ) -> None:
        self._loop, self._behave, self._page, self._says = loop, behave, page, says
        self._tokenizer, self._counts = tokenizer, counts
        self.stop = asyncio.Event()
        self._each = max(1, engines // replicas)  # engines of one address
        self._route = route or (lambda number: number % self._each)
        self.engines = [Engine(number) for number in range(engines)]
        self.answers: list[Answer] = []
        self.opened: float | None = None

    @property
    def now(self) -> float:
        """The virtual time, s."""
        return self._loop.now

    def stall(self, seconds: float) -> None:
        """Let the client stand still: time goes on, and it hears of nothing meanwhile."""
        self._loop.now += seconds

    def on_phase(self, phase: str) -> None:
        """Take the point's news."""
        if phase == "measuring":
            self.opened = self.now

    async def serve(self, served: _Served, method: str, path: str, body: bytes) -> None:
        """Answer one request."""
        if method == "GET":
            own = self.engines[served.place * self._each :][: self._each]
            page = (
                self._page([replace(one, number=one.number % self._each) for one in own])
                if path == "/metrics" and own
                else None
            )
            served.reply(404 if page is None else 200, (page or "").encode())
            return
        asked = json.loads(body)
        if path == "/tokenize":
            ids = self._tokenizer(asked["prompt"], asked["add_special_tokens"]) if self._tokenizer else ()
            if ids is not None:  # else it never answers
                served.reply(200 if self._tokenizer else 404, json.dumps({"tokens": list(ids)}).encode())
            return
        if not asked.get("stream") and self._counts and "prompt" in asked:
            usage = {"completion_tokens": 1, "prompt_tokens": self._counts(asked["prompt"])}
            served.reply(200, json.dumps({"choices": [{"text": "a"}], "usage": usage}).encode())
            return
        if not asked.get("stream"):  # the canary
            text = self._says(sum(engine.running + engine.waiting for engine in self.engines))
            for engine in self.engines[:1]:
                engine.generated, engine.finished = engine.generated + 40, engine.finished + 1
            usage = {"completion_tokens": 40, "prompt_tokens": 12}
            choice = {"message": {"content": text}, "text": text}
            served.reply(200, json.dumps({"choices": [choice], "usage": usage}).encode())
            return
        place = served.place * self._each
        engine = self.engines[place + self._route(len(self.answers))] if self.engines else Engine(0)
        answer = Answer(self, served, len(self.answers), asked, self.now, engine)
        self.answers.append(answer)
        engine.prefix_queries += answer.prompt_tokens
        engine.running += 1
        try:
            await self._behave(answer)
        finally:
            engine.running -= 1


class _Served(asyncio.Protocol):
    """The service's end of one connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, stub: Stub, place: int) -> None:
        self._stub, self._data, self.place = stub, b"", place
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length"))
        if len(body) < length:
            return
        method, path, _ = first.split(" ")
        self._data = body[length:]
        self._task = asyncio.ensure_future(self._stub.serve(self, method, path, body[:length]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task:
            self._task.cancel()

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def reply(self, status: int, body: bytes) -> None:
        self.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))


@dataclass(frozen=True)
class Seen:
    """What the row says, and what was true.

    Attributes:
        measured: of the point.
        answers: of the service, in the order of their arrival.
        engines: their counters at the end.
    """

    measured: Measured
    answers: tuple[Answer, ...]
    engines: tuple[Engine, ...]

    @property
    def figures(self) -> dict[str, Any]:
        """Columns of the row."""
        return dict(self.measured.figures)

    @property
    def reason(self) -> str | None:
        """Why the row is invalid."""
        return self.measured.reason

    @property
    def notes(self) -> str:
        """All notes of the row, one a line."""
        return "\n".join(self.measured.notes)

    @property
    def window(self) -> Window:
        """The last window."""
        return self.measured.windows[-1]

    def of_window(self, window: Window | None = None) -> list[RequestRecord]:
        """Return the requests that count in a window (default: the last)."""
        return [record for record in (window or self.window).records if record.in_window]

    def answer_to(self, record: RequestRecord) -> Answer:
        """Return what the service knows of a request: it saw it right after it was sent."""
        return next(one for one in self.answers if one.came_s >= record.start_s)

    def sent_between(self, opened_s: float, closed_s: float) -> int:
        """Return the tokens that the service sent in [opened, closed)."""
        pairs = ((at, n) for one in self.answers for at, n in zip(one.sent_s, one.tokens, strict=True))
        return sum(tokens for moment, tokens in pairs if opened_s <= moment < closed_s)


def measure(
    behave: Behaviour,
    *overrides: str,
    engines: int = 2,
    page: Callable[[Sequence[Engine]], str | None] = page_of,
    route: Callable[[int], int] | None = None,
    beside: Callable[[Stub], Awaitable[None]] | None = None,
    says: Callable[[int], str] = lambda busy: SANE,
    point: Config | None = None,
    replicas: int = 1,
    tokenizer: Callable[[str, bool], Sequence[int] | None] | None = None,
    counts: Callable[[str], int] | None = None,
) -> Seen:
    """Measure one point in virtual time.

    Args:
        behave: what the service does with a request.
        overrides: of the point, over the defaults of `conf/` with engine=simulator, no canary, prompts of
            16 tokens, and one window as it is elsewhere: 15 s of warm-up, 120 s.
        engines: data-parallel engines that /metrics shows; 0: there is no such page.
        page: what /metrics says; None of it: 404.
        route: engine by number of the request; None: in turn.
        beside: runs beside the load.
        says: the answer to the canary's question, by the number of requests under way.
        point: a config instead of the overrides.
        replicas: addresses over which the client spreads its requests, each with as many of the engines.
        tokenizer: of /tokenize, for a text and whether with what stands before a prompt; None of it: no answer ever.
        counts: tokens that the engine itself finds in a prompt that is a text.
    """
    usual = ["engine=simulator", "bench.canary=off", "bench.input_tokens=16", "bench.warmup_s=15", "bench.window_s=120"]
    usual.append("bench.repeats=1")
    chosen = point or config(*usual, *overrides)
    loop, urls = VirtualLoop(), [f"http://127.0.0.1:{1 + place}" for place in range(replicas)]
    stub = Stub(loop, behave, engines, page, route, says, replicas, tokenizer, counts)
    loop.accept = lambda port: _Served(stub, port - 1)

    async def whole() -> Measured:
        run = PointRun(
            chosen, Target(urls[0], "oracle", None, tuple(urls[1:]), engines // replicas), OfService(), None,
            stub.stop, stub.on_phase,
        )  # fmt: skip
        other = asyncio.ensure_future(beside(stub)) if beside else None
        await run.run()
        if other:
            other.cancel()
            with suppress(asyncio.CancelledError):
                await other
        return run.result()

    with in_virtual_time(loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        measured = runner.run(whole())
    return Seen(measured, tuple(stub.answers), tuple(stub.engines))
