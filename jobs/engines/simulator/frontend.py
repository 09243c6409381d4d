"""The HTTP side of the head: vLLM's routes on aiohttp, and what stands between them and the engines: balancing, routing
of tokens, figures, and the page /metrics of vLLM 0.9.1 (v1/metrics/loggers.py)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from jobs.engines.simulator import answers
from jobs.engines.simulator.engine import EngineCore, Output
from jobs.engines.simulator.faults import ENGINE_DEAD, Player
from jobs.engines.simulator.headless import Remote
from jobs.engines.simulator.log import Log, server_line
from jobs.engines.simulator.scheduler import Figures, Request
from jobs.engines.simulator.settings import Settings

PUBLISH_S = 0.1
"""How often vLLM's coordinator tells the front end the engines' queues (v1/engine/coordinator.py)."""

MAX_BODY = 256 * 1024 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REASONS = ("stop", "length", "abort")

_LOG_S = 10.0


@dataclass
class EngineMetrics:
    """What the front end has seen of one data-parallel rank; it keeps the last figures of a dead one."""

    last: Figures = field(default_factory=Figures)
    prompt_tokens: int = 0
    generation_tokens: int = 0
    success: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))


_SERIES: tuple[tuple[str, str, Callable[[EngineMetrics], Mapping[str, float]]], ...] = (
    ("gauge", "num_requests_running", lambda m: {"": m.last.running}),
    ("gauge", "num_requests_waiting", lambda m: {"": m.last.waiting}),
    ("gauge", "gpu_cache_usage_perc", lambda m: {"": m.last.usage}),
    ("counter", "gpu_prefix_cache_queries_total", lambda m: {"": m.last.prefix_queries}),
    ("counter", "gpu_prefix_cache_hits_total", lambda m: {"": m.last.prefix_hits}),
    ("counter", "num_preemptions_total", lambda m: {"": m.last.preemptions}),
    ("counter", "prompt_tokens_total", lambda m: {"": m.prompt_tokens}),
    ("counter", "generation_tokens_total", lambda m: {"": m.generation_tokens}),
    ("counter", "request_success_total", lambda m: {f',finished_reason="{r}"': n for r, n in m.success.items()}),
)
"""Kind, name, and values by the labels between `engine` and `model_name`."""

_DRAFTS: tuple[tuple[str, str, Callable[[EngineMetrics], Mapping[str, float]]], ...] = (
    ("counter", "spec_decode_num_drafts_total", lambda m: {"": m.last.drafts[0]}),
    ("counter", "spec_decode_num_draft_tokens_total", lambda m: {"": m.last.drafts[0] * (len(m.last.drafts) - 1)}),
    ("counter", "spec_decode_num_accepted_tokens_total", lambda m: {"": sum(m.last.drafts[1:])}),
    (
        "counter",
        "spec_decode_num_accepted_tokens_per_pos_total",
        lambda m: {f',position="{place}"': count for place, count in enumerate(m.last.drafts[1:])},
    ),
)
"""The same of speculative decoding, where it is on (v1/spec_decode/metrics.py)."""


def render(engines: Iterable[tuple[int, EngineMetrics]], model: str) -> str:
    """Return the page for the engines given, by number; `model` is the label model_name."""
    shown, out = list(engines), list[str]()
    drafting = [one for one in shown if one[1].last.drafts]
    for kind, name, values in (*_SERIES, *_DRAFTS) if drafting else _SERIES:
        out.append(f"# TYPE vllm:{name} {kind}\n")
        for engine, m in shown if (kind, name, values) in _SERIES else drafting:
            for more, value in values(m).items():
                out.append(f'vllm:{name}{{engine="{engine}"{more},model_name="{model}"}} {float(value)}\n')
    return "".join(out)


class Frontend:
    """Knows every request that is not answered yet, and the engine that has it.

    An engine that has gone silent is not noticed: its requests wait for ever and its last figures stay.

    Args:
        backends: one for each data-parallel rank, in order.
        log: gets the line that vLLM writes every ten seconds.
    """

    def __init__(self, backends: Sequence[EngineCore | Remote], log: Log) -> None:
        self.metrics = [EngineMetrics() for _ in backends]
        self.dead = False
        self._backends = backends
        self._log = log
        self._flights: dict[int, tuple[int, answers.Answer]] = {}
        self._keys = itertools.count(1)
        self._known = [[0, 0] for _ in backends]

    def submit(self, answer: answers.Answer, pinned: int | None) -> int:
        """Send a request to an engine, and its tokens to `answer`. Returns the key for `cancel`.

        `pinned`: data-parallel rank that must serve it; None: the least loaded one.
        """
        engine = self._least_loaded() if pinned is None else pinned
        key, order = next(self._keys), answer.order
        self._flights[key] = engine, answer
        self._backends[engine].add(Request(key, order.prompt, order.limit, order.reason, order.hashes))
        return key

    def cancel(self, key: int) -> None:
        """Abort a request whose client is gone; nothing where it has been answered."""
        if flight := self._flights.pop(key, None):
            self.metrics[flight[0]].success["abort"] += 1
            self._backends[flight[0]].abort([key])

    def receive(self, output: Output) -> None:
        """Hand the output of one engine step to those who wait for it."""
        metrics = self.metrics[output.rank]
        metrics.last = output.figures
        metrics.generation_tokens += len(output.tokens)
        reasons = dict(output.finished)
        for key, count in Counter(output.tokens).items():
            if key not in self._flights:
                continue
            _, answer = self._flights[key]
            if not answer.made:
                metrics.prompt_tokens += answer.order.prompt
            if reason := reasons.get(key):
                del self._flights[key]
                metrics.success[reason] += 1
            answer.token(reason, count)
        for key in output.failed:
            if flight := self._flights.pop(key, None):
                flight[1].fail(output.error)

    def die(self) -> None:
        """Take the news that an engine is dead: every request fails, none is taken any more."""
        if not self.dead:
            self.dead = True
            self._log.write("output_failed", error=ENGINE_DEAD)
        for key in list(self._flights):
            self._flights.pop(key)[1].fail(ENGINE_DEAD)

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
                silent, quiet[index] = quiet[index] and not any(rates), not any(rates)
                hits = m.last.prefix_hits / m.last.prefix_queries if m.last.prefix_queries else 0.0
                figures = {"running": m.last.running, "waiting": m.last.waiting, "usage": m.last.usage * 100}
                figures |= {"prompt": rates[0], "generation": rates[1], "hits": hits * 100}
                self._log.write("throughput", quiet=silent, engine=index, **figures)

    def _least_loaded(self) -> int:
        """Choose as vLLM does (v1/engine/core_client.py): fewest waiting, then running, by counts 0.1 s old."""
        index = min(range(len(self._known)), key=lambda i: self._known[i])
        counts = self._known[index]
        counts[0 if counts[0] else 1] += 1
        return index


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(text=answers.dumps(body), status=status, headers={"Content-Type": "application/json"})


class Api:
    """Answers HTTP requests with the help of the front end.

    `on_dead` is called when a request finds the engines dead; vLLM then ends itself (entrypoints/launcher.py).
    """

    def __init__(self, frontend: Frontend, settings: Settings, player: Player, on_dead: Callable[[], None]) -> None:
        self._frontend, self._settings, self._player, self._on_dead = frontend, settings, player, on_dead

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.get("/version", self._show_version),
                web.get("/metrics", self._metrics),
                web.post("/tokenize", self._tokenize),
                web.post("/v1/completions", self._complete),
                web.post("/v1/chat/completions", self._complete),
            ]
        )
        app.on_response_prepare.append(self._on_response)
        return app

    async def _on_response(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "uvicorn"
        if self._settings.access_log:
            peer = request.transport.get_extra_info("peername") if request.transport else None
            where = f"{peer[0]}:{peer[1]}" if peer else "-"
            line = f'{where} - "{request.method} {request.path_qs} HTTP/1.1" {response.status} {response.reason}'
            server_line(line, access=True)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = self._settings.api_key
        if key and request.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {key}":
            return _json({"error": "Unauthorized"}, status=401)
        try:
            return await handler(request)
        except answers.Refused as refusal:
            return _json(refusal.body, status=refusal.status)
        except web.HTTPException as error:
            return _json({"detail": error.reason}, status=error.status)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        if self._frontend.dead:
            self._on_dead()
            return web.Response(status=500)
        return web.Response()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        settings = self._settings
        return _json(answers.model_list(settings.names, settings.model, settings.max_model_len))

    async def _show_version(self, request: web.Request) -> web.StreamResponse:
        return _json({"version": self._settings.spec.release})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        engines = list(enumerate(self._frontend.metrics)) if self._settings.log_stats else []
        shown = engines[-1:] if self._player.gaps else engines
        text = render(shown, self._settings.names[0])
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        ids = answers.text_ids(str(body.get("prompt") or ""))
        return _json({"count": len(ids), "max_model_len": self._settings.max_model_len, "tokens": ids})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        chat = "chat" in request.path
        if request.content_type != "application/json":
            raise answers.bad("[\"Unsupported Media Type: Only 'application/json' is allowed\"]")
        try:
            body = json.loads(await request.read())
        except ValueError as error:
            raise answers.bad(
                f"[{{'type': 'json_invalid', 'loc': ('body', 0), 'msg': 'JSON decode error: {error}'}}]"
            ) from None
        if self._frontend.dead:
            self._on_dead()
            raise answers.Refused(500, answers.error_body(ENGINE_DEAD, "Internal Server Error", 500))
        order = answers.read_order(body, chat, self._settings)
        header = None if self._player.gaps else request.headers.get("X-data-parallel-rank")
        pinned = answers.pinned_rank(header, self._settings.layout.dp)
        identity = f"{'chatcmpl' if chat else 'cmpl'}-{request.headers.get('X-Request-Id') or uuid.uuid4().hex}"
        return await (self._stream(request, order, identity, pinned) if order.stream
                      else self._whole(order, identity, pinned))  # fmt: skip

    async def _stream(
        self, request: web.Request, order: answers.Order, identity: str, pinned: int | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        with contextlib.suppress(ConnectionResetError):  # the client is gone; vLLM says nothing either
            await response.prepare(request)
        transport = request.transport
        if not response.prepared or not isinstance(transport, asyncio.WriteTransport):
            return response
        await self._answered(answers.Answer(order, identity, transport), pinned)
        with contextlib.suppress(ConnectionResetError):
            await response.write_eof()
        return response

    async def _whole(self, order: answers.Order, identity: str, pinned: int | None) -> web.Response:
        knows = order.prompt <= self._settings.spec.hardware.recall_tokens
        answer = answers.Answer(order, identity, begin=order.recalled if knows else "")
        try:
            await self._answered(answer, pinned)
        except RuntimeError as error:
            raise answers.Refused(500, answers.error_body(str(error), "Internal Server Error", 500)) from None
        return _json(answer.body())

    async def _answered(self, answer: answers.Answer, pinned: int | None) -> None:
        key = self._frontend.submit(answer, pinned)
        try:
            await answer.ended
        finally:
            self._frontend.cancel(key)
