"""Real TCP connections between the nodes, on the ports that the engine will use."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Iterable

from jobs.cluster.ports import Holder, holder
from jobs.core.waiting import aside

CONNECT_S = 5.0
"""A firewall that drops packets gives no answer at all."""

WAIT_S = 2.0
MOST = 32
"""Connections at once: a peer's takes milliseconds, so of more the oldest are a stranger's."""


class Listeners:
    """Ports of this node that are held open for the peers, until the engine gets them."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self.ports: list[int] = []
        self._guests: list[asyncio.StreamWriter] = []

    async def open(self, host: str, ports: Iterable[int]) -> dict[int, Holder]:
        """Listen on these ports; 0 is one that the kernel chooses. Returns why some could not be bound."""
        busy = {}
        for port in ports:
            try:
                server = await asyncio.start_server(self._answer, host, port)
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                busy[port] = await aside(holder, port) if taken else Holder(str(error))
                continue
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])
        return busy

    async def close(self) -> None:
        """Give the ports back."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._guests.append(writer)
        if len(self._guests) > MOST:
            self._guests.pop(0).transport.abort()
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(WAIT_S):
                writer.write(await reader.readline())
                await writer.drain()
                # The peer closes first: our side then keeps no TIME_WAIT on a port that an engine wants.
                while await reader.read(1 << 12):
                    pass  # a stranger's words are kept nowhere
        writer.close()
        if writer in self._guests:
            self._guests.remove(writer)


async def reach(address: str, port: int, token: str) -> str | None:
    """Connect to a peer's port and hear our own word back. Returns what went wrong, or None."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(f"{token}\n".encode())
            await writer.drain()
            heard = await reader.readline()
    except TimeoutError:
        return f"no answer within {CONNECT_S:g} s: a firewall drops it"
    except OSError as error:
        return error.strerror or str(error)
    finally:
        if writer:
            _reset(writer)
    return None if heard.decode(errors="replace").strip() == token else "something else answered"


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
