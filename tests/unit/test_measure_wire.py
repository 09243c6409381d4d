"""HTTP/1.1 as it comes over the wire: framings, splits, reuse of connections, and connections that break."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from jobs.core import loop as loops
from jobs.core.loop import Loop
from jobs.measure import wire
from jobs.measure.wire import Connections, WireError, clock

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: Chunked\r\n\r\n"
CHUNKS = b"5\r\nhello\r\n" + b"b;x=1\r\n wide\r\nworl\r\n" + b"1\r\nd\r\n" + b"0\r\n\r\n"

Reply = Callable[["Server", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Reads whole requests and lets `reply` write whatever it wants."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.startswith(b"Content-Length"))
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(length))
                await self.reply(self, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(reply: Reply) -> AsyncIterator[tuple[Server, Connections]]:
    server = Server(reply)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    connections = Connections(f"http://127.0.0.1:{server.port}/base/", {"X-Key": "v"})
    try:
        yield server, connections
    finally:
        connections.close()
        listener.close()


def says(*pieces: bytes, close: bool = False) -> Reply:
    async def reply(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return reply


async def ask(connections: Connections, body: bytes = b"{}") -> tuple[int, bytes, bytes]:
    """Return the status, the body that went to the sink and the body that was refused."""
    taken: list[bytes] = []
    status, refusal = await connections.request("POST", "/path", body, lambda data, _: taken.append(data))
    return status, b"".join(taken), refusal


async def test_the_request_is_well_formed() -> None:
    async with serving(says(CHUNKED + CHUNKS)) as (server, connections):
        await ask(connections, b"x" * 3_000_000)
        lines = server.heads[0].split(b"\r\n")
        assert lines[0] == b"POST /base/path HTTP/1.1"
        assert lines[-2:] == [b"", b""]
        assert set(lines[1:-2]) == {
            b"Host: 127.0.0.1:%d" % server.port,
            b"Accept: */*",
            b"Accept-Encoding: identity",
            b"X-Key: v",
            b"Content-Length: 3000000",
        }
        assert server.bodies == [b"x" * 3_000_000]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
async def test_chunks_come_out_whole_however_they_are_cut(step: int) -> None:
    message = CHUNKED + CHUNKS
    pieces = [message[i : i + step] for i in range(0, len(message), step)]
    async with serving(says(*pieces)) as (server, connections):
        for _ in range(2):
            assert await ask(connections) == (200, b"hello wide\r\nworld", b"")
        assert server.connections == 1


@pytest.mark.parametrize(
    "interim",
    [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Busy\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"],
)
async def test_every_byte_pattern_of_cuts_in_the_parser(interim: bytes) -> None:
    """The same without a network, so that the cuts are where they are said to be; interim answers are none."""
    message = interim + CHUNKED + CHUNKS
    for cut in range(1, len(message)):
        connection = wire._Connection()
        transport = _NoTransport()
        connection.connection_made(transport)
        taken: list[bytes] = []
        exchange = asyncio.ensure_future(connection.exchange(b"", lambda data, _, taken=taken: taken.append(data)))
        await asyncio.sleep(0)
        connection.data_received(message[:cut])
        connection.data_received(message[cut:])
        assert await exchange == (200, b"")
        assert b"".join(taken) == b"hello wide\r\nworld"
        assert connection.reusable


class _NoTransport(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert data == b""


async def test_each_piece_is_stamped_when_it_is_read() -> None:
    go = asyncio.Event()

    async def reply(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await go.wait()
        writer.write(b"1\r\nb\r\n0\r\n\r\n")

    stamps: list[float] = []
    moment = 0.0

    def sink(data: bytes, now: float) -> None:
        nonlocal moment
        stamps.append(now)
        if data == b"a":
            moment = clock()
            go.set()

    async with serving(reply) as (_, connections):
        begun = clock()
        await connections.request("POST", "/", b"", sink)
    assert begun < stamps[0] <= moment < stamps[1] <= clock()


async def test_content_length_and_reuse() -> None:
    async with serving(says(OK + b"content-length: 5\r\n\r\nhel", b"lo")) as (server, connections):
        for _ in range(3):
            assert await ask(connections) == (200, b"hello", b"")
        assert server.connections == 1


async def test_an_empty_body_ends_at_once() -> None:
    async with serving(says(OK + b"Content-Length: 0\r\n\r\n")) as (_, connections):
        assert await ask(connections) == (200, b"", b"")
    async with serving(says(b"HTTP/1.1 204 No Content\r\n\r\n")) as (_, connections):
        assert await ask(connections) == (204, b"", b"")


async def test_a_body_without_length_ends_with_the_connection() -> None:
    async with serving(says(OK + b"\r\n", b"hello", close=True)) as (server, connections):
        for _ in range(2):
            assert await ask(connections) == (200, b"hello", b"")
        assert server.connections == 2


async def test_another_status_keeps_its_body_from_the_sink() -> None:
    async with serving(says(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")) as (server, connections):
        for _ in range(2):
            assert await ask(connections) == (503, b"", b"busy")
        assert server.connections == 1


async def test_connection_close_is_obeyed() -> None:
    async with serving(says(OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok")) as (server, connections):
        for _ in range(2):
            await ask(connections)
        assert server.connections == 2


async def test_concurrent_requests_have_connections_of_their_own_and_leave_them_for_reuse() -> None:
    everyone = asyncio.Barrier(3)

    async def reply(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await everyone.wait()
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")

    async with serving(reply) as (server, connections):
        for _ in range(2):
            await asyncio.gather(*(ask(connections) for _ in range(3)))
        assert server.connections == 3


async def test_an_old_idle_connection_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "IDLE_S", 0.0)
    async with serving(says(OK + b"Content-Length: 2\r\n\r\nok")) as (server, connections):
        for _ in range(2):
            await ask(connections)
        assert server.connections == 2


async def test_a_connection_that_the_server_closed_while_idle_is_not_used() -> None:
    closed = asyncio.Event()

    async def reply(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with serving(reply) as (server, connections):
        for _ in range(3):
            assert (await ask(connections))[0] == 200
            await closed.wait()
            closed.clear()
            await asyncio.sleep(0.01)  # the FIN of a loopback connection
        assert server.connections == 3


@pytest.mark.parametrize(
    "message",
    [
        b"",
        OK[:10],
        CHUNKED,
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        OK + b"Content-Length: 9\r\n\r\nhello",
    ],
)
async def test_an_answer_that_ends_too_early_is_an_error(message: bytes) -> None:
    async with serving(says(message, close=True)) as (_, connections):
        with pytest.raises(WireError, match="closed before the end of the answer"):
            await ask(connections)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP answer: Expected HTTP.*SSH-2.0-OpenSSH"),
        (b"HTTP/1.1 abc\r\n\r\n", "no HTTP answer"),
        (CHUNKED + b"zz\r\nhello\r\n", "no HTTP answer: Invalid character in chunk size"),
    ],
)
async def test_nonsense_is_an_error(message: bytes, words: str) -> None:
    async with serving(says(message)) as (_, connections):
        with pytest.raises(WireError, match=words):
            await ask(connections)


async def test_a_reset_is_an_error_and_the_next_request_gets_a_new_connection() -> None:
    async def reply(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if server.connections == 1:
            reset: socket.socket = writer.get_extra_info("socket")
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.write(OK + b"Content-Length: 2\r\n\r\nok")

    async with serving(reply) as (_, connections):
        with pytest.raises(ConnectionResetError):
            await ask(connections)
        assert (await ask(connections))[0] == 200


async def test_a_refused_connection_is_an_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await ask(Connections(f"http://127.0.0.1:{closed.getsockname()[1]}", {}))


async def test_a_connection_that_does_not_come_about_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "CONNECT_S", 0.05)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        filled = socket.create_connection(("127.0.0.1", port))  # the backlog: the next SYN is not answered
        with filled, pytest.raises(TimeoutError, match=f"no connection to 127.0.0.1:{port} in 0.05 s"):
            await ask(Connections(f"http://127.0.0.1:{port}", {}))


async def test_a_cancelled_request_does_not_leave_its_connection_behind() -> None:
    arrived, hung_up = asyncio.Event(), asyncio.Event()

    async def reply(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(server.heads) == 1:
            arrived.set()
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            hung_up.set()
            return
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")

    async with serving(reply) as (server, connections):
        task = asyncio.ensure_future(ask(connections))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):
            await hung_up.wait()
        assert (await ask(connections))[0] == 200
        assert server.connections == 2


@pytest.mark.parametrize("more", [b"more", CHUNKED + CHUNKS, b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"])
async def test_bytes_after_the_answer_spoil_the_connection(more: bytes) -> None:
    async with serving(says(CHUNKED + CHUNKS + more)) as (server, connections):
        for _ in range(2):
            assert await ask(connections) == (200, b"hello wide\r\nworld", b"")
        assert server.connections == 2


@pytest.mark.parametrize("url", ["ftp://h", "127.0.0.1:80", "http://"])
def test_another_url_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match="no http or https URL"):
        Connections(url, {})


async def stamps(read: Callable[[], None] = lambda: None) -> list[float]:
    """Return the stamps of four answers that come in one moment; `read` is called after each."""
    loop, found = asyncio.get_running_loop(), list[float]()
    pairs = [socket.socketpair() for _ in range(4)]
    asked = []

    def sink(_: bytes, now: float) -> None:
        found.append(now)
        read()

    for ours, _ in pairs:
        ours.setblocking(False)
        _, connection = await loop.create_connection(wire._Connection, sock=ours)
        asked.append(asyncio.ensure_future(connection.exchange(b"GET", sink)))
    await asyncio.sleep(0)
    for _, theirs in pairs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")
    await asyncio.gather(*asked)
    for (_, theirs), one in zip(pairs, asked, strict=True):
        assert one.result() == (200, b"")
        theirs.close()
    return found


def test_answers_that_one_poll_found_have_one_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a batching engine: the stamp of a stream does not hold the turns of the others."""
    monkeypatch.setattr(loops, "STOOD_S", math.inf)  # whatever else this machine does
    with asyncio.Runner(loop_factory=Loop) as runner:
        assert len(set(runner.run(stamps()))) == 1
    with asyncio.Runner() as runner:
        assert len(set(runner.run(stamps()))) == 4, "elsewhere each has that of its reading"


def test_what_is_read_after_the_process_stood_still_has_a_stamp_of_its_own() -> None:
    """What came meanwhile would else seem to have come before: a whole answer in no time at all."""
    stood: list[float] = []

    def stand() -> None:
        until = clock() + 2 * loops.STOOD_S
        while clock() < until:
            pass
        stood.append(until)

    with asyncio.Runner(loop_factory=Loop) as runner:
        first, *others = runner.run(stamps(stand))
    assert first < stood[0] and all(now >= until for now, until in zip(others, stood, strict=False))
