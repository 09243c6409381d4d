"""A strict stand-in for a serving engine: it answers nothing but the exact requests that the client may send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from jobs.core.config import Bench, Model
from jobs.measure.records import Target

MODEL = Model(name="stub", path="/models/stub", served_model_name="stub")
KEYS = {"model", "max_tokens", "temperature", "ignore_eos", "stream", "stream_options"}

Script = Callable[["Answer"], Awaitable[None]]


def event(message: Any) -> bytes:
    return b"data: " + json.dumps(message, separators=(",", ":")).encode() + b"\n\n"


def token(text: str = "a", finish: str | None = None) -> dict[str, Any]:
    return {"id": "cmpl-1", "choices": [{"index": 0, "text": text, "finish_reason": finish}], "usage": None}


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def usage(prompt: int, output: int) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    return {"id": "cmpl-1", "choices": [], "usage": counts}


class Answer:
    """One request as the stub saw it, and the means to answer it."""

    def __init__(self, number: int, request: web.Request, asked: dict[str, Any]) -> None:
        self.number, self.request, self.asked = number, request, asked
        self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})

    @property
    def prompt_tokens(self) -> int:
        return (
            len(self.asked["prompt"]) if "prompt" in self.asked else len(self.asked["messages"][0]["content"].split())
        )

    async def open(self) -> None:
        self.response.enable_chunked_encoding()
        await self.response.prepare(self.request)

    async def send(self, *messages: Any) -> None:
        await self.response.write(b"".join(event(message) for message in messages))

    async def tokens(self, count: int) -> None:
        """Send tokens, each in a piece of its own."""
        chat = "messages" in self.asked
        if chat:
            await self.send(delta(role="assistant", content=""))
        for _ in range(count):
            await self.send(delta(content="a") if chat else token())

    async def end(self, output: int | None = None) -> None:
        await self.send(usage(self.prompt_tokens, self.asked["max_tokens"] if output is None else output))
        await self.response.write(b"data: [DONE]\n\n")

    async def whole(self) -> None:
        await self.open()
        await self.tokens(self.asked["max_tokens"])
        await self.end()

    def reset(self) -> None:
        """Break the connection with RST."""
        assert self.request.transport is not None
        self.request.transport.abort()


class Stub:
    """The engine. A request that is not exactly as it must be is a fault, and `faults` must stay empty.

    Attributes:
        script: answers one request.
        seen: all requests of the load in the order of arrival.
        running, most: requests under way now, and at most.
        arrived: set at each arrival.
        generated: what /metrics says of each engine; None: it has no such page.
    """

    def __init__(self, bench: Bench, script: Script) -> None:
        self.bench, self.script = bench, script
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.connections: set[Any] = set()
        self.faults: list[str] = []
        self.running = self.most = self.scrapes = 0
        self.arrived = asyncio.Event()
        self.generated: dict[str, float] | None = {"0": 0.0}
        self.target = Target("", "stub")

    def _check(self, request: web.Request, asked: dict[str, Any]) -> None:
        bench = self.bench
        chat = bench.endpoint == "chat"
        expected = {
            "model": "stub",
            "max_tokens": bench.output_tokens,
            "temperature": bench.temperature,
            "ignore_eos": bench.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        prompt = asked.get("messages" if chat else "prompt")
        if {key: value for key, value in asked.items() if key in KEYS} != expected:
            self.faults.append(f"options {asked}")
        if set(asked) - KEYS != {"messages" if chat else "prompt"}:
            self.faults.append(f"keys {sorted(asked)}")
        if chat and not (len(prompt) == 1 and set(prompt[0]) == {"role", "content"} and prompt[0]["role"] == "user"):
            self.faults.append(f"messages {prompt}")
        if not chat and not all(type(i) is int and 100 <= i < 1000 for i in prompt):
            self.faults.append("token ids out of range")
        if request.headers.getall("Content-Type") != ["application/json"]:
            self.faults.append(f"headers {dict(request.headers)}")

    async def load(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self._check(request, asked)
        answer = Answer(len(self.seen), request, asked)
        self.seen.append(asked)
        self.headers.append(dict(request.headers))
        self.connections.add(request.transport)
        self.running += 1
        self.most = max(self.most, self.running)
        self.arrived.set()
        try:
            await self.script(answer)
        finally:
            self.running -= 1
        return answer.response

    async def metrics(self, request: web.Request) -> web.Response:
        self.scrapes += 1
        if self.generated is None:
            return web.Response(status=404)
        lines = ["# TYPE vllm:generation_tokens_total counter"]
        for engine, tokens in self.generated.items():
            lines.append(f'vllm:generation_tokens_total{{engine="{engine}",model_name="stub"}} {tokens}')
        return web.Response(text="\n".join(lines) + "\n")


@asynccontextmanager
async def serving(bench: Bench, script: Script) -> AsyncIterator[Stub]:
    """Run a stub on loopback; at the end there must have been no fault."""
    stub = Stub(bench, script)
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions" if bench.endpoint == "chat" else "/v1/completions", stub.load)
    app.router.add_get("/metrics", stub.metrics)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stub.target = Target(f"http://127.0.0.1:{runner.addresses[0][1]}", "stub")
    try:
        yield stub
    finally:
        await runner.cleanup()
    assert not stub.faults, stub.faults[:3]


@asynccontextmanager
async def tokenizer_service(
    encode: Callable[[str], list[int]] | None,
    decode: Callable[[list[int]], str] | None = None,
    *,
    begin: Sequence[int] = (),
    end: Sequence[int] = (),
    always: bool = False,
    status: int = 404,
    counts: Callable[[str], int] | None = None,
) -> AsyncIterator[Target]:
    """A service whose tokenizer is this one.

    Args:
        encode: None: instead of /tokenize there is an answer with `status`.
        decode: for /detokenize; None: it has no such page.
        begin, end: what stands before and after a text; `always`: whatever is asked.
        counts: tokens that the service itself finds in a prompt that is a text; None: it takes none.
    """

    async def tokenize(request: web.Request) -> web.Response:
        asked = await request.json()
        if encode is None:
            return web.json_response({"error": "no tokenizer"}, status=status)
        around = always or asked["add_special_tokens"]
        ids = [*(begin if around else ()), *encode(asked["prompt"]), *(end if around else ())]
        return web.json_response({"count": len(ids), "tokens": ids})

    async def detokenize(request: web.Request) -> web.Response:
        assert decode is not None
        return web.json_response({"prompt": decode((await request.json())["tokens"])})

    async def complete(request: web.Request) -> web.Response:
        if counts is None:
            return web.json_response({"error": "no texts"}, status=400)
        usage = {"prompt_tokens": counts((await request.json())["prompt"]), "completion_tokens": 1}
        return web.json_response({"choices": [{"text": "a"}], "usage": usage})

    app = web.Application()
    app.router.add_post("/tokenize", tokenize)
    app.router.add_post("/v1/completions", complete)
    if decode:
        app.router.add_post("/detokenize", detokenize)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Target(f"http://127.0.0.1:{runner.addresses[0][1]}", "m", "the-key")
    finally:
        await runner.cleanup()
