"""A headless rank: meets the head, loads, then runs its engines for the head until it is killed.

It does not notice that the head is gone. When an engine ends, the main process of vLLM 0.9.1 ends too, with code 0
(entrypoints/cli/serve.py run_headless: it only waits for the first engine process to end).

Messages are a length in four bytes, then one JSON list:
    engine -> head   ["hello", rank]  ["ready"]            ["out", ...Output]  ["dead"]
    head -> engine   ["init"]         ["add", ...Request]  ["abort", keys]
One connection serves one data-parallel rank, from the handshake on (vLLM uses ZeroMQ for the same steps).
"""

from __future__ import annotations

import asyncio
import functools
import json
import signal
from typing import Any

from jobs.engines.simulator.engine import EngineFailed, Output, load_engine
from jobs.engines.simulator.faults import Player, leave
from jobs.engines.simulator.log import Log
from jobs.engines.simulator.scheduler import Figures, Request
from jobs.engines.simulator.settings import Settings
from jobs.engines.simulator.spec import RehearsalSpec

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


def unpack_output(message: Message) -> Output:
    """Return the output in a message."""
    _, rank, tokens, finished, failed, error, figures = message
    return Output(rank, tuple(tokens), tuple((k, r) for k, r in finished), tuple(failed), error, Figures(*figures))


def pack_request(request: Request) -> bytes:
    """Return a new request as a message."""
    return pack("add", request.key, request.prompt, request.limit, request.reason, request.hashes)


def unpack_request(message: Message) -> Request:
    """Return the request in a message."""
    _, key, prompt, limit, reason, hashes = message
    return Request(key, prompt, limit, reason, tuple(hashes))


async def run_headless(settings: Settings, spec: RehearsalSpec, player: Player, log: Log) -> int:
    """Serve the local data-parallel ranks until a signal; return the exit code."""
    host, port = settings.rpc_address
    log.info(
        "serve.py:125",
        f"Launching {len(settings.local)} data parallel engine(s) in headless mode, with head node address "
        f"tcp://{host}:{port}.",
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    writers: list[asyncio.StreamWriter] = []
    player.on_dead = functools.partial(_tell_dead, writers)
    ranks = [asyncio.ensure_future(_serve_rank(r, settings, spec, player, log, writers)) for r in settings.local]
    waiting = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait([*ranks, waiting], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if task.exception() and not isinstance(task.exception(), EngineFailed):
            task.result()
    log.info("serve.py:149", "Shutting down.")
    return 0


def _tell_dead(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.write(pack("dead"))
    asyncio.get_running_loop().call_later(RETRY_S, leave, 0)


async def _serve_rank(
    rank: int, settings: Settings, spec: RehearsalSpec, player: Player, log: Log, writers: list[asyncio.StreamWriter]
) -> None:
    log.info("core.py:455", "Waiting for init message from front-end.")
    try:
        async with asyncio.timeout(spec.handshake_s):
            reader, writer = await _meet(rank, settings)
    except TimeoutError:
        text = "RuntimeError: Did not receive response from front-end process within 5 minutes"
        log.error("core.py:497", f"EngineCore failed to start.\nTraceback (most recent call last):\n{text}")
        raise EngineFailed(text) from None
    writers.append(writer)

    def emit(output: Output) -> None:
        if not writer.is_closing():
            writer.write(pack("out", *output))

    engine = await load_engine(rank, settings, spec, player, log, emit)
    writer.write(pack("ready"))
    player.reach("ready")
    running = asyncio.ensure_future(engine.run())
    while (message := await receive(reader)) is not None:
        if message[0] == "add":
            engine.add(unpack_request(message))
        elif message[0] == "abort":
            engine.abort(message[1])
    await running  # the head is gone; vLLM's engines live on


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
