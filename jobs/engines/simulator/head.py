"""The head: waits for every data-parallel rank, then serves HTTP (vllm/v1/utils.py wait_for_engine_startup, 0.9.1)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Coroutine, Iterable
from typing import Any

from aiohttp import web

from jobs.engines.simulator.api import Api
from jobs.engines.simulator.engine import EngineCore, EngineFailed, Output, load_engine
from jobs.engines.simulator.faults import Player
from jobs.engines.simulator.frontend import Frontend
from jobs.engines.simulator.headless import Message, pack, pack_request, receive, unpack_output
from jobs.engines.simulator.log import Log, server_line, traceback_line
from jobs.engines.simulator.scheduler import Request
from jobs.engines.simulator.settings import Settings, StartError
from jobs.engines.simulator.spec import RehearsalSpec

POLL_S = 10.0
"""How often vLLM says at level DEBUG whom it waits for."""

WATCHDOG_S = 5.0


class Remote:
    """The engine of a headless rank. What is sent to one that is gone is lost; nobody notices, as in vLLM."""

    def __init__(self, rank: int) -> None:
        self.rank, self.state = rank, "NEW"
        self.writer: asyncio.StreamWriter | None = None

    def add(self, request: Request) -> None:
        """Send a request."""
        self._send(pack_request(request))

    def abort(self, keys: Iterable[int]) -> None:
        """Send that requests are to be forgotten."""
        self._send(pack("abort", list(keys)))

    def _send(self, data: bytes) -> None:
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(data)


class Head:
    """One head from bind to exit."""

    def __init__(self, settings: Settings, spec: RehearsalSpec, player: Player, log: Log) -> None:
        self._settings, self._spec, self._player, self._log = settings, spec, player, log
        self._remotes = {r: Remote(r) for r in range(settings.data_parallel) if r not in settings.local}
        self._changed = asyncio.Event()
        self._failure: str | None = None
        self._ending = asyncio.Event()
        self._frontend: Frontend | None = None
        self._engines: list[EngineCore] = []

    async def run(self) -> int:
        """Serve until a signal; return the exit code."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        with contextlib.closing(_bind(self._settings.http_address)) as listening:
            starting = asyncio.ensure_future(self._start())
            if not await _first(starting, stop.wait()):
                traceback_line("KeyboardInterrupt: terminated")
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            return await self._serve(starting.result(), listening, stop)

    async def _start(self) -> Frontend:
        """Bring all data-parallel ranks up."""
        settings = self._settings
        server = None if settings.local_only else await self._listen()
        await self._until({"CONNECTED", "READY"}, "connect")
        loads = [load_engine(r, settings, self._spec, self._player, self._log, self._receive) for r in settings.local]
        try:
            self._engines = await asyncio.gather(*loads)
        except EngineFailed:
            text = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
            raise StartError(text) from None
        await self._until({"READY"}, "start")
        if server:
            server.close()  # vLLM closes its handshake socket now; the connections stay
        backends = {engine.rank: engine for engine in self._engines} | self._remotes
        self._frontend = Frontend([backends[rank] for rank in sorted(backends)], self._log)
        self._player.on_dead = self._frontend.die
        return self._frontend

    async def _serve(self, frontend: Frontend, listening: socket.socket, stop: asyncio.Event) -> int:
        log, settings = self._log, self._settings
        host, port = settings.http_address
        log.info("api_server.py:1349", f"Starting vLLM API server 0 on http://{host or '0.0.0.0'}:{port}")
        app = Api(frontend, settings, self._spec, self._player.pace, self._ending.set).application()
        runner = web.AppRunner(app, access_log=None, handle_signals=False, handler_cancellation=True)
        await runner.setup()
        shown = settings.uvicorn_level in ("info", "debug", "trace")
        log_line = server_line if shown else lambda _: None
        log_line(f"Started server process [{os.getpid()}]")
        log_line("Waiting for application startup.")
        await web.SockSite(runner, listening, backlog=2048).start()
        log_line("Application startup complete.")  # uvicorn says it just before; so whoever waits for it can connect
        self._player.reach("ready")
        jobs: list[Coroutine[Any, Any, None]] = [engine.run() for engine in self._engines]
        jobs += [frontend.publish(), self._watchdog(frontend)]
        jobs += [frontend.report()] if settings.log_stats else []
        tasks = [asyncio.ensure_future(job) for job in jobs]
        waiting = [asyncio.ensure_future(event.wait()) for event in (stop, self._ending)]
        done, _ = await asyncio.wait([*tasks, *waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # an engine's own error ends the process with its traceback
        if stop.is_set():
            log.info("launcher.py:80", "Shutting down FastAPI HTTP server.")
        for line in ("Shutting down", "Waiting for application shutdown.", "Application shutdown complete."):
            log_line(line)
        return 0

    async def _watchdog(self, frontend: Frontend) -> None:
        while True:
            await asyncio.sleep(WATCHDOG_S)
            if frontend.dead:
                self._ending.set()

    async def _listen(self) -> asyncio.Server:
        host, port = self._settings.rpc_address
        try:
            return await asyncio.start_server(self._welcome, host, port)
        except OSError as error:
            text = os.strerror(error.errno or 0)
            raise StartError(f"zmq.error.ZMQError: {text} (addr='tcp://{host}:{port}')") from None

    async def _until(self, states: set[str], step: str) -> None:
        """Wait until every remote rank is in one of `states`."""
        while True:
            if self._failure:
                raise StartError(self._failure)
            missing = sum(r.state not in states for r in self._remotes.values())
            if not missing:
                return
            try:
                async with asyncio.timeout(POLL_S):
                    await self._changed.wait()
            except TimeoutError:
                self._log.debug("utils.py:481", f"Waiting for 0 local, {missing} remote core engine proc(s) to {step}.")
            self._changed.clear()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the connection of one data-parallel rank of another node."""
        with contextlib.suppress(asyncio.CancelledError):  # at exit; asyncio would print it
            await self._serve_remote(reader, writer)

    async def _serve_remote(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        remote: Remote | None = None
        while (message := await receive(reader)) is not None:
            kind = message[0]
            if kind == "hello":
                remote = self._hello(message, writer)
            elif remote is None:
                break
            elif kind == "ready":
                remote.state = "READY"
                self._changed.set()
            elif kind == "out" and self._frontend:
                self._frontend.receive(unpack_output(message))
            elif kind == "dead" and self._frontend:
                self._frontend.die()

    def _hello(self, message: Message, writer: asyncio.StreamWriter) -> Remote | None:
        """Take a rank in, or fail with vLLM's text for one that does not belong here."""
        rank = int(message[1])
        remote = self._remotes.get(rank)
        if rank in self._settings.local:
            self._fail(f"RuntimeError: HELLO message from remote engine {rank}, expected it to be local")
        elif remote is None:
            self._fail(f"RuntimeError: Message from engine with unexpected data parallel rank: {rank}")
        elif remote.state != "NEW":
            self._fail(
                f"RuntimeError: Unexpected HELLO message for remote engine {rank} in "
                f"CoreEngineState.{remote.state} state."
            )
        else:
            remote.writer, remote.state = writer, "CONNECTED"
            writer.write(pack("init"))
            self._log.debug("utils.py:547", f"HELLO from remote core engine process {rank}.")
            self._changed.set()
            return remote
        return None

    def _fail(self, text: str) -> None:
        self._failure = text
        self._changed.set()

    def _receive(self, output: Output) -> None:
        if self._frontend:
            self._frontend.receive(output)


def _bind(address: tuple[str, int]) -> socket.socket:
    """Bind the API port without listening: until the engines are ready a connection is refused (api_server.py)."""
    host = address[0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise StartError(f"OSError: [Errno {error.errno}] {os.strerror(error.errno or 0)}") from None
    return listening


async def _first(task: asyncio.Future[Any], other: Coroutine[Any, Any, Any]) -> bool:
    """Wait for either; tell whether the first one was it."""
    second = asyncio.ensure_future(other)
    await asyncio.wait([task, second], return_when=asyncio.FIRST_COMPLETED)
    second.cancel()
    return task.done()
