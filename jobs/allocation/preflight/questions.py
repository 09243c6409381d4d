"""What rank 0 asks the ranks about their nodes, and what they answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from jobs.allocation.messages import Message
from jobs.allocation.preflight.facts import Facts, Ping, Reached


class Channel(Protocol):
    """Rank 0's end of the channel between the ranks, as far as the checks use it."""

    inbox: asyncio.Queue[tuple[int, Message]]

    @property
    def present(self) -> set[int]:
        """Ranks that are connected."""

    async def send(self, message: Message, rank: int | None = None) -> None:
        """Send one message to every rank that is there, or to one of them."""


@dataclass(frozen=True)
class Question(Message):
    """A question; the answer has the same number."""

    n: int


@dataclass(frozen=True)
class Answer(Message):
    """An answer to the question of this number."""

    n: int


@dataclass(frozen=True)
class AskClock(Question):
    """What time is it?"""


@dataclass(frozen=True)
class Clock(Answer):
    """The time of day on a node, Unix seconds."""

    time: float


@dataclass(frozen=True)
class AskFacts(Question):
    """What is on your node? There are `left_s` seconds for all checks."""

    left_s: float


@dataclass(frozen=True)
class FactsFound(Answer):
    """What a rank found on its node."""

    facts: Facts


@dataclass(frozen=True)
class AskReach(Question):
    """Do you reach your peers?

    Attributes:
        token: what a peer's listener answers to.
        peers: rank, address and listening ports of each.
        pings: own device, address, rank and device of the peer.
    """

    token: str
    peers: tuple[tuple[int, str, tuple[int, ...]], ...]
    pings: tuple[tuple[int, str, int, int], ...]


@dataclass(frozen=True)
class ReachFound(Answer):
    """What a rank reached."""

    reached: tuple[Reached, ...]
    pings: tuple[Ping, ...]


@dataclass(frozen=True)
class EndChecks(Message):
    """The checks are over: give the ports back. Nothing is answered."""
