"""HTTP/1.1 for streamed answers: each piece of an answer is stamped and handed on in the call that reads it.

A general HTTP client wakes a task for every piece, and the stamp then also holds the turn of every other stream.
With 256 streams written in step, as a batching engine does, that (aiohttp 3.14) moved ITL p99 by 5 to 9 %, the
stamp taken here by about 1 %, and for less processor time (`benchmarks/client_overhead.py`). In a `Loop` it is the
moment of the poll that found the bytes: the turns of the streams that are read before are not in it. The bytes are read
by llhttp (httptools), for 0.4 of the time of a parser in Python. It asks for no encoding, follows no redirect and uses
no proxy: between the load and the service there is nothing.
"""

from __future__ import annotations

import asyncio
import json
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from jobs.core import listening
from jobs.core.loop import Loop
from jobs.measure.records import Target

clock = time.perf_counter

Sink = Callable[[bytes, float], None]
"""Takes the next bytes of an answer's body and the moment of their arrival."""

CONNECT_S = 10.0
IDLE_S = 2.0
"""Idle connections are not used again after this long. vLLM closes them after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE): a
request that is sent at just that moment would fail through no fault of the service."""


class WireError(ConnectionError):
    """The answer is not one in HTTP/1.1, or it ended too early."""


class Connections:
    """Keep-alive connections to one service: of several addresses the one with the fewest requests in flight is taken.

    Args:
        base_url: http or https URL; a path in it stands before every path.
        headers: sent with every request.
        further: the same of its replicas, which take turns where they have equally much to do.
        engines: data-parallel engines of each address.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str], further: Sequence[str] = (), engines: int = 1
    ) -> None:
        self._addresses = [_Address(url, headers) for url in (base_url, *further)]
        self._turn, self.engines = 0, engines

    @classmethod
    def to(cls, target: Target) -> Connections:
        """Return connections to all addresses of a service."""
        return cls(target.base_url, target.headers, target.further, target.engines)

    @property
    def addresses(self) -> int:
        """How many addresses the service has."""
        return len(self._addresses)

    async def request(
        self, method: str, path: str, body: bytes, sink: Sink, at: int | None = None, headers: str = ""
    ) -> tuple[int, bytes]:
        """Send one request and hand the body of a 200 answer to `sink` as it arrives.

        `at`: number of the address; None: the one that has least to do. `headers`: further whole lines of the head.
        Returns the status, and the body of an answer with another status.

        Raises:
            OSError: no connection within `CONNECT_S`, or it broke before the end of the answer.
        """
        return await self._addresses[self._quietest() if at is None else at].request(method, path, body, sink, headers)

    def close(self) -> None:
        """Close all idle connections."""
        for one in self._addresses:
            one.close()

    def _quietest(self) -> int:
        count = len(self._addresses)
        found = min(range(count), key=lambda at: (self._addresses[at].busy, (at - self._turn) % count))
        self._turn = found + 1
        return found


class _Address:
    """Connections to one address."""

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        self.busy = 0
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"no http or https URL: {base_url!r}")
        self._tls = url.scheme == "https"
        self._host, self._port = url.hostname, url.port or (443 if self._tls else 80)
        self._prefix = url.path.rstrip("/")
        fixed = {"Host": url.netloc.rpartition("@")[2], "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        self._idle: list[tuple[float, _Connection]] = []

    async def request(self, method: str, path: str, body: bytes, sink: Sink, headers: str) -> tuple[int, bytes]:
        lines = f"{self._headers}{headers}Content-Length: {len(body)}\r\n\r\n"
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{lines}"
        self.busy += 1
        try:
            return await self._send(head.encode("latin-1") + body, sink)
        finally:
            self.busy -= 1

    async def _send(self, message: bytes, sink: Sink) -> tuple[int, bytes]:
        connection = self._unused() or await self._connect()
        try:
            answer = await connection.exchange(message, sink)
        except BaseException:  # cancellation too: half an answer is still to come on this connection
            connection.abort()
            raise
        if connection.reusable:
            self._idle.append((clock(), connection))
        else:
            connection.abort()
        return answer

    def close(self) -> None:
        for _, connection in self._idle:
            connection.abort()
        self._idle.clear()

    def _unused(self) -> _Connection | None:
        while self._idle:
            since, connection = self._idle.pop()
            if connection.reusable and clock() - since < IDLE_S and not connection.is_heard:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(
                    _Connection, self._host, self._port, ssl=True if self._tls else None
                )
        except TimeoutError:
            raise TimeoutError(f"no connection to {self._host}:{self._port} in {CONNECT_S:g} s") from None
        if (stranger := connection.stranger()) is not None:
            connection.abort()
            raise WireError(f"{stranger} listens in the service's place")
        return connection


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. llhttp reads its answers and calls the methods `on_...`."""

    _transport: asyncio.Transport
    _sink: Sink
    _done: asyncio.Future[None]
    _parser: HttpResponseParser

    def __init__(self) -> None:
        self.reusable = True
        self._busy = self._framed = False  # framed: the answer says itself where it ends
        self._status = 0
        self._now = 0.0
        self._refusal = b""

    def stranger(self) -> str | None:
        """Return who has the port on this host, where that is neither this user nor root: its engine may have died.

        Nobody is one too: whoever took this connection may have closed the port since.
        """
        here, there = (self._transport.get_extra_info(name) for name in ("sockname", "peername"))
        if len(there) != 2 or here[0] != there[0]:
            return None  # another host
        try:
            uid = listening.owner(*there)
        except OSError:
            return None  # this kernel does not tell
        return "nobody" if uid is None else listening.stranger(uid)

    @property
    def is_heard(self) -> bool:
        """Whether anything lies unread on an idle connection: its end, of which the loop has not told yet."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    async def exchange(self, message: bytes, sink: Sink) -> tuple[int, bytes]:
        self._sink, self._status, self._framed, self._refusal = sink, 0, False, b""
        self._parser = HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._busy = True
        self._transport.write(message)
        await self._done
        return self._status, self._refusal

    def abort(self) -> None:
        self.reusable = self._busy = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._polls = loop.polls if isinstance(loop, Loop) else None

    def data_received(self, data: bytes) -> None:
        self._now = self._polls.stamp() if self._polls else clock()
        try:
            if self._busy:
                self._parser.feed_data(data)
                return
        except HttpParserError as error:
            if self._busy:
                raise WireError(f"no HTTP answer: {error}: {data[:80]!r}") from None
        self.abort()  # an answer that nobody asked for

    def eof_received(self) -> None:
        self.reusable = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        if not self._busy:
            return
        if exc is None and self._status and not self._framed:
            self._end()
        elif not self._done.done():
            self._done.set_exception(
                exc if isinstance(exc, OSError) else WireError(exc or "connection closed before the end of the answer")
            )

    def on_message_begin(self) -> None:
        self.reusable &= self._busy  # else it is one more than was asked for

    def on_header(self, name: bytes, _: bytes) -> None:
        self._framed |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code() if self._busy else self._status

    def on_body(self, data: bytes) -> None:
        if self._busy and self._status == 200:
            self._sink(data, self._now)
        elif self._busy:
            self._refusal += data

    def on_message_complete(self) -> None:
        if 100 <= self._status < 200:  # interim (RFC 9110, 15.2): the answer is still to come
            self._status = 0
        elif self._busy:
            self.reusable &= self._parser.should_keep_alive()
            self._end()

    def _end(self) -> None:
        self._busy = False
        if not self._done.done():
            self._done.set_result(None)


async def request_text(
    connections: Connections,
    path: str,
    limit_s: float,
    body: Mapping[str, Any] | None = None,
    at: int | None = None,
    headers: str = "",
) -> tuple[int, str]:
    """Send one request, a GET where it has no body. Returns the status and the text of the answer.

    Raises:
        OSError: see `Connections.request`; TimeoutError: no whole answer within `limit_s`.
    """
    pieces: list[bytes] = []
    method, message = ("GET", b"") if body is None else ("POST", json.dumps(body, ensure_ascii=False).encode())
    async with asyncio.timeout(limit_s):
        status, refusal = await connections.request(
            method, path, message, lambda data, _: pieces.append(data), at, headers
        )
    return status, (b"".join(pieces) if status == 200 else refusal).decode(errors="replace")


async def request_json(
    connections: Connections, path: str, body: Mapping[str, Any], limit_s: float
) -> tuple[int, dict[str, Any]]:
    """Send one request and return its status and JSON object.

    Status 0: no answer; then, and where the answer is no JSON object, {"error": words} stands for it.
    """
    try:
        status, text = await request_text(connections, path, limit_s, body)
    except OSError as error:
        return 0, {"error": no_answer(error, limit_s)}
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    return status, answer if isinstance(answer, dict) else {"error": text[:300]}


def no_answer(error: OSError, limit_s: float) -> str:
    """Return in words why no answer came."""
    return f"no answer within {limit_s:g} s" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
