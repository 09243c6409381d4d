"""Run an external client against a ready service: bounded in time, ended with the service, judged by its file."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.core import process
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.log import last_words, read_tail
from jobs.measure.clients import ais_bench, prompts, vllm_bench
from jobs.measure.clients.asked import requests
from jobs.measure.clients.result import Result
from jobs.measure.metrics import generated_tokens, growth
from jobs.measure.records import Target
from jobs.measure.validity import silent_ranks
from jobs.measure.wire import Connections

LOG = "client.log"
SCRAPE_S = 5.0
STOP_S = 2.0

SEEDS_APART = 1_000_003
"""Distance of the seeds of two offsets: the clients know no offset, and prompts of one seed are the same prompts."""

MISCOUNT = 0.01
"""A client's count of tokens may differ by this share from the engines' own: it re-encodes the answers' text."""


class Client(Protocol):
    """A client that runs."""

    async def wait(self) -> process.Ended:
        """Wait until it has ended."""

    @property
    def ended(self) -> process.Ended | None:
        """How it ended, or None while it lives."""

    async def stop(self, grace_s: float) -> list[str]:
        """End it with all its children. Returns what could not be ended."""


class Room(Protocol):
    """Where a client runs: on the node, or in the container of rank 0's engine."""

    @property
    def inherited(self) -> Mapping[str, str]:
        """The environment that a client begins with."""

    def place(self, folder: Path) -> Path:
        """Return the directory that the client works in, whose content ends up in `folder`."""

    async def start(self, words: Sequence[str], env: Mapping[str, str], log: Path, tag: str) -> Client:
        """Start a client, with its output in `log`."""

    async def close(self, folder: Path) -> None:
        """Bring what the client wrote to `folder`."""


@dataclass(frozen=True)
class Node:
    """This node, for a client without a container.

    Args:
        inherited: the environment of the client, without the variables that belong to the engine.
        source: shell files that are sourced first.
    """

    inherited: Mapping[str, str]
    source: tuple[str, ...] = ()

    def place(self, folder: Path) -> Path:
        """Return the directory that the client works in."""
        return folder

    async def start(self, words: Sequence[str], env: Mapping[str, str], log: Path, tag: str) -> process.Process:
        """Start a client beside its log."""
        return await process.start(words, env, log, tag, self.source, cwd=log.parent)

    async def close(self, folder: Path) -> None:
        """Do nothing: all of it is there."""


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
    room: Room,
    tag: str,
    *,
    stop: asyncio.Event,
    on_phase: Callable[[str], None],
) -> External:
    """Run the client of this point once.

    Args:
        config: of the point.
        target: the service, ready.
        folder: takes log and results; what an earlier attempt left in it is removed.
        room: where it runs.
        mark: marks its processes.
        stop: once set, the client is ended.
        on_phase: told "window" when it begins.
    """
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    count, place = requests(config.bench), room.place(folder)
    if config.bench.client == "ais_bench":
        if config.bench.workload == "random":
            await prompts.write(config, target, place / ais_bench.PROMPTS, count)
        ais_bench.write_config(config, target, place, count)
        words = ais_bench.argv(config, place, count)
    else:
        words = vllm_bench.argv(config, target, place, count)
    on_phase("window")
    before = await _counters(target)
    began = time.monotonic()
    try:
        how = await _ended(config, words, environment(room.inherited, target), room, folder / LOG, tag, stop)
    finally:
        try:
            await room.close(folder)
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
        said = await asyncio.to_thread(last_words, read_tail(folder / LOG))
        reason = f"{config.bench.client} left no result ({how}): {error.reason}; its last words: {said}"
        return External(None, reason, tokens, seconds)
    return External(result, how if "limit" in how else judge(config, result, tokens), tokens, seconds)


async def _ended(
    config: Config, words: list[str], env: Mapping[str, str], room: Room, log: Path, tag: str, stop: asyncio.Event
) -> str:
    """Start the client and wait for its end, the limit, or `stop`. Returns how it ended."""
    client = await room.start(words, env, log, tag)
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
    if len(engine_tokens) == config.parallel.data_parallel_size:
        if silent := silent_ranks(config, engine_tokens):
            return silent
        made = sum(engine_tokens.values())
        if made < result.output_tokens * (1 - MISCOUNT):
            return f"it counted {result.output_tokens} tokens, and the engines made {made}"
    return None


async def _counters(target: Target) -> dict[str, float] | None:
    with closing(Connections(target.base_url, target.authorization)) as connections:
        return await generated_tokens(connections, SCRAPE_S)
