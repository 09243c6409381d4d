"""The channel between the ranks: TCP with heartbeats, so that a lost rank is seen in seconds.

The shared file system is the record, not the messenger: its attribute caches may delay a file by a minute.
A rank proves itself by an HMAC over the head's nonce with the key in the allocation's directory, so that another user
of the cluster cannot join.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import secrets

from jobs.allocation.messages import Beat, Hello, Lost, Message, Nonce, Welcome, decode, encode
from jobs.cluster.ports import holder
from jobs.core.errors import RunError
from jobs.core.waiting import aside

BEATS_PER_LIMIT = 4
"""Heartbeats sent within one silence limit: three may be late before a rank counts as lost."""


LONGEST = 1 << 22
"""Bytes of one message: a rank's pings to many nodes are longer than asyncio's 64 KiB."""


class _Line:
    """One side of a connection: JSON lines out and in, with a heartbeat."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silence_s: float) -> None:
        self._reader, self._writer, self._silence_s = reader, writer, silence_s

    async def send(self, message: Message) -> None:
        """Send one message; a broken connection is noticed by the reading side."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(encode(message))
            await self._writer.drain()

    async def read(self) -> Message | None:
        """Return the next message, or None at the end of the connection.

        Raises:
            TimeoutError: silence for longer than the limit.
            ValueError: not our protocol.
        """
        try:
            async with asyncio.timeout(self._silence_s):  # not wait_for: see watch.py
                line = await self._reader.readline()
        except TimeoutError:
            raise
        except OSError:  # reset, unreachable
            return None
        return decode(line) if line else None

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(self._silence_s / BEATS_PER_LIMIT)
            await self.send(Beat())

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._writer.close()


def _proof(key: str, nonce: str) -> str:
    return hmac.new(key.encode(), nonce.encode(), hashlib.sha256).hexdigest()


class ControlServer:
    """Rank 0's end: every other rank connects to it."""

    def __init__(self, ranks: int, key: str, silence_s: float) -> None:
        self._expected, self._key, self._silence_s = set(range(1, ranks)), key, silence_s
        self._lines: dict[int, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._joined = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.inbox: asyncio.Queue[tuple[int, Message]] = asyncio.Queue()
        """(rank, message); a lost rank is the message `Lost`."""
        self.leaving: set[int] = set()
        """Ranks whose task was told to end: they only stop their engine."""
        if not self._expected:
            self._joined.set()

    async def open(self, port: int) -> None:
        """Listen on all addresses of this host.

        Raises:
            RunError: the port is taken.
        """
        try:
            self._server = await asyncio.start_server(self._accept, "0.0.0.0", port, limit=LONGEST)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = f"it is taken by {(await aside(holder, port)).text}" if taken else str(error)
            raise RunError("cluster.control_port", port, reason, "Set cluster.control_port to a free port.") from None

    async def joined(self, timeout_s: float) -> None:
        """Wait until every rank has joined.

        Raises:
            RunError: some have not within the limit.
        """
        try:
            await asyncio.wait_for(self._joined.wait(), timeout_s)
        except TimeoutError:
            missing = ", ".join(f"rank {r}" for r in sorted(self._expected - self._lines.keys()))
            raise RunError(
                "limits.rendezvous_s",
                timeout_s,
                f"{missing} did not reach rank 0 in time",
                "See stdout of that rank; check that the nodes reach each other on the control port.",
            ) from None

    async def send(self, message: Message, rank: int | None = None) -> None:
        """Send one message to every rank that is there, or to one of them."""
        for each, line in list(self._lines.items()):
            if rank is None or each == rank:
                await line.send(message)

    @property
    def present(self) -> set[int]:
        """Ranks that are connected."""
        return set(self._lines)

    async def close(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()
        for line in self._lines.values():
            line.close()
        if self._server:
            self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(reader, writer, self._silence_s)
        with contextlib.ExitStack() as refusal:
            refusal.callback(line.close)  # after an exception too: Python 3.11.2 does not do it by itself
            nonce = secrets.token_hex(16)
            await line.send(Nonce(nonce))
            hello: Message | None = None
            with contextlib.suppress(TimeoutError, ValueError):
                hello = await line.read()
            if not isinstance(hello, Hello):
                return
            proven = hmac.compare_digest(hello.proof.encode(), _proof(self._key, nonce).encode())
            rank = hello.rank
            if not proven or rank not in self._expected or rank in self._lines:
                return
            refusal.pop_all()
        self._lines[rank] = line
        self._tasks.add(asyncio.create_task(self._listen(rank, line)))
        await line.send(Welcome())
        if self._expected == self._lines.keys():
            self._joined.set()

    async def _listen(self, rank: int, line: _Line) -> None:
        reason = "its connection to rank 0 ended"
        beat = asyncio.create_task(line.beat())
        try:
            while (message := await line.read()) is not None:
                if not isinstance(message, Beat):
                    self.inbox.put_nowait((rank, message))
        except TimeoutError:
            reason = f"no sign of life for {self._silence_s:g} s (limits.heartbeat_s)"
        except ValueError as error:
            reason = f"it sent what is no message of ours: {error}"
        finally:
            beat.cancel()
        self._lines.pop(rank, None)
        line.close()
        self.inbox.put_nowait((rank, Lost(reason)))


class ControlClient:
    """The end of every rank but 0."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._beat = asyncio.create_task(line.beat())

    async def send(self, message: Message) -> None:
        """Send one message to rank 0."""
        await self._line.send(message)

    async def receive(self) -> Message | None:
        """Return the next message of rank 0, or None when rank 0 is gone or silent beyond the limit."""
        with contextlib.suppress(TimeoutError, ValueError):
            while (message := await self._line.read()) is not None:
                if not isinstance(message, Beat):
                    return message
        return None

    def close(self) -> None:
        """End the connection."""
        self._beat.cancel()
        self._line.close()


async def join(host: str, port: int, rank: int, key: str, silence_s: float, timeout_s: float) -> ControlClient:
    """Connect this rank to rank 0, trying again until it answers.

    Raises:
        RunError: rank 0 did not answer within `timeout_s` seconds.
    """
    last = "no attempt"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    line = _Line(*await asyncio.open_connection(host, port, limit=LONGEST), silence_s)
                    if isinstance(challenge := await line.read(), Nonce):
                        await line.send(Hello(rank, _proof(key, challenge.nonce)))
                        if isinstance(await line.read(), Welcome):
                            return ControlClient(line)
                    line.close()
                    last = "rank 0 refused this rank"
                except (OSError, TimeoutError, ValueError) as error:
                    last = str(error) or type(error).__name__
                await asyncio.sleep(0.2)
    raise RunError(
        "limits.rendezvous_s",
        timeout_s,
        f"rank {rank} did not reach rank 0 at {host}:{port}: {last}",
        "See stdout of rank 0; check that the nodes reach each other on that port.",
    )
