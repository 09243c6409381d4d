"""Run an external client against a ready service: bounded in time, ended with the service, judged by its file."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from jobs import process
from jobs.config import Config
from jobs.errors import RunError
from jobs.measure.external import ais_bench, vllm_bench
from jobs.measure.external.asked import requests
from jobs.measure.external.result import Result
from jobs.measure.metrics import generated_tokens, growth
from jobs.measure.records import Target
from jobs.measure.wire import Connections

LOG = "client.log"
SCRAPE_S = 5.0
STOP_S = 2.0

SALTED = 1_000_003
"""Distance of the seeds of two salts: the clients know no salt, and prompts of one seed are the same prompts."""

MISCOUNT = 0.01
"""A client's count of tokens may differ by this share from the engines' own: it re-encodes the answers' text."""


@dataclass(frozen=True)
class External:
    """What a run left behind. `reason` says why it cannot be believed; None: it can."""

    result: Result | None
    reason: str | None
    engine_tokens: Mapping[str, int]
    seconds: float
    truncated: bool = False


async def measure(
    config: Config,
    target: Target,
    folder: Path,
    inherited: Mapping[str, str],
    mark: str,
    *,
    stop: asyncio.Event,
    on_phase: Callable[[str], None],
) -> External:
    """Run the client of this point once.

    Args:
        config: of the point.
        target: the service, ready.
        folder: takes log and results; what an earlier attempt left in it is removed.
        inherited: the environment of the client, without the variables that belong to the engine.
        mark: marks its processes.
        stop: once set, the client is ended.
        on_phase: told "window" when it begins.
    """
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    count = requests(config.bench)
    if config.bench.client == "ais_bench":
        ais_bench.write_config(config, target, folder, count)
        words = ais_bench.argv(config, folder, count)
    else:
        words = vllm_bench.argv(config, target, folder, count)
    on_phase("window")
    before = await _counters(target)
    began = time.monotonic()
    try:
        how = await _ended(config, words, environment(inherited, target), folder, mark, stop)
    finally:
        if config.bench.client == "ais_bench":
            ais_bench.forget_key(config, target, folder, count)
    seconds = time.monotonic() - began
    after = await _counters(target)
    tokens = {} if before is None or after is None else growth(before, after)
    if stop.is_set():
        return External(None, "the window was cut short", tokens, seconds, truncated=True)
    try:
        result = (ais_bench if config.bench.client == "ais_bench" else vllm_bench).read(folder, count)
    except RunError as error:
        return External(None, f"{config.bench.client} left no result ({how}): {error.reason}", tokens, seconds)
    return External(result, how if "limit" in how else judge(config, result, tokens), tokens, seconds)


async def _ended(
    config: Config, words: list[str], env: Mapping[str, str], folder: Path, mark: str, stop: asyncio.Event
) -> str:
    """Start the client and wait for its end, the limit, or `stop`. Returns how it ended."""
    client = await process.start(words, env, folder / LOG, mark, cwd=folder)
    waits = {asyncio.create_task(client.wait()), asyncio.create_task(stop.wait())}
    try:
        await asyncio.wait(waits, timeout=config.limits.client_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        ended = client.ended
        left = await client.stop(STOP_S)
    if left:
        return f"limit: it could not be ended: {'; '.join(left)}"
    return str(ended) if ended or stop.is_set() else f"limits.client_s={config.limits.client_s:g} is over"


def environment(inherited: Mapping[str, str], target: Target) -> dict[str, str]:
    """Return the environment of a client: offline, no proxy on the way to the service, no terminal to paint on."""
    env = {name: value for name, value in inherited.items() if name != "TERM"}
    env |= {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return env | {"OPENAI_API_KEY": target.api_key or "none"}


def judge(config: Config, result: Result, engine_tokens: Mapping[str, int]) -> str | None:
    """Return why the figures of a run cannot be believed, or None. An exit code says nothing.

    The last two checks see the streams that an error event broke, which both clients count as whole answers.
    """
    bench = config.bench
    words = f": {result.errors[0]}" if result.errors else ""
    if not result.completed or not result.output_tokens:
        return f"no request was completed{words}"
    if result.failed:
        return f"{result.failed} of {result.requested} requests failed{words}"
    if result.completed < result.requested:
        return f"{result.requested - result.completed} of {result.requested} requests are missing from its result"
    if bench.ignore_eos and bench.workload == "random":
        short = sum(length < bench.output_tokens * (1 - MISCOUNT) for length in result.output_lengths)
        if short:
            return f"{short} answers are shorter than bench.output_tokens={bench.output_tokens}: broken streams"
    ranks = config.parallel.data_parallel_size
    silent = [str(rank) for rank in range(ranks) if not engine_tokens.get(str(rank))]
    if len(engine_tokens) == ranks:
        if silent and (bench.concurrency or ranks) >= ranks:
            return f"data-parallel rank {', '.join(silent)} served no token in the window"
        made = sum(engine_tokens.values())
        if made < result.output_tokens * (1 - MISCOUNT):
            return f"it counted {result.output_tokens} tokens, and the engines made {made}"
    return None


async def _counters(target: Target) -> dict[str, float] | None:
    with closing(Connections(target.base_url, target.authorization)) as connections:
        return await generated_tokens(connections, SCRAPE_S)
