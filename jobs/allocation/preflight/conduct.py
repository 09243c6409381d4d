"""Rank 0's part: ask every rank, measure the clocks, compare, judge. Nothing waits for a disk."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar, cast

from jobs.allocation.messages import Gone
from jobs.allocation.preflight import fabric, host, network, npu, questions, tuning
from jobs.allocation.preflight.facts import Facts, Ping, Reached
from jobs.allocation.preflight.findings import Finding, failures, named, settle, worst
from jobs.allocation.preflight.station import Station
from jobs.cluster.ports import Ports
from jobs.core.config import Config

A = TypeVar("A", bound=questions.Answer)

CLOCK_ROUNDS = 5
"""Of several rounds the fastest one counts: its answer was delayed least (as NTP does, RFC 5905, section 10)."""


@dataclass(frozen=True)
class Result:
    """What the checks of an allocation came to, in the order of the catalogue; `facts` are of all ranks that answered.

    `broken`: why the checks could not be finished: a rank did not answer. None: they were.
    """

    findings: tuple[Finding, ...]
    facts: tuple[Facts, ...]
    seconds: float
    broken: str | None = None

    @property
    def reason(self) -> str | None:
        """Why the allocation must end: the first failure, for the rows of its points. None: it may go on."""
        if self.broken:
            return f"preflight: {self.broken}"
        bad = failures(self.findings)
        if not bad:
            return None
        more = f" (and {len(bad) - 1} more in preflight.json)" if len(bad) > 1 else ""
        return f"preflight: {bad[0]}{more}"

    def as_json(self) -> dict[str, Any]:
        """Return the record for preflight.json."""
        return {
            "time": time.time(),
            "state": "fail" if self.broken else worst(self.findings),
            "reason": self.reason,
            "seconds": round(self.seconds, 2),
            "host_state": tuning.digest(tuning.states(self.facts)),
            "findings": [asdict(one) for one in self.findings],
            "facts": [asdict(one) for one in self.facts],
        }


class _Lost(Exception):
    """A rank did not answer."""


class Preflight:
    """The checks of one allocation, once."""

    def __init__(self, config: Config, ports: Ports, control: questions.Channel, station: Station) -> None:
        """Args: any config of the allocation, the engine's ports, the channel, and rank 0's own station."""
        self._config, self._ports, self._control, self._station = config, ports, control, station
        self._end = time.monotonic() + config.limits.preflight_s
        self._expected = frozenset(control.present)
        self._asked = 0

    async def run(self) -> Result:
        """Make all checks. The ports that were held open are free again afterwards."""
        began = time.monotonic()
        facts: dict[int, Facts] = {}
        findings: list[Finding] = []
        broken: str | None = None
        try:
            clocks = await self._clocks()
            asked = questions.AskFacts(self._next(), self._end - time.monotonic())
            answers = await self._ask(dict.fromkeys({0, *self._expected}, asked), questions.FactsFound)
            facts = {rank: replace(one.facts, clock_s=clocks.get(rank)) for rank, one in sorted(answers.items())}
            reached, pings = await self._reach(facts)
            findings = self._judge(list(facts.values()), reached, pings)
        except _Lost as error:
            broken = str(error)
        await self._control.send(questions.EndChecks())
        await self._station.close()
        return Result(tuple(findings), tuple(facts.values()), time.monotonic() - began, broken)

    async def _clocks(self) -> dict[int, float]:
        """Return how far the clock of each other rank is ahead of ours, s."""
        best: dict[int, tuple[float, float]] = {}
        for _ in range(CLOCK_ROUNDS if self._expected and not self._station.on_loopback else 0):
            sent = time.time()
            asked = dict.fromkeys(self._expected, questions.AskClock(self._next()))
            for rank, (came, answer) in (await self._hear(asked, questions.Clock)).items():
                trip = came - sent
                best[rank] = min(best.get(rank, (trip + 1, 0.0)), (trip, answer.time - sent - trip / 2))
        return {rank: away for rank, (_, away) in best.items()}

    async def _reach(self, facts: Mapping[int, Facts]) -> tuple[tuple[Reached, ...], tuple[Ping, ...]]:
        skip = self._config.preflight.skip
        work = {} if named("fabric.ping", skip) else fabric.pairs(list(facts.values()))
        peers = {} if named("network.path", skip) else facts
        if len(facts) < 2:
            return (), ()
        n, token = self._next(), secrets.token_hex(8)
        asked = {}
        for rank in facts:
            others = tuple((peer, one.address, one.listening) for peer, one in peers.items() if peer != rank)
            asked[rank] = questions.AskReach(n, token, others, tuple(work.get(rank, ())))
        answers = (await self._ask(asked, questions.ReachFound)).values()
        return (
            tuple(one for answer in answers for one in answer.reached),
            tuple(one for answer in answers for one in answer.pings),
        )

    def _judge(self, facts: Sequence[Facts], reached: Sequence[Reached], pings: Sequence[Ping]) -> list[Finding]:
        config, settings = self._config, self._config.preflight
        npus, on_loopback = any(one.npus is not None for one in facts), self._station.on_loopback
        keys = network.keys_of(self._ports)
        found = [
            *host.judge(facts, settings, npus=npus, on_loopback=on_loopback),
            *tuning.judge(facts, npus=npus, on_loopback=on_loopback),
            *network.interfaces(facts, config, on_loopback=on_loopback),
            *network.ports(facts, keys),
            *network.paths(facts, reached, keys, self._ports.api),
            *npu.judge(facts, config),
            *fabric.judge(facts, pings, on_loopback=on_loopback),
        ]
        return settle(found, settings.skip, settings.warn_only)

    def _next(self) -> int:
        """Return the number of the next question."""
        self._asked += 1
        return self._asked

    async def _ask(self, asked: Mapping[int, questions.Question], kind: type[A]) -> dict[int, A]:
        """Ask every rank, ourselves too, and wait for all answers."""
        own = asyncio.create_task(self._station.answer(asked[0]))
        others = {rank: question for rank, question in asked.items() if rank}
        try:
            answers = {rank: answer for rank, (_, answer) in (await self._hear(others, kind)).items()}
            async with asyncio.timeout(max(0.0, self._end - time.monotonic())):
                answers[0] = cast(A, await own)
        except TimeoutError:
            raise _Lost(self._late("rank 0")) from None
        finally:
            own.cancel()
        return answers

    async def _hear(self, asked: Mapping[int, questions.Question], kind: type[A]) -> dict[int, tuple[float, A]]:
        """Ask other ranks. Returns for each when its answer came (Unix seconds), and the answer."""
        for rank, question in asked.items():
            await self._control.send(question, rank)
        heard: dict[int, tuple[float, A]] = {}
        while missing := sorted(asked.keys() - heard.keys()):
            try:
                async with asyncio.timeout(max(0.0, self._end - time.monotonic())):
                    rank, answer = await self._control.inbox.get()
            except TimeoutError:
                raise _Lost(self._late(", ".join(f"rank {rank}" for rank in missing))) from None
            if isinstance(answer, Gone):
                raise _Lost(f"rank {rank} (headless): {answer.reason}")
            if isinstance(answer, kind) and rank in asked and answer.n == asked[rank].n:
                heard[rank] = (time.time(), answer)
        return heard

    def _late(self, who: str) -> str:
        limit = self._config.limits.preflight_s
        return f"{who} did not finish its checks within {limit:g} s (limits.preflight_s)"
