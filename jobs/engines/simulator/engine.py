"""One data-parallel rank: loads with the log lines of the release, then steps its scheduler on the roofline's clock."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

from jobs.engines.prediction import GIB
from jobs.engines.simulator.faults import Player
from jobs.engines.simulator.log import Log, error
from jobs.engines.simulator.roofline import Clock, kv_bytes, kv_bytes_per_token, weight_bytes
from jobs.engines.simulator.scheduler import Drafting, Figures, Request, Scheduler
from jobs.engines.simulator.settings import Settings

LATE_S = 0.1
"""A step that ends later than this after its time (a stopped or starved process) does not make the next ones short."""

SHARD_GIB = 4.0
"""Size of a checkpoint file; DeepSeek-R1 has 163."""

_PROGRESS = 8


class EngineFailed(Exception):
    """An engine process ended while it started; what it said is in the log."""


def kv_blocks(settings: Settings) -> int:
    """Return the KV cache blocks of one data-parallel rank.

    Raises:
        EngineFailed: not even one sequence of `max_model_len` fits; the text is vLLM's (0.9.1,
            v1/core/kv_cache_utils.py check_enough_kv_cache_memory) or torch_npu's.
    """
    shape, npu, layout = settings.spec.shape, settings.spec.hardware, settings.layout
    memory, weights = npu.npu_memory_gib, sum(weight_bytes(shape, npu, layout)) / GIB
    if weights > memory:
        raise EngineFailed(error("out_of_memory", memory=memory, allocated=memory - 1, reserved=memory - 0.5))
    available = int(kv_bytes(shape, npu, layout, settings.utilization))
    if available <= 0:
        raise EngineFailed(error("no_cache"))
    size = settings.block
    page = kv_bytes_per_token(shape, layout) * size
    blocks = available // page
    needed = -(-settings.max_model_len // size) * page
    if needed > available:
        estimate = blocks * size
        based = error("based", estimate=estimate) if estimate else ""
        sizes = {"needed": needed / GIB, "available": available / GIB}
        raise EngineFailed(error("small_cache", length=settings.max_model_len, based=based, **sizes))
    return blocks


async def load_engine(rank: int, settings: Settings, player: Player, emit: Callable[[Output], None]) -> EngineCore:
    """Return the engine of one data-parallel rank, loaded and not yet running; EngineFailed where it does not start.

    The player's log is that of the process; the engine's own lines get its name. `emit` gets the engine's output.
    """
    layout, length, size = settings.layout, settings.max_model_len, settings.block
    spec, log = settings.spec, player.log
    if layout.dp > 1:
        log = log.named(f"EngineCore_{rank - settings.local.start}")
    log.write("engine", release=spec.release, model=settings.model)
    begin = asyncio.get_running_loop().time()
    player.reach("load")
    await load_weights(rank, settings, player, log)
    try:
        blocks = kv_blocks(settings)
    except EngineFailed as wrong:
        log.write("core_failed", error=wrong)
        raise
    log.write("cache", tokens=blocks * size)
    log.write("concurrency", length=length, most=blocks / -(-length // size))
    log.write("loaded", took=asyncio.get_running_loop().time() - begin)
    limits = (settings.max_num_batched_tokens, settings.max_num_seqs)
    drafting = drafting_of(settings, rank)
    scheduler = Scheduler(blocks, size, *limits, chunked=settings.chunked_prefill, drafting=drafting)
    drafting_cost = 1 + settings.drafts * spec.draft_cost
    node = {"npus_per_node": spec.npus_per_node}
    clock = Clock(spec.shape, spec.hardware, settings.layout, drafting_cost, spec.sizes, **node)
    return EngineCore(rank, scheduler, clock, player, emit)


def drafting_of(settings: Settings, rank: int) -> Drafting | None:
    """Return the speculative decoding of one data-parallel rank; None: it is off."""
    if not settings.drafts:
        return None
    spec, random = settings.spec, Random(settings.seed * 1000 + rank)
    return Drafting(settings.drafts, spec.acceptance, spec.half_length or None, random)


async def load_weights(rank: int, settings: Settings, player: Player, log: Log) -> None:
    """Say what the workers of one data-parallel rank of the service say while they meet and load, on one node."""
    where, spec = settings.layout, settings.spec
    first = rank * where.tp * where.pp + settings.node * settings.workers
    stage, expert = first // where.tp % where.pp, first if where.expert_parallel else 0
    log.write("ranks_met", first=first, world=where.tp * where.pp * where.dp, rank=rank, stage=stage, expert=expert)
    shards = max(1, round(spec.shape.weight_gib / SHARD_GIB))
    log.write("loading", model=settings.model)
    for step in range(1, _PROGRESS + 1):
        await asyncio.sleep(spec.load_s / _PROGRESS * player.factor)
        await player.loads.wait()
        loaded = shards * step // _PROGRESS
        print(
            f"Loading safetensors checkpoint shards: {100 * loaded // shards:3d}% Completed | {loaded}/{shards} "
            f"[00:{step:02d}<00:{_PROGRESS - step:02d},  1.00it/s]",
            file=sys.stderr,
            flush=True,
        )
    weights = sum(weight_bytes(spec.shape, spec.hardware, where))
    total = int(spec.hardware.npu_memory_gib * GIB)
    available = max(0, int(kv_bytes(spec.shape, spec.hardware, where, settings.utilization)))
    for worker in range(settings.workers):
        own = log.named(f"VllmWorker rank={worker}") if settings.workers > 1 else log
        own.write("weights", weights=weights / GIB)
        own.write("memory", available=available, total=total)


class Output(NamedTuple):
    """What one step of a data-parallel rank gave, as it goes to the front end.

    Attributes:
        tokens: keys of the requests that got a token, once for each.
        finished: key and finish reason of those that are complete.
        failed: keys of those that failed, and why.
        figures: of the engine after the step.
    """

    rank: int
    tokens: Sequence[int] = ()
    finished: Sequence[tuple[int, str]] = ()
    failed: Sequence[int] = ()
    error: str = ""
    figures: Figures = Figures()

    @classmethod
    def of(cls, message: Sequence[Any]) -> Output:
        """Return the output that was sent as JSON."""
        figures = Figures(*message[-1])
        return cls(*message)._replace(figures=figures._replace(drafts=tuple(figures.drafts)))


class EngineCore:
    """Takes requests, emits one `Output` a step; `emit` is called in the event loop."""

    def __init__(
        self, rank: int, scheduler: Scheduler, clock: Clock, player: Player, emit: Callable[[Output], None]
    ) -> None:
        self.rank = rank
        self._scheduler, self._clock, self._player, self._emit = scheduler, clock, player, emit
        self._work = asyncio.Event()

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._player.request(request.limit)
        if self._player.longest is not None and request.limit > self._player.longest:
            request = replace(request, limit=self._player.longest, reason="stop")
        self._scheduler.add(request)
        self._work.set()

    def abort(self, keys: Iterable[int]) -> None:
        """Forget requests."""
        self._scheduler.abort(keys)

    async def run(self) -> None:
        """Step for ever. Times do not add up: each step begins when the one before was due."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if not self._scheduler.busy:
                self._work.clear()
                await self._work.wait()
                due = loop.time()
            await self._player.moving.wait()
            if self._player.failing is not None:
                self._fail_all(self._player.failing)
                continue
            if loop.time() - due > LATE_S:
                due = loop.time()
            batch = self._scheduler.plan()
            due += self._clock.seconds(batch.work) * self._player.factor
            await asyncio.sleep(due - loop.time())
            await self._player.moving.wait()
            got, done = self._scheduler.commit(batch)
            finished = tuple((r.key, r.reason) for r in done)
            self._emit(Output(self.rank, got, finished, figures=self._scheduler.figures))

    def _fail_all(self, text: str) -> None:
        keys = tuple(r.key for r in (*self._scheduler.running, *self._scheduler.waiting))
        self._scheduler.abort(keys)
        self._emit(Output(self.rank, failed=keys, error=text))
