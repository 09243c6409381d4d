"""One rank's side of the checks: it answers what rank 0 asks. Rank 0 has one for its own node, too."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.allocation.messages import Message
from jobs.allocation.preflight import look, questions, runtime
from jobs.allocation.preflight.facts import Facts, Npus, Reached
from jobs.allocation.preflight.findings import named
from jobs.allocation.preflight.paths import Listeners, reach
from jobs.allocation.preflight.tools import ASCEND, Tools
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import Ports
from jobs.core.config import Config
from jobs.core.fields import from_root
from jobs.core.layout import Placement
from jobs.core.waiting import aside
from jobs.engines.base import engine_of
from jobs.engines.vllm import environment

HCCL_BASE_PORT, HCCL_PORTS = 60000, 16
"""HCCL's host ports (CANN, envref_07_0074)."""

LATE = 0.85
"""Share of limits.preflight_s after which no tool is asked any more: the answers must still reach rank 0."""


@dataclass(frozen=True)
class StationContext:
    """Where a station stands: its rank and peers, and the name, address and prefix length (bits) of its interface.

    Attributes:
        interface_problem: why the interface of the config cannot be used here.
        results: results.root, as far as it is known.
        ascend, dev: where the driver and the device files are.
    """

    task: Task
    interface: tuple[str, str, int]
    interface_problem: str | None
    ports: Ports
    results: Path
    inherited: Mapping[str, str]
    ascend: Path = ASCEND
    dev: Path = Path("/dev")


def uses_npus(config: Config) -> bool:
    """Return whether NPUs and fabric are checked."""
    wanted = config.preflight.npus
    return engine_of(config).traits.npus if wanted is None else wanted


class Station:
    """The checks of one rank."""

    def __init__(self, config: Config, context: StationContext) -> None:
        """Args: any config of the allocation, and where this rank is."""
        self._config, self._context = config, context
        self._listeners = Listeners()
        self._deadline = time.monotonic() + LATE * config.limits.preflight_s
        self._stopped = threading.Event()

    @property
    def on_loopback(self) -> bool:
        """Whether all ranks are on one host."""
        return self._context.task.on_loopback

    async def answer(self, message: Message) -> questions.Answer | None:
        """Answer one question of rank 0; the end of the checks wants no answer."""
        match message:
            case questions.AskClock(n):
                return questions.Clock(n, time.time())
            case questions.AskFacts(n, left_s):
                self._deadline = time.monotonic() + LATE * left_s
                return questions.FactsFound(n, await self._facts())
            case questions.AskReach():
                return await self._reach(message)
            case questions.EndChecks():
                await self.close()
        return None

    async def close(self) -> None:
        """Give the ports back, and ask no tool any more."""
        self._stopped.set()
        await self._listeners.close()

    def _tools(self) -> Tools:
        path = self._context.inherited.get("PATH", os.defpath)
        return Tools(path, self._deadline, self._stopped, self._context.ascend, self._context.dev)

    async def _facts(self) -> Facts:
        context, task, config = self._context, self._context.task, self._config
        name, address, prefix = context.interface
        npus = uses_npus(config) and not all(named(check, config.preflight.skip) for check in ("npu", "fabric"))
        where = (config, str(task.job_id), task.rank, context.inherited)
        # First of all: an engine that outlived its job in a container holds NPUs, memory and ports.
        removed = await aside(lambda: runtime.sweep(*where, npus=npus))
        hccl = self._hccl_ports() if npus else []
        mine = [context.ports.dp_rpc, *hccl] if task.rank == 0 else hccl
        busy = await self._listeners.open("0.0.0.0", [*dict.fromkeys(mine), 0])
        if task.rank == 0:
            busy |= await self._listeners.open(config.engine.host, [context.ports.api])
        env = environment.whole(engine_of(config).environment(config, self._place()), context.inherited)
        seen_runtime = await aside(lambda: runtime.look(*where))
        host = await aside(
            lambda: look.host(
                env,
                context.inherited,
                () if task.on_loopback else [host for rank, host in enumerate(task.hosts) if rank != task.rank],
                {"results.root": context.results, "TMPDIR": Path(env.get("TMPDIR", "/tmp"))},
                config,
                hccl,
            )
        )
        seen = await aside(self._npus) if npus else None
        return Facts(
            rank=task.rank,
            node=task.host,
            interface=name,
            address=address,
            prefix=prefix,
            host=replace(host, runtime=replace(seen_runtime, removed=removed)),
            interfaces=look.interfaces(),
            interface_problem=context.interface_problem,
            busy=busy,
            listening=tuple(self._listeners.ports),
            npus=seen,
        )

    def _npus(self) -> Npus:
        sources = [from_root(name) for name in self._config.engine.source]
        fabric = not named("fabric", self._config.preflight.skip)
        return self._tools().npus(self._config.cluster.npus_per_node, sources, fabric=fabric)

    def _hccl_ports(self) -> list[int]:
        if self.on_loopback and self._context.task.rank:
            return []  # rank 0 holds them on this host
        base = int(self._config.engine.env.get("HCCL_IF_BASE_PORT") or HCCL_BASE_PORT)
        return list(range(base, base + HCCL_PORTS))

    def _place(self) -> Placement:
        task, ports, (name, address, _) = self._context.task, self._context.ports, self._context.interface
        return Placement(task.rank, len(task.hosts), address, name, address, str(ports.api), str(ports.dp_rpc))

    async def _reach(self, asked: questions.AskReach) -> questions.ReachFound:
        """Connect to the peers' ports, all at once, and ping their NPUs, one after the other."""
        rank = self._context.task.rank

        async def one(peer: int, address: str, port: int) -> Reached:
            return Reached(rank, peer, port, await reach(address, port, asked.token))

        pinging = asyncio.create_task(aside(self._tools().pings, rank, asked.pings))
        reached = await asyncio.gather(*(one(peer, at, port) for peer, at, ports in asked.peers for port in ports))
        return questions.ReachFound(asked.n, tuple(reached), tuple(await pinging))
