"""HTTP/1.1 for streamed answers: each piece of an answer is stamped and handed on in the call that reads it.

A general HTTP client wakes a task for every piece, and the stamp then also holds the turn of every other stream.
With 256 streams written in step, as a batching engine does, that (aiohttp 3.14) moved ITL p99 by 5 to 9 %, the
stamp taken here by about 1 %, and for less processor time (`benchmarks/client_overhead.py`). It asks for no
encoding, follows no redirect and uses no proxy: between the load and the service there is nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

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
    """Keep-alive connections to one service.

    Args:
        base_url: http or https URL; a path in it stands before every path.
        headers: sent with every request.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"no http or https URL: {base_url!r}")
        self._tls = url.scheme == "https"
        self._host, self._port = url.hostname, url.port or (443 if self._tls else 80)
        self._prefix = url.path.rstrip("/")
        fixed = {"Host": url.netloc.rpartition("@")[2], "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        self._idle: list[tuple[float, _Connection]] = []

    async def request(self, method: str, path: str, body: bytes, sink: Sink) -> tuple[int, bytes]:
        """Send one request and hand the body of a 200 answer to `sink` as it arrives.

        Returns:
            The status, and the body of an answer with another status.

        Raises:
            OSError: no connection within `CONNECT_S`, or it broke before the end of the answer.
        """
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
        connection = self._unused() or await self._connect()
        try:
            answer = await connection.exchange(head.encode("latin-1") + body, sink)
        except BaseException:  # cancellation too: half an answer is still to come on this connection
            connection.abort()
            raise
        if connection.reusable:
            self._idle.append((clock(), connection))
        else:
            connection.abort()
        return answer

    def close(self) -> None:
        """Close all idle connections."""
        for _, connection in self._idle:
            connection.abort()
        self._idle.clear()

    def _unused(self) -> _Connection | None:
        while self._idle:
            since, connection = self._idle.pop()
            if connection.reusable and clock() - since < IDLE_S:
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
        return connection


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    _transport: asyncio.Transport
    _sink: Sink
    _done: asyncio.Future[None]

    def __init__(self) -> None:
        self.reusable = True
        self._busy = self._chunked = False
        self._status = 0
        self._left: int | None = None  # bytes of the body to come; None: until the connection closes
        self._rest = self._refusal = b""

    async def exchange(self, message: bytes, sink: Sink) -> tuple[int, bytes]:
        self._sink, self._status, self._rest, self._refusal = sink, 0, b"", b""
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

    def data_received(self, data: bytes) -> None:
        now = clock()
        if not self._busy:
            self.abort()  # an answer that nobody asked for
            return
        data = self._rest + data
        if not self._status:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                return
            self._begin(head)
        if self._chunked:
            self._unchunk(data, now)
        else:
            self._rest = b""
            self._pass_on(data, now)
            if self._left is not None:
                self._left -= len(data)
                if self._left <= 0:
                    self._end(clean=self._left == 0)

    def eof_received(self) -> None:
        self.reusable = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        if not self._busy:
            return
        if exc is None and self._status and not self._chunked and self._left is None:
            self._end(clean=False)
        elif not self._done.done():
            self._done.set_exception(
                exc if isinstance(exc, OSError) else WireError(exc or "connection closed before the end of the answer")
            )

    def _begin(self, head: bytes) -> None:
        status, *lines = head.decode("latin-1").split("\r\n")
        protocol, _, rest = status.partition(" ")
        if not protocol.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise WireError(f"no HTTP answer: {status[:80]!r}")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip().lower() for name, _, value in pairs}
        self._status = int(rest[:3])
        self._chunked = headers.get("transfer-encoding") == "chunked"
        self._left = int(headers["content-length"]) if "content-length" in headers else None
        self.reusable = protocol == "HTTP/1.1" and headers.get("connection") != "close"

    def _unchunk(self, data: bytes, now: float) -> None:
        position = 0
        while (line := data.find(b"\r\n", position)) >= 0:
            size = _size(data[position:line])
            end = line + 2 + size + 2
            if end > len(data):
                break
            if size == 0:
                self._end(clean=end == len(data))
                return
            self._pass_on(data[line + 2 : end - 2], now)
            position = end
        self._rest = data[position:]

    def _pass_on(self, data: bytes, now: float) -> None:
        if self._status == 200:
            self._sink(data, now)
        else:
            self._refusal += data

    def _end(self, *, clean: bool) -> None:
        self._busy = False
        self.reusable &= clean
        if not self._done.done():
            self._done.set_result(None)


def _size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise WireError(f"no chunk size: {line[:40]!r}") from None


async def request_json(
    connections: Connections, path: str, body: Mapping[str, Any], limit_s: float
) -> tuple[int, dict[str, Any]]:
    """Send one request and return its status and JSON object.

    Status 0: no answer; then, and where the answer is no JSON object, {"error": words} stands for it.
    """
    pieces: list[bytes] = []
    message = json.dumps(body, ensure_ascii=False).encode()
    try:
        async with asyncio.timeout(limit_s):
            status, refusal = await connections.request("POST", path, message, lambda data, _: pieces.append(data))
    except TimeoutError:
        return 0, {"error": f"no answer within {limit_s:g} s"}
    except OSError as error:
        return 0, {"error": str(error) or type(error).__name__}
    text = (b"".join(pieces) if status == 200 else refusal).decode(errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    return status, answer if isinstance(answer, dict) else {"error": text[:300]}
