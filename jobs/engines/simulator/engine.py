"""One data-parallel rank: loads with the log lines of the release, then steps its scheduler on the roofline's clock."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from jobs.engines.simulator.faults import Player
from jobs.engines.simulator.log import Log
from jobs.engines.simulator.roofline import GIB, Clock, kv_bytes, weight_bytes
from jobs.engines.simulator.scheduler import Figures, Request, Scheduler
from jobs.engines.simulator.settings import Settings
from jobs.engines.simulator.spec import RehearsalSpec

LATE_S = 0.1
"""A step that ends later than this after its time (a stopped or starved process) does not make the next ones short."""

SHARD_GIB = 4.0
"""Size of a checkpoint file; DeepSeek-R1 has 163."""

_PROGRESS = 8


class EngineFailed(Exception):
    """An engine process ended while it started; what it said is in the log."""


def kv_blocks(settings: Settings, spec: RehearsalSpec) -> int:
    """Return the KV cache blocks of one data-parallel rank.

    Raises:
        EngineFailed: not even one sequence of `max_model_len` fits; the text is vLLM's (0.9.1,
            v1/core/kv_cache_utils.py check_enough_kv_cache_memory) or torch_npu's.
    """
    where = settings.layout
    memory = spec.hardware.npu_memory_gib
    weights = sum(weight_bytes(spec.shape, spec.hardware, where)) / GIB
    if weights > memory:
        raise EngineFailed(
            f"RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; {memory:.2f} GiB total capacity; "
            f"{memory - 1:.2f} GiB already allocated; {memory - 1:.2f} GiB current active; 0.41 GiB free; "
            f"{memory - 0.5:.2f} GiB reserved in total by PyTorch)"
        )
    available = int(kv_bytes(spec.shape, spec.hardware, where, settings.utilization))
    if available <= 0:
        raise EngineFailed(
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
            "initializing the engine."
        )
    page = spec.shape.kv_bytes_per_token * settings.block_size
    blocks = available // page
    needed = -(-settings.max_model_len // settings.block_size) * page
    if needed > available:
        estimate = blocks * settings.block_size
        based = f"Based on the available memory, the estimated maximum model length is {estimate}." if estimate else ""
        raise EngineFailed(
            f"ValueError: To serve at least one request with the models's max seq len ({settings.max_model_len}), "
            f"({needed / GIB:.2f} GiB KV cache is needed, which is larger than the available KV cache memory "
            f"({available / GIB:.2f} GiB). {based} Try increasing `gpu_memory_utilization` or decreasing "
            "`max_model_len` when initializing the engine."
        )
    return blocks


async def load_engine(
    rank: int, settings: Settings, spec: RehearsalSpec, player: Player, log: Log, emit: Callable[[Output], None]
) -> EngineCore:
    """Return the engine of one data-parallel rank, loaded and not yet running; EngineFailed where it does not start.

    Args:
        rank: its number in the service.
        log: of the process; the engine's own lines get its name.
        emit: gets the engine's output.
    """
    if settings.data_parallel > 1:
        log = log.named(f"EngineCore_{rank - settings.local.start}")
    log.info("core.py:70", f"Initializing a V1 LLM engine (v{spec.release}) with config: model={settings.model!r}")
    begin = asyncio.get_running_loop().time()
    player.reach("load")
    world, first = settings.tensor_parallel * settings.data_parallel, rank * settings.tensor_parallel
    where = f"DP rank {rank}, PP rank 0, TP rank 0, EP rank {first if settings.expert_parallel else 0}"
    log.info("parallel_state.py:1065", f"rank {first} in world size {world} is assigned as {where}")
    await _load_weights(settings, spec, player, log)
    try:
        blocks = kv_blocks(settings, spec)
    except EngineFailed as error:
        log.error("core.py:497", f"EngineCore failed to start.\nTraceback (most recent call last):\n{error}")
        raise
    length, size = settings.max_model_len, settings.block_size
    most = blocks / -(-length // size)
    log.info("kv_cache_utils.py:715", f"GPU KV cache size: {blocks * size:,} tokens")
    log.info("kv_cache_utils.py:719", f"Maximum concurrency for {length:,} tokens per request: {most:.2f}x")
    took = asyncio.get_running_loop().time() - begin
    log.info("core.py:171", f"init engine (profile, create kv cache, warmup model) took {took:.2f} seconds")
    limits = (settings.max_num_batched_tokens, settings.max_num_seqs)
    scheduler = Scheduler(blocks, size, *limits, chunked=settings.chunked_prefill)
    clock = Clock(spec.shape, spec.hardware, settings.layout)
    return EngineCore(rank, scheduler, clock, player, emit)


async def _load_weights(settings: Settings, spec: RehearsalSpec, player: Player, log: Log) -> None:
    where = settings.layout
    shards = max(1, round(spec.shape.weight_gib / SHARD_GIB))
    log.info("model_runner_v1.py:1897", f"Starting to load model {settings.model}...")
    for step in range(1, _PROGRESS + 1):
        await asyncio.sleep(spec.load_s / _PROGRESS * player.pace.factor)
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
    for worker in range(settings.tensor_parallel):
        own = log.named(f"VllmWorker rank={worker}") if settings.tensor_parallel > 1 else log
        own.info("model_runner_v1.py:1912", f"Loading model weights took {weights / GIB:.4f} GB")
        own.info("worker_v1.py:193", f"Available memory: {available}, total memory: {total}")


class Output(NamedTuple):
    """What one step gave, as it goes to the front end.

    Attributes:
        rank: data-parallel rank.
        tokens: keys of the requests that got one token.
        finished: key and finish reason of those that are complete.
        failed: keys of those that failed, and why.
        figures: of the engine after the step.
    """

    rank: int
    tokens: tuple[int, ...] = ()
    finished: tuple[tuple[int, str], ...] = ()
    failed: tuple[int, ...] = ()
    error: str = ""
    figures: Figures = Figures()


class EngineCore:
    """Takes requests, emits one `Output` a step; `emit` is called in the event loop."""

    def __init__(
        self, rank: int, scheduler: Scheduler, clock: Clock, player: Player, emit: Callable[[Output], None]
    ) -> None:
        self.rank = rank
        self._scheduler, self._clock, self._player, self._emit = scheduler, clock, player, emit
        self._pace = player.pace
        self._work = asyncio.Event()

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._player.request(request.limit)
        if self._pace.longest is not None and request.limit > self._pace.longest:
            request = replace(request, limit=self._pace.longest, reason="stop")
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
            await self._pace.moving.wait()
            if self._pace.failing is not None:
                self._fail_all(self._pace.failing)
                continue
            if loop.time() - due > LATE_S:
                due = loop.time()
            batch = self._scheduler.plan()
            due += self._clock.seconds(batch.work) * self._pace.factor
            await asyncio.sleep(due - loop.time())
            await self._pace.moving.wait()
            got, done = self._scheduler.commit(batch)
            finished = tuple((r.key, r.reason) for r in done)
            self._emit(Output(self.rank, tuple(got), finished, figures=self._scheduler.figures))

    def _fail_all(self, text: str) -> None:
        keys = tuple(r.key for r in (*self._scheduler.running, *self._scheduler.waiting))
        self._scheduler.abort(keys)
        self._emit(Output(self.rank, failed=keys, error=text))
