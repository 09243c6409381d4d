"""The HTTP side of the head: vLLM's routes on aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web

from jobs.engines.simulator.answers import (
    Answer,
    Order,
    Refused,
    bad,
    dumps,
    error_body,
    model_list,
    pinned_rank,
    read_order,
    text_tokens,
)
from jobs.engines.simulator.faults import ENGINE_DEAD, Pace
from jobs.engines.simulator.frontend import Frontend, render
from jobs.engines.simulator.log import server_line
from jobs.engines.simulator.settings import Settings
from jobs.engines.simulator.spec import RehearsalSpec

MAX_BODY = 256 * 1024 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(text=dumps(body), status=status, headers={"Content-Type": "application/json"})


class Api:
    """Answers HTTP requests with the help of the front end.

    `on_dead` is called when a request finds the engines dead; vLLM then ends itself (entrypoints/launcher.py).
    """

    def __init__(
        self,
        frontend: Frontend,
        settings: Settings,
        spec: RehearsalSpec,
        pace: Pace,
        on_dead: Callable[[], None],
    ) -> None:
        self._frontend, self._settings, self._spec = frontend, settings, spec
        self._pace, self._on_dead = pace, on_dead

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
        except Refused as refusal:
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
        return _json(model_list(settings.names, settings.model, settings.max_model_len))

    async def _show_version(self, request: web.Request) -> web.StreamResponse:
        return _json({"version": self._spec.release})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        engines = list(enumerate(self._frontend.metrics)) if self._settings.log_stats else []
        shown = engines[-1:] if self._pace.gaps else engines
        text = render(shown, self._settings.names[0])
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        count = text_tokens(str(body.get("prompt") or ""))
        return _json({"count": count, "max_model_len": self._settings.max_model_len, "tokens": [0] * count})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        chat = "chat" in request.path
        if request.content_type != "application/json":
            raise bad("[\"Unsupported Media Type: Only 'application/json' is allowed\"]")
        try:
            body = json.loads(await request.read())
        except ValueError as error:
            raise bad(
                f"[{{'type': 'json_invalid', 'loc': ('body', 0), 'msg': 'JSON decode error: {error}'}}]"
            ) from None
        if self._frontend.dead:
            self._on_dead()
            raise Refused(500, error_body(ENGINE_DEAD, "Internal Server Error", 500))
        order = read_order(body, chat, self._settings)
        header = None if self._pace.gaps else request.headers.get("X-data-parallel-rank")
        pinned = pinned_rank(header, self._settings.data_parallel)
        identity = f"{'chatcmpl' if chat else 'cmpl'}-{request.headers.get('X-Request-Id') or uuid.uuid4().hex}"
        return await (self._stream(request, order, identity, pinned) if order.stream
                      else self._whole(order, identity, pinned))  # fmt: skip

    async def _stream(
        self, request: web.Request, order: Order, identity: str, pinned: int | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        with contextlib.suppress(ConnectionResetError):  # the client is gone; vLLM says nothing either
            await response.prepare(request)
        transport = request.transport
        if not response.prepared or not isinstance(transport, asyncio.WriteTransport):
            return response
        await self._answered(Answer(order, identity, transport), pinned)
        with contextlib.suppress(ConnectionResetError):
            await response.write_eof()
        return response

    async def _whole(self, order: Order, identity: str, pinned: int | None) -> web.Response:
        knows = order.prompt <= self._spec.hardware.recall_tokens
        answer = Answer(order, identity, begin=order.recalled if knows else "")
        try:
            await self._answered(answer, pinned)
        except RuntimeError as error:
            raise Refused(500, error_body(str(error), "Internal Server Error", 500)) from None
        return _json(answer.body())

    async def _answered(self, answer: Answer, pinned: int | None) -> None:
        key = self._frontend.submit(answer.order, pinned, answer)
        try:
            await answer.ended
        finally:
            self._frontend.cancel(key)
