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
from jobs.allocation.preflight import look, runtime
from jobs.allocation.preflight.facts import Facts, Npus, Reached
from jobs.allocation.preflight.findings import named
from jobs.allocation.preflight.paths import Listeners, reach
from jobs.allocation.preflight.questions import (
    Answer,
    AskClock,
    AskFacts,
    AskReach,
    Clock,
    EndChecks,
    FactsFound,
    ReachFound,
)
from jobs.allocation.preflight.tools import ASCEND, Tools
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import Ports
from jobs.core.config import Config
from jobs.core.fields import from_root
from jobs.core.waiting import aside
from jobs.engines.base import engine_of
from jobs.engines.placement import Placement
from jobs.engines.vllm import environment

HCCL_BASE_PORT, HCCL_PORTS = 60000, 16
"""HCCL's host ports (CANN, envref_07_0074)."""

LATE = 0.85
"""Share of limits.preflight_s after which no tool is asked any more: the answers must still reach rank 0."""


@dataclass(frozen=True)
class StationContext:
    """Where a station stands.

    Attributes:
        rank, node: of this task.
        peers: names of the other nodes.
        interface, address, prefix: the interface that this rank uses.
        interface_problem: why the interface of the config cannot be used here.
        ports: of the engine.
        on_loopback: all ranks are on one host.
        results: results.root, as far as it is known.
        inherited: environment of this task.
        job: id of the job, for paths that hold it.
        ascend, dev: where the driver and the device files are.
    """

    rank: int
    node: str
    peers: tuple[str, ...]
    interface: str
    address: str
    prefix: int
    interface_problem: str | None
    ports: Ports
    on_loopback: bool
    results: Path
    inherited: Mapping[str, str]
    job: str = ""
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
        return self._context.on_loopback

    async def answer(self, message: Message) -> Answer | None:
        """Answer one question of rank 0; the end of the checks wants no answer."""
        match message:
            case AskClock(n):
                return Clock(n, time.time())
            case AskFacts(n, left_s):
                self._deadline = time.monotonic() + LATE * left_s
                return FactsFound(n, await self._facts())
            case AskReach():
                return await self._reach(message)
            case EndChecks():
                await self.close()
        return None

    async def close(self) -> None:
        """Give the ports back, and ask no tool any more."""
        self._stopped.set()
        await self._listeners.close()

    def _tools(self) -> Tools:
        path = self._context.inherited.get("PATH", os.defpath)
        return Tools(path, self._deadline, self._stopped, self._context.ascend, self._context.dev)

    def _skips(self, check: str) -> bool:
        return named(check, self._config.preflight.skip)

    async def _facts(self) -> Facts:
        context, config = self._context, self._config
        npus = uses_npus(config) and not (self._skips("npu") and self._skips("fabric"))
        where = (config, context.job, context.rank, context.inherited)
        # First of all: an engine that outlived its job in a container holds NPUs, memory and ports.
        removed = await aside(lambda: runtime.sweep(*where, npus=npus))
        hccl = self._hccl_ports() if npus else []
        mine = [context.ports.dp_rpc, *hccl] if context.rank == 0 else hccl
        busy = await self._listeners.open("0.0.0.0", [*dict.fromkeys(mine), 0])
        if context.rank == 0:
            busy |= await self._listeners.open(config.engine.host, [context.ports.api])
        env = environment.whole(engine_of(config).environment(config, self._place()), context.inherited)
        seen_runtime = await aside(lambda: runtime.look(*where))
        host = await aside(
            lambda: look.host(
                env,
                context.inherited,
                () if context.on_loopback else context.peers,
                {"results.root": context.results, "TMPDIR": Path(env.get("TMPDIR", "/tmp"))},
                config,
                hccl,
            )
        )
        seen = await aside(self._npus) if npus else None
        return Facts(
            rank=context.rank,
            node=context.node,
            interface=context.interface,
            address=context.address,
            prefix=context.prefix,
            host=replace(host, runtime=replace(seen_runtime, removed=removed)),
            interfaces=look.interfaces(),
            interface_problem=context.interface_problem,
            busy=busy,
            listening=tuple(self._listeners.ports),
            npus=seen,
        )

    def _npus(self) -> Npus:
        sources = [from_root(name) for name in self._config.engine.source]
        count, fabric = self._config.cluster.npus_per_node, not self._skips("fabric")
        return self._tools().npus(count, sources, fabric=fabric)

    def _hccl_ports(self) -> list[int]:
        if self.on_loopback and self._context.rank:
            return []  # rank 0 holds them on this host
        base = int(self._config.engine.env.get("HCCL_IF_BASE_PORT") or HCCL_BASE_PORT)
        return list(range(base, base + HCCL_PORTS))

    def _place(self) -> Placement:
        context = self._context
        api, rpc = str(context.ports.api), str(context.ports.dp_rpc)
        return Placement(
            context.rank, len(context.peers) + 1, context.address, context.interface, context.address, api, rpc
        )

    async def _reach(self, asked: AskReach) -> ReachFound:
        """Connect to the peers' ports, all at once, and ping their NPUs, one after the other."""
        rank = self._context.rank

        async def one(peer: int, address: str, port: int) -> Reached:
            return Reached(rank, peer, port, await reach(address, port, asked.token))

        pinging = asyncio.create_task(aside(self._tools().pings, rank, asked.pings))
        reached = await asyncio.gather(*(one(peer, at, port) for peer, at, ports in asked.peers for port in ports))
        return ReachFound(asked.n, tuple(reached), tuple(await pinging))


def make_station(
    config: Config,
    task: Task,
    interface: tuple[str, str, int],
    interface_problem: str | None,
    ports: Ports,
    results: Path,
    inherited: Mapping[str, str],
) -> Station:
    """Return the station of a task."""
    peers = tuple(host for rank, host in enumerate(task.hosts) if rank != task.rank)
    context = StationContext(
        task.rank,
        task.host,
        peers,
        *interface,
        interface_problem,
        ports,
        task.on_loopback,
        results,
        inherited,
        str(task.job_id),
    )
    return Station(config, context)
