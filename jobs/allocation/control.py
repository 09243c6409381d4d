"""The channel between the ranks: TCP with heartbeats, so that a lost rank is seen in seconds.

The shared file system is the record, not the messenger: its attribute caches may delay a file by a minute.
Both ends prove themselves, and every line is sealed (handshake.py): another user of the cluster can neither join nor
stand in for rank 0. Until then a connection costs a few bytes and two seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

from jobs.allocation.handshake import LIMIT_S, Seals, Secret, admit, enter
from jobs.allocation.messages import Beat, Lost, Message, decode, encode
from jobs.cluster.ports import holder
from jobs.core.errors import RunError
from jobs.core.waiting import aside, first_of

BEATS_PER_LIMIT = 4
"""Heartbeats sent within one silence limit: three may be late before a rank counts as lost."""

LONGEST = 1 << 22
"""Bytes of one message: a rank's pings to many nodes are longer than asyncio's 64 KiB."""

UNPROVEN = 32
"""Connections that have not proven themselves: of more the oldest is closed, so that a crowd keeps no rank out."""

BACKLOG = 16 * UNPROVEN
"""Connections that the kernel holds until they are accepted: what comes beyond is tried again a second later."""

EVERYWHERE, LOOPBACK = "0.0.0.0", "127.0.0.1"


class _Line:
    """One side of a connection: JSON lines out and in, with a heartbeat."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seals: Seals, silence_s: float
    ) -> None:
        self._reader, self._writer, self._seals, self._silence_s = reader, writer, seals, silence_s

    @classmethod
    async def over(cls, sock: socket.socket, seals: Seals, silence_s: float) -> _Line:
        return cls(*await asyncio.open_connection(sock=sock, limit=LONGEST), seals, silence_s)

    def welcome(self, proof: bytes) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(proof)

    async def send(self, message: Message) -> None:
        """Send one message; a broken connection is noticed by the reading side."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(self._seals.out.close(encode(message)))
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
        return decode(self._seals.into.open(line)) if line else None

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(self._silence_s / BEATS_PER_LIMIT)
            await self.send(Beat())

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._writer.close()


class ControlServer:
    """Rank 0's end: every other rank connects to it."""

    def __init__(self, ranks: int, secret: Secret, silence_s: float) -> None:
        self._expected, self._secret, self._silence_s = set(range(1, ranks)), secret, silence_s
        self._lines: dict[int, _Line] = {}
        self._taken: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unproven: dict[asyncio.Task[None], None] = {}
        self._joined = asyncio.Event()
        self._door: asyncio.Task[None] | None = None
        self.inbox: asyncio.Queue[tuple[int, Message]] = asyncio.Queue()
        """(rank, message); a lost rank is the message `Lost`."""
        self.leaving: set[int] = set()
        """Ranks whose task was told to end: they only stop their engine."""
        if not self._expected:
            self._joined.set()

    async def open(self, port: int, host: str = EVERYWHERE) -> None:
        """Listen on an address of this host until every rank has joined. RunError: the port is taken."""
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            taken = error.errno == errno.EADDRINUSE
            reason = f"it is taken by {(await aside(holder, port)).text}" if taken else str(error)
            raise RunError("cluster.control_port", port, reason, "Set cluster.control_port to a free port.") from None
        self._door = asyncio.create_task(self._answer_the_door(listener))

    async def joined(self, timeout_s: float) -> None:
        """Wait until every rank has joined. RunError: some have not within the limit."""
        try:
            await asyncio.wait_for(self._joined.wait(), timeout_s)
        except TimeoutError:
            missing = ", ".join(f"rank {r}" for r in sorted(self._expected - self._lines.keys()))
            reason = f"{missing} did not reach rank 0 in time"
            remedy = "See stdout of that rank; check that the nodes reach each other on the control port."
            raise RunError("limits.rendezvous_s", timeout_s, reason, remedy) from None

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
        if self._door:
            self._door.cancel()
            await asyncio.wait({self._door})

    async def _answer_the_door(self, listener: socket.socket) -> None:
        with listener:
            try:
                while accepted := await first_of(_accept(listener), self._joined):
                    self._hear(accepted.result())
            finally:
                for one in self._unproven:
                    one.cancel()

    def _hear(self, stranger: socket.socket) -> None:
        if len(self._unproven) >= UNPROVEN:
            oldest = next(iter(self._unproven))
            oldest.cancel()
            del self._unproven[oldest]
        task = asyncio.create_task(self._admit(stranger))
        self._unproven[task] = None
        task.add_done_callback(lambda done: self._unproven.pop(done, None))

    async def _admit(self, sock: socket.socket) -> None:
        with contextlib.ExitStack() as refusal:
            refusal.enter_context(sock)
            with contextlib.suppress(OSError):  # a time-out is one too
                found = await admit(sock, self._secret)
                if found is None or found[0] not in self._expected - self._taken:
                    return
                rank, proof, seals = found
                self._taken.add(rank)
                refusal.callback(self._taken.discard, rank)
                line = await _Line.over(sock, seals, self._silence_s)
                refusal.pop_all()
                line.welcome(proof)
                self._lines[rank] = line
                self._tasks.add(asyncio.create_task(self._listen(rank, line)))
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
        self._taken.discard(rank)
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


async def join(host: str, port: int, rank: int, secret: Secret, silence_s: float, timeout_s: float) -> ControlClient:
    """Connect this rank to rank 0, trying again until it answers.

    Raises:
        RunError: rank 0 did not answer within `timeout_s` seconds.
    """
    last = "no attempt"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return ControlClient(await _enter(host, port, rank, secret, silence_s))
                except (ConnectionResetError, BrokenPipeError):
                    last = "rank 0 refused this rank"
                except (OSError, TimeoutError) as error:
                    last = str(error) or type(error).__name__
                await asyncio.sleep(0.2)
    reason = f"rank {rank} did not reach rank 0 at {host}:{port}: {last}"
    remedy = "See stdout of rank 0; check that the nodes reach each other on that port."
    raise RunError("limits.rendezvous_s", timeout_s, reason, remedy)


async def _enter(host: str, port: int, rank: int, secret: Secret, silence_s: float) -> _Line:
    loop = asyncio.get_running_loop()
    [*_, address] = (await loop.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_STREAM))[0]
    with contextlib.ExitStack() as failure:
        sock = failure.enter_context(socket.socket())
        sock.setblocking(False)
        async with asyncio.timeout(LIMIT_S):  # the kernel would try again at longer and longer intervals
            await loop.sock_connect(sock, address)
        line = await _Line.over(sock, await enter(sock, secret, rank), silence_s)
        failure.pop_all()
        return line


async def _accept(listener: socket.socket) -> socket.socket:
    while True:
        with contextlib.suppress(OSError):  # gone again, or no descriptor is left
            return (await asyncio.get_running_loop().sock_accept(listener))[0]
        await asyncio.sleep(0.1)
