"""A stub of a streaming completions server with a known schedule, for benchmarks of the load client.

Every stream gets its first token `--ttft-ms` after its request is complete and `--rate` tokens/s from then on,
on absolute due times, so a late write does not shift the next. With `--lockstep` the due times lie on one common
grid, as the steps of a batching engine do. The moments of the real writes are kept (`GET /truth`): they are what
a client's figures are judged by. `time.perf_counter` is CLOCK_MONOTONIC on Linux, so the times of two processes
on one machine compare directly. A raw asyncio protocol and pre-made bytes keep the stub cheaper than any client.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import math
import time
from array import array
from typing import Any

clock = time.perf_counter

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    b"server: stub\r\n\r\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(**fields: Any) -> bytes:
    head = {"id": "cmpl-" + "0" * 32, "object": "text_completion", "created": 1750000000, "model": "stub"}
    return b"data: " + json.dumps(head | fields, separators=(",", ":")).encode() + b"\n\n"


def _token(finish: str | None) -> bytes:
    choice = {"index": 0, "text": " token", "logprobs": None, "finish_reason": finish, "stop_reason": None}
    return _chunk(_event(choices=[choice], usage=None))


_TOKEN, _LAST = _token(None), _token("length")


def _end(prompt: int, output: int) -> bytes:
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}
    return _chunk(_event(choices=[], usage=usage)) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Stream:
    """One answer under way, and the truth about it."""

    __slots__ = ("connection", "due", "first_due", "key", "received", "sent", "tail", "tokens")

    def __init__(self, connection: Connection, key: str, prompt: int, tokens: int, first_due: float) -> None:
        self.connection, self.key, self.tokens = connection, key, tokens
        self.received, self.first_due, self.due = clock(), first_due, first_due
        self.sent = array("d")
        self.tail = _LAST + _end(prompt, tokens)


class Schedule:
    """All streams in one heap by due time, behind one timer."""

    def __init__(self, ttft_s: float, rate: float, lockstep: bool) -> None:
        self.ttft_s, self.gap_s, self.lockstep = ttft_s, 1.0 / rate, lockstep
        self.loop = asyncio.get_running_loop()
        self.heap: list[tuple[float, int, Stream]] = []
        self.started = self.tokens = self.active = 0
        self.done: list[Stream] = []
        self.timer: asyncio.TimerHandle | None = None

    def add(self, connection: Connection, key: str, prompt: int, tokens: int) -> None:
        """Start a stream of `tokens` tokens."""
        due = clock() + self.ttft_s
        if self.lockstep:
            due = math.ceil(due / self.gap_s) * self.gap_s
        self.started += 1
        self.active += 1
        heapq.heappush(self.heap, (due, self.started, Stream(connection, key, prompt, tokens, due)))
        self._arm()

    def _arm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.heap:
            self.timer = self.loop.call_later(max(0.0, self.heap[0][0] - clock()), self._tick)

    def _tick(self) -> None:
        heap, gap = self.heap, self.gap_s
        while heap and heap[0][0] <= clock():
            _, order, stream = heap[0]
            if stream.connection.transport.is_closing():
                heapq.heappop(heap)
                self.active -= 1
                continue
            stream.sent.append(clock())
            self.tokens += 1
            count = len(stream.sent)
            if count < stream.tokens:
                stream.connection.transport.write(_TOKEN)
                heapq.heapreplace(heap, (stream.first_due + count * gap, order, stream))
            else:
                stream.connection.transport.write(stream.tail)
                heapq.heappop(heap)
                self.active -= 1
                self.done.append(stream)
        self._arm()

    def truth(self) -> dict[str, Any]:
        """Return when each ended stream's request was complete and each of its tokens was written, by prompt."""
        return {s.key: {"received": s.received, "sent": s.sent.tolist()} for s in self.done}

    def stats(self) -> dict[str, int]:
        """Return counts: tokens written, streams that run, streams ever started."""
        return {"tokens": self.tokens, "active": self.active, "started": self.started}


class Connection(asyncio.Protocol):
    """HTTP/1.1, keep-alive, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.buffer = schedule, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer once head and body of a request are there."""
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(body) < length:
            return
        self.buffer = body[length:]
        self._answer(head.split(b" ", 2)[1].decode(), body[:length])

    def _answer(self, path: str, body: bytes) -> None:
        if path == "/v1/completions":
            request = json.loads(body)
            prompt = request["prompt"]
            ids = isinstance(prompt, list)
            key = ",".join(map(str, prompt[:8])) if ids else prompt[:64]
            self.transport.write(_HEAD)
            self.schedule.add(self, key, len(prompt) if ids else 0, request["max_tokens"])
            return
        answers = {"/truth": self.schedule.truth, "/stats": self.schedule.stats}
        answer = json.dumps(answers[path]() if path in answers else {}).encode()
        status = b"200 OK" if path in answers or path == "/health" else b"404 Not Found"
        self.transport.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(answer), answer))


async def serve(port: int, ttft_s: float, rate: float, lockstep: bool) -> None:
    """Serve on loopback until cancelled; print the port once it listens."""
    schedule = Schedule(ttft_s, rate, lockstep)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(schedule), "127.0.0.1", port, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--rate", type=float, default=45.0, help="tokens/s of one stream")
    parser.add_argument("--lockstep", action="store_true", help="all streams on one grid of due times")
    args = parser.parse_args()
    asyncio.run(serve(args.port, args.ttft_ms / 1000, args.rate, args.lockstep))


if __name__ == "__main__":
    main()
