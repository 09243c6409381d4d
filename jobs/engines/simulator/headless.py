"""A headless rank: meets the head, loads, then runs its engines for the head until it is killed.

It does not notice that the head is gone. When an engine ends, the main process of vLLM 0.9.1 ends too, with code 0
(entrypoints/cli/serve.py run_headless: it only waits for the first engine process to end).

Messages are a length in four bytes, then one JSON list:
    engine -> head   ["hello", rank]  ["ready"]            ["out", ...Output]  ["dead"]
    head -> engine   ["init"]         ["add", ...Request]  ["abort", keys]
One connection serves one data-parallel rank, from the handshake on (vLLM uses ZeroMQ for the same steps). Where one
data-parallel rank reaches over several nodes (--nnodes), a node says hello by its number and gets no requests.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterable
from typing import Any

from jobs.engines.simulator.engine import EngineFailed, Output, load_engine, load_weights
from jobs.engines.simulator.faults import Player, leave
from jobs.engines.simulator.log import error
from jobs.engines.simulator.scheduler import Request
from jobs.engines.simulator.settings import Settings

Message = list[Any]
RETRY_S = 0.1


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


class Remote:
    """The engine of a headless rank. What is sent to one that is gone is lost; nobody notices, as in vLLM."""

    def __init__(self, rank: int) -> None:
        self.rank, self.state = rank, "NEW"
        self.writer: asyncio.StreamWriter | None = None

    def add(self, request: Request) -> None:
        """Send a request."""
        self._send("add", request.key, request.prompt, request.limit, request.reason, request.hashes)

    def abort(self, keys: Iterable[int]) -> None:
        """Send that requests are to be forgotten."""
        self._send("abort", list(keys))

    def _send(self, *message: object) -> None:
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(pack(*message))


async def run_headless(settings: Settings, player: Player) -> int:
    """Serve the local data-parallel ranks until a signal; return the exit code."""
    host, port = settings.rpc_address
    player.log.write("headless", count=len(settings.local), host=host, port=port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    writers: list[asyncio.StreamWriter] = []

    def tell_dead() -> None:
        for writer in writers:
            writer.write(pack("dead"))
        asyncio.get_running_loop().call_later(RETRY_S, leave, 0)

    player.on_dead = tell_dead
    serve = _serve_rank if settings.nodes == 1 else _serve_node
    numbers = settings.local if settings.nodes == 1 else (settings.node,)
    ranks = [asyncio.ensure_future(serve(number, settings, player, writers)) for number in numbers]
    waiting = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait([*ranks, waiting], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if task.exception() and not isinstance(task.exception(), EngineFailed):
            task.result()
    player.log.write("headless_end")
    return 0


async def _serve_rank(rank: int, settings: Settings, player: Player, writers: list[asyncio.StreamWriter]) -> None:
    player.log.write("wait_for_head")
    try:
        async with asyncio.timeout(settings.spec.handshake_s):
            reader, writer = await _meet(rank, settings)
    except TimeoutError:
        player.log.write("core_failed", error=error("no_head"))
        raise EngineFailed(error("no_head")) from None
    writers.append(writer)

    def emit(output: Output) -> None:
        if not writer.is_closing():
            writer.write(pack("out", *output))

    engine = await load_engine(rank, settings, player, emit)
    writer.write(pack("ready"))
    player.reach("ready")
    running = asyncio.ensure_future(engine.run())
    while (message := await receive(reader)) is not None:
        if message[0] == "add":
            engine.add(Request(*message[1:]))
        elif message[0] == "abort":
            engine.abort(message[1])
    await running  # the head is gone; vLLM's engines live on


async def _serve_node(node: int, settings: Settings, player: Player, writers: list[asyncio.StreamWriter]) -> None:
    """Be one of the nodes of a data-parallel rank: it meets the head's, loads its part, and computes unseen."""
    _, writer = await _meet(node, settings)
    writers.append(writer)
    player.reach("load")
    await load_weights(0, settings, player, player.log)
    writer.write(pack("ready"))
    player.reach("ready")
    await asyncio.Event().wait()  # as a data-parallel rank, it lives on without the head


async def _meet(rank: int, settings: Settings) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the head, say hello and wait for its answer, as often as it takes."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(*settings.rpc_address)
        except OSError:
            await asyncio.sleep(RETRY_S)
            continue
        writer.write(pack("hello", rank))
        answer = await receive(reader)
        if answer is not None and answer[0] == "init":
            return reader, writer
        writer.close()
        await asyncio.sleep(RETRY_S)
