"""The channel between the ranks, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from core_help import ROOT

from jobs.allocation import handshake
from jobs.allocation.control import UNPROVEN, ControlClient, ControlServer, join
from jobs.allocation.handshake import HELLO, SIZE, Secret
from jobs.allocation.messages import Bye, Ended, Inspect, Lost, Phase, Stop, Stopped, encode
from jobs.core.errors import RunError

KEY = "the key"
SECRET = Secret(KEY, "7")
SILENCE_S = 0.3
PATIENCE_S = 20.0
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def soon(work: Awaitable[T]) -> T:
    """Await an event that must come."""
    return await asyncio.wait_for(work, PATIENCE_S)


@asynccontextmanager
async def control(ranks: int = 2, silence_s: float = 5.0) -> AsyncIterator[tuple[ControlServer, int]]:
    made, port = ControlServer(ranks, SECRET, silence_s), free_port()
    await made.open(port)
    try:
        yield made, port
    finally:
        await made.close()


@asynccontextmanager
async def peer(
    port: int, rank: int = 1, secret: Secret = SECRET, silence_s: float = 5.0
) -> AsyncIterator[ControlClient]:
    client = await join("127.0.0.1", port, rank, secret, silence_s, PATIENCE_S)
    try:
        yield client
    finally:
        client.close()


async def lost(made: ControlServer) -> tuple[int, str]:
    rank, message = await soon(made.inbox.get())
    assert isinstance(message, Lost)
    return rank, message.reason


async def test_messages_pass_both_ways_in_their_order() -> None:
    async with control(3) as (made, port), peer(port, 1) as one, peer(port, 2) as two:
        await made.joined(PATIENCE_S)
        assert made.present == {1, 2}
        for n in range(20):
            await made.send(Phase('ü\n"x"', {"n": n}))
            await two.send(Ended("it ended", float(n)))
        for client in (one, two):
            received = [await soon(client.receive()) for _ in range(20)]
            assert received == [Phase('ü\n"x"', {"n": n}) for n in range(20)]
        assert [await soon(made.inbox.get()) for _ in range(20)] == [
            (2, Ended("it ended", float(n))) for n in range(20)
        ]


async def test_one_rank_alone_waits_for_nobody() -> None:
    async with control(1) as (made, _):
        await made.joined(0.01)
        assert made.present == set()


async def test_joined_names_the_ranks_that_are_missing() -> None:
    async with control(4) as (made, port), peer(port, 2):
        with pytest.raises(RunError) as caught:
            await made.joined(0.1)
        assert caught.value.key == "limits.rendezvous_s"
        assert caught.value.reason.startswith("rank 1, rank 3 did not reach rank 0")


async def test_a_rank_may_come_before_rank_0_is_there() -> None:
    made, port = ControlServer(2, SECRET, 5.0), free_port()
    early = asyncio.create_task(join("127.0.0.1", port, 1, SECRET, 5.0, PATIENCE_S))
    await asyncio.sleep(0)
    await made.open(port)
    client = await soon(early)
    await made.joined(PATIENCE_S)
    client.close()
    await made.close()


async def test_a_wrong_key_is_refused() -> None:
    async with control() as (made, port):
        with pytest.raises(RunError, match=r"rank 1 did not reach rank 0 at 127.0.0.1:.*refused this rank"):
            await join("127.0.0.1", port, 1, Secret("another key", "7"), 5.0, 0.3)
        assert made.present == set()
        assert made.inbox.empty()


async def test_a_second_rank_of_the_same_number_is_refused_and_the_first_stays() -> None:
    async with control(3) as (made, port), peer(port, 1) as first:
        with pytest.raises(RunError, match="refused"):
            await join("127.0.0.1", port, 1, SECRET, 5.0, 0.3)
        assert made.present == {1}
        await first.send(Ended("still the first", 1.0))
        assert await soon(made.inbox.get()) == (1, Ended("still the first", 1.0))


async def knock(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


async def heard(sock: socket.socket, size: int) -> bytes:
    """Return so many bytes, or less at the end of the connection."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while len(got) < size and (more := await soon(asyncio.get_running_loop().sock_recv(sock, size - len(got)))):
            got += more
    return got


def hello(rank: int, head: bytes, own: bytes = b"n" * SIZE, secret: Secret = SECRET, use: str = "rank") -> bytes:
    return HELLO.pack(rank, own, secret.mac(use, rank, (head, own)))


@pytest.mark.parametrize("rank", [0, 2, 2**32 - 1])
async def test_a_number_that_is_not_expected_is_refused(rank: int) -> None:
    async with control(2) as (made, port):
        with await knock(port) as sock:
            sock.send(hello(rank, await heard(sock, SIZE)))
            assert await heard(sock, 1) == b""
        assert made.present == set()
        async with peer(port):
            await made.joined(PATIENCE_S)


async def test_a_proof_holds_for_its_rank_role_job_key_and_connection_alone() -> None:
    async with control(3) as (made, port):
        with await knock(port) as first:
            other = await heard(first, SIZE)
            for proof in (
                lambda nonce: hello(1, other),
                lambda nonce: hello(1, nonce, use="head"),
                lambda nonce: hello(1, nonce, secret=Secret(KEY, "8")),
                lambda nonce: hello(1, nonce, secret=Secret("another", SECRET.job)),
                lambda nonce: HELLO.pack(2, b"n" * SIZE, SECRET.mac("rank", 1, (nonce, b"n" * SIZE))),
            ):
                with await knock(port) as sock:
                    sock.send(proof(await heard(sock, SIZE)))
                    assert await heard(sock, 1) == b""
        assert made.present == set()


async def test_who_holds_the_port_of_rank_0_and_not_its_key_is_not_obeyed() -> None:
    """It may send all that it heard or guessed: this rank goes on looking for rank 0."""

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonce = b"h" * SIZE
        writer.write(nonce)
        _, _own, proof = HELLO.unpack(await reader.readexactly(HELLO.size))
        writer.write(proof + encode(Bye()))
        writer.close()

    port = free_port()
    async with await asyncio.start_server(impostor, "127.0.0.1", port):
        with pytest.raises(RunError, match="who answers there is not rank 0 of this allocation"):
            await join("127.0.0.1", port, 1, SECRET, 5.0, 0.5)


async def test_what_a_man_in_the_middle_changes_repeats_or_sends_back_ends_the_connection() -> None:
    def changed(line: bytes) -> bytes:
        return line.replace(b"true", b"fals")

    for wrong in (changed, lambda line: line + line, lambda line: b""):
        async with control() as (made, port):
            front, sent = free_port(), asyncio.Event()

            async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                there, back = await asyncio.open_connection("127.0.0.1", port)
                writer.write(await there.readexactly(SIZE))
                back.write(await reader.readexactly(HELLO.size))
                writer.write(await there.readexactly(SIZE))
                with contextlib.suppress(ConnectionError):
                    while (line := await reader.readline()) and b"Beat" in line:
                        back.write(line)
                    back.write(wrong(line))  # noqa: B023
                    back.write(await reader.readline())
                    sent.set()  # noqa: B023
                    await reader.read()
                writer.close()
                back.close()

            async with await asyncio.start_server(relay, "127.0.0.1", front), peer(front) as client:
                await made.joined(PATIENCE_S)
                await client.send(Stopped(("true",)))
                await client.send(Stopped(("second",)))
                messages = [(await soon(made.inbox.get()))[1]]
                while not isinstance(messages[-1], Lost):
                    messages.append((await soon(made.inbox.get()))[1])
                assert messages[-1].reason == "it sent what is no message of ours: its seal is not right"
                assert set(messages[:-1]) <= {Stopped(("true",))}


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\n\r\n" * 5, b"[" * 10_000, "ü\ud800".encode("utf-8", "surrogatepass") * 50, b"\0" * 100_000],
)
async def test_what_speaks_another_language_is_sent_away(words: bytes) -> None:
    async with control() as (made, port):
        with await knock(port) as sock:
            with contextlib.suppress(BlockingIOError):
                sock.send(words)
            assert len(await heard(sock, 1000)) == SIZE  # the nonce, and no welcome
        assert made.present == set()
        async with peer(port):  # and rank 0 still works
            await made.joined(PATIENCE_S)


async def test_a_crowd_of_strangers_keeps_no_rank_out_and_costs_few_descriptors() -> None:
    async with control() as (made, port), contextlib.AsyncExitStack() as crowd:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(200):
            crowd.enter_context(await knock(port))
        async with peer(port):
            await made.joined(PATIENCE_S)
        theirs = len(list(Path("/proc/self/fd").iterdir())) - before - 200
        assert theirs <= UNPROVEN + 5


async def test_a_stranger_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "LIMIT_S", 0.1)
    async with control() as (_, port):
        with await knock(port) as sock:
            assert len(await heard(sock, SIZE + 1)) == SIZE


async def test_the_door_is_shut_once_all_have_joined() -> None:
    async with control() as (made, port), peer(port):
        await made.joined(PATIENCE_S)
        assert made._door
        await soon(asyncio.wait({made._door}))
        with pytest.raises(ConnectionRefusedError):
            await knock(port)


async def test_a_rank_that_only_beats_is_not_lost() -> None:
    async with control(silence_s=SILENCE_S) as (made, port), peer(port, silence_s=SILENCE_S) as client:
        news = asyncio.create_task(made.inbox.get())
        told = asyncio.create_task(client.receive())
        done, _ = await asyncio.wait({news, told}, timeout=3 * SILENCE_S)
        assert not done
        assert made.present == {1}
        news.cancel()
        told.cancel()


async def test_a_closed_connection_is_a_lost_rank_at_once() -> None:
    async with control() as (made, port):
        async with peer(port):
            await made.joined(PATIENCE_S)
        assert await lost(made) == (1, "its connection to rank 0 ended")
        assert made.present == set()


RANK = """
import asyncio, sys
from jobs.allocation.control import join
from jobs.allocation.handshake import Secret
async def main():
    client = await join("127.0.0.1", int(sys.argv[1]), 1, Secret(sys.argv[2], "7"), float(sys.argv[3]), 30)
    while await client.receive() is not None:
        pass
asyncio.run(main())
"""


@asynccontextmanager
async def process(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    words = (sys.executable, "-c", RANK, str(port), KEY, str(SILENCE_S))
    child = await asyncio.create_subprocess_exec(*words, env=env)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def test_a_stopped_process_is_lost_within_the_silence_limit() -> None:
    async with control(silence_s=SILENCE_S) as (made, port), process(port) as child:
        await made.joined(PATIENCE_S)
        os.kill(child.pid, signal.SIGSTOP)
        assert await lost(made) == (1, f"no sign of life for {SILENCE_S} s (limits.heartbeat_s)")
        assert made.present == set()


async def test_a_killed_process_is_lost_at_once() -> None:
    async with control(silence_s=60) as (made, port), process(port) as child:
        await made.joined(PATIENCE_S)
        child.kill()
        assert await lost(made) == (1, "its connection to rank 0 ended")


async def test_rank_0_gone_is_the_end_of_the_channel() -> None:
    async with control() as (made, port), peer(port) as client:
        await made.joined(PATIENCE_S)
        await made.send(Stop())
        await made.close()
        assert await soon(client.receive()) == Stop()
        assert await soon(client.receive()) is None
        await client.send(Stopped())  # into the void: no error


async def test_a_silent_rank_0_is_the_end_of_the_channel() -> None:
    done = asyncio.Event()

    async def welcome_and_no_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonce = b"h" * SIZE
        writer.write(nonce)
        rank, own, _ = HELLO.unpack(await reader.readexactly(HELLO.size))
        writer.write(SECRET.mac("head", rank, (nonce, own)))
        await done.wait()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(welcome_and_no_more, "127.0.0.1", port):
        async with peer(port, silence_s=SILENCE_S) as client:
            assert await soon(client.receive()) is None
        done.set()


async def test_nobody_there_is_said_with_the_address() -> None:
    port = free_port()
    with pytest.raises(RunError) as caught:
        await join("127.0.0.1", port, 3, SECRET, 5.0, 0.3)
    assert caught.value.key == "limits.rendezvous_s"
    assert caught.value.reason.startswith(f"rank 3 did not reach rank 0 at 127.0.0.1:{port}: ")
    assert "Connect call failed" in caught.value.reason


async def test_a_taken_port_is_said() -> None:
    async with control() as (_, port):
        with pytest.raises(RunError) as caught:
            await ControlServer(2, SECRET, 5.0).open(port)
        assert (caught.value.key, caught.value.value) == ("cluster.control_port", port)


async def test_long_messages_arrive_whole() -> None:
    async with control() as (made, port), peer(port) as client:
        await made.joined(PATIENCE_S)
        await client.send(Stopped(("x" * 200_000,)))
        await made.send(Phase("y" * 200_000))
        assert await soon(made.inbox.get()) == (1, Stopped(("x" * 200_000,)))
        assert await soon(client.receive()) == Phase("y" * 200_000)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b'{"type": "Explode"}\n', "there is no message of kind 'Explode'"),
        (b'{"type": "Stopped", "leftovers": 5}\n', "Stopped: leftovers: "),
    ],
)
async def test_a_rank_that_speaks_another_language_is_lost_and_the_reason_says_so(line: bytes, wrong: str) -> None:
    async with control() as (made, port), peer(port) as client:
        await made.joined(PATIENCE_S)
        client._line._writer.write(client._line._seals.out.close(line))
        rank, reason = await lost(made)
        assert (rank, made.present) == (1, set())
        assert reason.startswith(f"it sent what is no message of ours: {wrong}")


async def test_one_rank_alone_can_be_told_something() -> None:
    async with control(3) as (made, port), peer(port, 1) as one, peer(port, 2) as two:
        await made.joined(PATIENCE_S)
        await made.send(Inspect(), 2)
        await made.send(Bye())
        assert await soon(one.receive()) == Bye()
        assert await soon(two.receive()) == Inspect()
