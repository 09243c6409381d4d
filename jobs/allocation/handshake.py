"""How two ranks prove to each other that they belong to one allocation, and the seal on all that they say then.

The three passes of SKID3 (Handbook of Applied Cryptography, 10.3.2; ISO/IEC 9798-4, mechanism 5) with HMAC-SHA256: rank
0 sends a nonce, the other rank its number, a nonce and a proof over both, rank 0 a proof over both. Every proof names
who gives it, the rank and the job, so that none is of use elsewhere. Two keys from the same values, one a direction,
seal every later line with its number: nothing can be changed, left out, repeated or sent back. Nothing is encrypted,
since nothing on this channel is secret. What comes before the proof has a fixed length and is no JSON.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import struct
from dataclasses import dataclass, field

SIZE = 32
"""Bytes of a nonce and of a proof."""

HELLO = struct.Struct(f"!I{SIZE}s{SIZE}s")
"""Rank, its nonce, its proof."""

LIMIT_S = 2.0
"""A stranger is heard this long, seconds. A rank that was too slow tries again."""


@dataclass(frozen=True)
class Secret:
    """What the ranks of one allocation know: its key (control.key) and the job's id."""

    key: str
    job: str = ""

    def mac(self, use: str, rank: int, nonces: tuple[bytes, bytes]) -> bytes:
        """Return an HMAC for one use; a field ends with a zero byte or has a fixed length: none runs into another."""
        text = b"\0".join((b"ranks' channel 1", use.encode(), self.job.encode(), struct.pack("!I", rank)))
        return hmac.digest(self.key.encode(), text + b"".join(nonces), "sha256")


@dataclass
class Seal:
    """One direction of a connection: each line begins with an HMAC over its number and its text."""

    key: bytes
    count: int = field(default=0, init=False)

    def _mac(self, line: bytes) -> bytes:
        self.count += 1
        return hmac.digest(self.key, struct.pack("!Q", self.count) + line, "sha256").hex().encode()

    def close(self, line: bytes) -> bytes:
        """Return the next line with its seal."""
        return self._mac(line) + b" " + line

    def open(self, sealed: bytes) -> bytes:
        """Return the next line without its seal. ValueError: its seal is not right."""
        seal, _, line = sealed.partition(b" ")
        if not hmac.compare_digest(seal, self._mac(line)):
            raise ValueError("its seal is not right")
        return line


@dataclass(frozen=True)
class Seals:
    """Both directions, as one side has them."""

    out: Seal
    into: Seal


async def admit(sock: socket.socket, secret: Secret) -> tuple[int, bytes, Seals] | None:
    """Hear a stranger as rank 0. Returns its rank, the proof that it is to be given, and the seals; None: it is none.

    Raises:
        OSError, TimeoutError: it went away, or said too little.
    """
    loop, mine = asyncio.get_running_loop(), secrets.token_bytes(SIZE)
    async with asyncio.timeout(LIMIT_S):
        await loop.sock_sendall(sock, mine)
        rank, its, proof = HELLO.unpack(await _exactly(sock, HELLO.size))
    nonces = mine, its
    if not hmac.compare_digest(proof, secret.mac("rank", rank, nonces)):
        return None
    seals = Seals(Seal(secret.mac("to the rank", rank, nonces)), Seal(secret.mac("to the head", rank, nonces)))
    return rank, secret.mac("head", rank, nonces), seals


async def enter(sock: socket.socket, secret: Secret, rank: int) -> Seals:
    """Prove this rank to rank 0, and have rank 0 prove itself.

    Raises:
        PermissionError: who answers is not rank 0 of this allocation.
        OSError, TimeoutError: rank 0 refused this rank, or does not answer.
    """
    loop, mine = asyncio.get_running_loop(), secrets.token_bytes(SIZE)
    async with asyncio.timeout(LIMIT_S):
        nonces = await _exactly(sock, SIZE), mine
        await loop.sock_sendall(sock, HELLO.pack(rank, mine, secret.mac("rank", rank, nonces)))
        proof = await _exactly(sock, SIZE)
    if not hmac.compare_digest(proof, secret.mac("head", rank, nonces)):
        raise PermissionError("who answers there is not rank 0 of this allocation")
    return Seals(Seal(secret.mac("to the head", rank, nonces)), Seal(secret.mac("to the rank", rank, nonces)))


async def _exactly(sock: socket.socket, size: int) -> bytes:
    loop, got = asyncio.get_running_loop(), b""
    while len(got) < size:
        if not (more := await loop.sock_recv(sock, size - len(got))):
            raise ConnectionResetError("the connection was closed")
        got += more
    return got
