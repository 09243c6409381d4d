"""Messages between the head and the engines of headless ranks: a length in four bytes, then one JSON list.

    engine -> head   ["hello", rank, settings]  ["ready", rank, blocks]  ["out", ...Output]  ["dead"]
    head -> engine   ["init", settings]         ["add", ...Request]      ["abort", keys]

One connection serves one data-parallel rank, from the handshake on (vLLM uses ZeroMQ for the same steps).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from jobs.engines.simulator.engine import Output
from jobs.engines.simulator.scheduler import Request

Message = list[Any]


def pack(*message: object) -> bytes:
    """Return one message as it goes over the wire."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(4, "big") + body


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """Return the next message; None once the other side is gone or sends what is no message."""
    try:
        size = int.from_bytes(await reader.readexactly(4), "big")
        message = json.loads(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, OSError, ValueError):
        return None
    return message if isinstance(message, list) and message else None


def pack_output(output: Output) -> bytes:
    """Return one step's output as a message."""
    o = output
    return pack(
        "out", o.rank, o.tokens, o.finished, o.failed, o.error, o.running, o.waiting, round(o.usage, 6),
        o.preemptions, o.prefix_queries, o.prefix_hits,
    )  # fmt: skip


def unpack_output(message: Message) -> Output:
    """Return the output in a message."""
    _, rank, tokens, finished, failed, error, *numbers = message
    return Output(rank, tuple(tokens), tuple((k, r) for k, r in finished), tuple(failed), error, *numbers)


def pack_request(request: Request) -> bytes:
    """Return a new request as a message."""
    return pack("add", request.key, request.prompt, request.limit, request.reason, request.hashes)


def unpack_request(message: Message) -> Request:
    """Return the request in a message."""
    _, key, prompt, limit, reason, hashes = message
    return Request(key, prompt, limit, reason, tuple(hashes))
