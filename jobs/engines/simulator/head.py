"""The head: waits for every data-parallel rank, then serves HTTP (vllm/v1/utils.py wait_for_engine_startup, 0.9.1)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from jobs.engines.simulator.engine import EngineCore, EngineFailed, Output, load_engine
from jobs.engines.simulator.faults import Player
from jobs.engines.simulator.frontend import Api, Frontend
from jobs.engines.simulator.headless import Remote, pack, receive
from jobs.engines.simulator.log import error, server_line, traceback_line
from jobs.engines.simulator.settings import Settings, StartError

POLL_S = 10.0
"""How often vLLM says at level DEBUG whom it waits for."""

WATCHDOG_S = 5.0


class Head:
    """One head from bind to exit."""

    def __init__(self, settings: Settings, player: Player) -> None:
        self._settings, self._player, self._log = settings, player, player.log
        over = settings.nodes  # of one rank over several nodes the others only compute: they are no back ends
        others = range(1, over) if over > 1 else (r for r in range(settings.layout.dp) if r not in settings.local)
        self._remotes = {rank: Remote(rank) for rank in others}
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
            starting, stopping = asyncio.ensure_future(self._start()), asyncio.ensure_future(stop.wait())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not starting.done():
                traceback_line("KeyboardInterrupt: terminated")
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            return await self._serve(starting.result(), listening, stop)

    async def _start(self) -> Frontend:
        """Bring all data-parallel ranks up."""
        settings = self._settings
        server = await self._listen() if self._remotes else None
        await self._until({"CONNECTED", "READY"}, "connect")
        loads = [load_engine(r, settings, self._player, self._receive) for r in settings.local]
        try:
            self._engines = await asyncio.gather(*loads)
        except EngineFailed:
            raise StartError(error("core_failed")) from None
        await self._until({"READY"}, "start")
        if server:
            server.close()  # vLLM closes its handshake socket now; the connections stay
        further = self._remotes if settings.nodes == 1 else {}
        backends = {engine.rank: engine for engine in self._engines} | further
        self._frontend = Frontend([backends[rank] for rank in sorted(backends)], self._log)
        self._player.on_dead = self._frontend.die
        return self._frontend

    async def _serve(self, frontend: Frontend, listening: socket.socket, stop: asyncio.Event) -> int:
        log, settings = self._log, self._settings
        host, port = settings.http_address
        log.write("serving", host=host or "0.0.0.0", port=port)
        app = Api(frontend, settings, self._player, self._ending.set).application()
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
            log.write("stopping")
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
        except OSError as wrong:
            raise StartError(error("rpc_port", text=os.strerror(wrong.errno or 0), host=host, port=port)) from None

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
                self._log.write("waiting", missing=missing, step=step)
            self._changed.clear()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the connection of one data-parallel rank of another node."""
        remote: Remote | None = None
        with contextlib.suppress(asyncio.CancelledError):  # at exit; asyncio would print it
            while (message := await receive(reader)) is not None:
                kind = message[0]
                if kind == "hello":
                    remote = self._hello(int(message[1]), writer)
                elif remote is None:
                    break
                elif kind == "ready":
                    remote.state = "READY"
                    self._changed.set()
                elif kind == "out" and self._frontend:
                    self._frontend.receive(Output.of(message[1:]))
                elif kind == "dead" and self._frontend:
                    self._frontend.die()
            if remote and self._settings.nodes > 1 and self._frontend:
                self._frontend.die()  # the next collective fails: its stage is gone

    def _hello(self, rank: int, writer: asyncio.StreamWriter) -> Remote | None:
        """Take a rank in, or fail with vLLM's text for one that does not belong here."""
        remote = self._remotes.get(rank)
        self._changed.set()
        if rank in self._settings.local:
            self._failure = error("hello_of_local", rank=rank)
        elif remote is None:
            self._failure = error("hello_of_stranger", rank=rank)
        elif remote.state != "NEW":
            self._failure = error("second_hello", rank=rank, state=remote.state)
        else:
            remote.writer, remote.state = writer, "CONNECTED"
            writer.write(pack("init"))
            self._log.write("hello", rank=rank)
            return remote
        return None

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
    except OSError as wrong:
        listening.close()
        raise StartError(f"OSError: [Errno {wrong.errno}] {os.strerror(wrong.errno or 0)}") from None
    return listening
