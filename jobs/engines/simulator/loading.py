"""Start of one data-parallel rank: weights, memory, KV cache, with the log lines of the release."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from jobs.engines.simulator.engine import Engine, Output
from jobs.engines.simulator.log import Log
from jobs.engines.simulator.player import Player
from jobs.engines.simulator.roofline import GIB, Clock, Layout, kv_bytes, weight_bytes
from jobs.engines.simulator.scheduler import Scheduler
from jobs.engines.simulator.settings import Settings
from jobs.engines.simulator.spec import Spec

SHARD_GIB = 4.0
"""Size of a checkpoint file; DeepSeek-R1 has 163."""

_PROGRESS = 8


class EngineFailed(Exception):
    """An engine process ended while it started; its words are in the log."""


def layout(settings: Settings) -> Layout:
    """Return how the model lies on the NPUs."""
    return Layout(settings.tensor_parallel, settings.data_parallel, settings.expert_parallel)


def kv_blocks(settings: Settings, spec: Spec) -> int:
    """Return the KV cache blocks of one data-parallel rank.

    Raises:
        EngineFailed: not even one sequence of `max_model_len` fits; the text is vLLM's (0.9.1,
            v1/core/kv_cache_utils.py check_enough_kv_cache_memory) or torch_npu's.
    """
    where = layout(settings)
    memory = spec.rehearsal.npu_memory_gib
    weights = sum(weight_bytes(spec.shape, spec.rehearsal, where)) / GIB
    if weights > memory:
        raise EngineFailed(
            f"RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; {memory:.2f} GiB total capacity; "
            f"{memory - 1:.2f} GiB already allocated; {memory - 1:.2f} GiB current active; 0.41 GiB free; "
            f"{memory - 0.5:.2f} GiB reserved in total by PyTorch)"
        )
    available = int(kv_bytes(spec.shape, spec.rehearsal, where, settings.utilization))
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
    rank: int, settings: Settings, spec: Spec, player: Player, log: Log, emit: Callable[[Output], None]
) -> tuple[Engine, int]:
    """Load one data-parallel rank.

    Args:
        rank: its number in the service.
        log: of the process; the engine's own lines get its name.
        emit: gets the engine's output.

    Returns:
        The engine, not yet running, and its KV cache blocks.

    Raises:
        EngineFailed: it does not start.
    """
    local = rank - settings.local.start
    if settings.data_parallel > 1:
        log = log.named(f"EngineCore_{local}")
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
    tokens = blocks * settings.block_size
    per_request = -(-settings.max_model_len // settings.block_size)
    log.info("kv_cache_utils.py:715", f"GPU KV cache size: {tokens:,} tokens")
    log.info(
        "kv_cache_utils.py:719",
        f"Maximum concurrency for {settings.max_model_len:,} tokens per request: {blocks / per_request:.2f}x",
    )
    took = asyncio.get_running_loop().time() - begin
    log.info("core.py:171", f"init engine (profile, create kv cache, warmup model) took {took:.2f} seconds")
    scheduler = Scheduler(
        blocks,
        settings.block_size,
        settings.max_num_batched_tokens,
        settings.max_num_seqs,
        chunked=settings.chunked_prefill,
    )
    clock = Clock(spec.shape, spec.rehearsal, layout(settings))
    return Engine(rank, scheduler, clock, player.pace, emit), blocks


async def _load_weights(settings: Settings, spec: Spec, player: Player, log: Log) -> None:
    where = layout(settings)
    shards = max(1, round(spec.shape.weight_gib / SHARD_GIB))
    log.info("model_runner_v1.py:1897", f"Starting to load model {settings.model}...")
    for step in range(1, _PROGRESS + 1):
        await asyncio.sleep(spec.rehearsal.load_s / _PROGRESS * player.pace.factor)
        await player.loads.wait()
        loaded = shards * step // _PROGRESS
        print(
            f"Loading safetensors checkpoint shards: {100 * loaded // shards:3d}% Completed | {loaded}/{shards} "
            f"[00:{step:02d}<00:{_PROGRESS - step:02d},  1.00it/s]",
            file=sys.stderr,
            flush=True,
        )
    weights = sum(weight_bytes(spec.shape, spec.rehearsal, where))
    total = int(spec.rehearsal.npu_memory_gib * GIB)
    available = max(0, int(kv_bytes(spec.shape, spec.rehearsal, where, settings.utilization)))
    for worker in range(settings.tensor_parallel):
        own = log.named(f"VllmWorker rank={worker}") if settings.tensor_parallel > 1 else log
        own.info("model_runner_v1.py:1912", f"Loading model weights took {weights / GIB:.4f} GB")
        own.info("worker_v1.py:193", f"Available memory: {available}, total memory: {total}")
