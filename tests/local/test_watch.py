"""Signs of life of the engines: who is named when nobody answers, against a real HTTP server with faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from core_help import change, config

from jobs.allocation import watch
from jobs.allocation.readiness import probe_all
from jobs.allocation.watch import Watch, probe_limit_s, tokens_ahead
from jobs.core.errors import RunError
from jobs.measure.metrics import GENERATED
from jobs.measure.records import Target
from jobs.measure.wire import Connections

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "TICK_S", 0.02)


class Api:
    """Two engines behind one API server. What stands still waits for ever, as a stopped process does."""

    def __init__(self) -> None:
        self.tokens = {"0": 0, "1": 0}
        self.still: set[str] = set()
        self.busy: set[str] = set()
        self.probed: list[str] = []

    async def handle(self, request: web.Request) -> web.Response:
        await self._pass("api")
        if request.path == "/metrics":
            for engine in self.busy:
                self.tokens[engine] += 1
            text = "".join(f'{GENERATED}{{engine="{name}"}} {count}\n' for name, count in self.tokens.items())
            return web.Response(text=text)
        if request.path == "/health":
            return web.Response()
        assert request.path == "/v1/completions"
        engine = request.headers["X-data-parallel-rank"]
        self.probed.append(engine)
        await self._pass(engine)
        self.tokens[engine] += 1
        return web.json_response({"choices": []})

    async def _pass(self, part: str) -> None:
        if part in self.still:
            await asyncio.Event().wait()


def settings(**limits: float) -> Any:
    usual = {"parallel__max_model_len": 1, "limits__heartbeat_s": 0.2, "limits__probe_s": 0.3, "limits__idle_s": 60.0}
    return change(config("cluster=local"), **usual | {f"limits__{key}": value for key, value in limits.items()})


class Watching:
    """A watch that runs, and what it was the first to say."""

    def __init__(self, api: Api, watched: Watch, failed: asyncio.Future[tuple[int, str]]) -> None:
        self.api, self.watch, self._failed = api, watched, failed

    async def failed(self) -> tuple[int, str]:
        return await asyncio.wait_for(asyncio.shield(self._failed), PATIENCE_S)

    async def until(self, ask: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not ask():
                assert not self._failed.done(), self._failed.result()
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Api, str]]:
    """Serve the API; yield it and its address."""
    api = Api()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield api, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def watching(**limits: float) -> AsyncIterator[Watching]:
    failed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    def fail(rank: int, reason: str) -> None:
        if not failed.done():
            failed.set_result((rank, reason))

    async with serving() as (api, url):
        watched = Watch(settings(**limits), Target(url, "m"), fail)
        task = asyncio.create_task(watched.run())
        yield Watching(api, watched, failed)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_engines_that_answer_probes_are_alive_and_their_tokens_are_counted() -> None:
    async with watching() as one:
        await one.until(lambda: {"0", "1"} <= set(one.api.probed) and len(one.watch.probed) >= 4)
        counted = one.watch.tokens_between(0.0, float("inf"))
        assert set(counted) == {"0", "1"}
        assert sum(counted.values()) == len(one.watch.probed)
        assert one.watch.tokens_between(0.0, 0.0) == {}


@pytest.mark.parametrize("engine", [0, 1])
async def test_an_engine_that_stands_still_is_named_by_its_node(engine: int) -> None:
    async with watching() as one:
        await one.until(lambda: bool(one.api.probed))
        one.api.still.add(str(engine))
        rank, reason = await one.failed()
        assert rank == engine
        assert reason.startswith(f"data-parallel rank {engine} gave no sign of life: no answer within ")
        assert "limits.probe_s" in reason


async def test_an_engine_that_is_busy_with_others_is_not_at_fault() -> None:
    async with watching() as one:
        one.api.busy.add("1")
        one.api.still.add("1")
        await one.until(lambda: len(one.watch.probed) >= 3)
        assert "1" not in one.api.probed


async def test_an_api_server_that_answers_nothing_is_the_heads_fault() -> None:
    async with watching() as one:
        await one.until(lambda: {"0", "1"} <= set(one.api.probed))
        one.api.still.add("api")
        rank, reason = await one.failed()
        assert rank == 0
        assert reason.startswith("its API server gave no sign of life")


async def test_a_service_that_nobody_uses_ends_and_its_own_probes_are_no_use() -> None:
    async with watching(idle_s=0.4) as one:
        assert await one.failed() == (0, "no request ran for 0.4 s (limits.idle_s)")
        assert one.watch.probed


@pytest.mark.parametrize(
    ("still", "words"),
    [("1", "data-parallel rank 1 answered no one-token request"), ("01", "not every data-parallel rank answered a")],
)
async def test_the_engine_whose_first_token_does_not_come_is_named(still: str, words: str) -> None:
    async with serving() as (api, url):
        api.still |= set(still)
        opened = Connections.to(Target(url, "m"))
        with pytest.raises(RunError, match=words) as caught:
            await probe_all(opened, settings(first_token_s=0.3), Target(url, "m"))
        assert caught.value.key == "limits.first_token_s"


def test_a_probe_may_wait_behind_a_prefill_of_full_length() -> None:
    assert probe_limit_s(settings(probe_s=10.0)) == pytest.approx(10.0, abs=0.01)
    long = change(settings(probe_s=10.0), parallel__max_model_len=131072)
    assert probe_limit_s(long) > 110, "a prefill of 131,072 tokens of R1 takes up to 100 s"


@pytest.mark.parametrize("steps", range(6))
async def test_a_watch_ends_when_it_is_cancelled_at_whatever_step_of_an_answer(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[asyncio.Future[dict[str, int]]] = []
    second = asyncio.Event()

    async def counters(*_: object) -> dict[str, int]:
        asked.append(asyncio.get_running_loop().create_future())
        if len(asked) > 1:
            second.set()
        return await asked[-1]

    monkeypatch.setattr(watch, "counters", counters)
    watched = Watch(settings(heartbeat_s=60.0), Target("http://127.0.0.1:1", "m"), lambda *_: None)
    task = asyncio.create_task(watched._engine(None, 0))
    while not asked:
        await asyncio.sleep(0)
    asked[0].set_result({"0": 0})
    await asyncio.wait_for(second.wait(), PATIENCE_S)
    asked[1].set_result({"0": 1})
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
    assert done, "a cancelled watch must not go on"


@pytest.mark.parametrize(
    ("values", "ahead"),
    [
        ({"bench__concurrency": 4, "bench__input_tokens": 64, "bench__output_tokens": 8}, 288),
        ({"bench__concurrency": 64, "bench__input_tokens": 1024, "bench__output_tokens": 128}, 8192),
        ({"bench__concurrency": 1, "bench__input_tokens": 100_000, "bench__output_tokens": 24}, 100_024),
        ({"bench__concurrency": None, "bench__request_rate": 1.0, "bench__input_tokens": 64}, 8192),
        ({"bench__lengths": "lognormal"}, None),
        ({"bench__workload": "multi_turn"}, None),
        ({"bench__client": "vllm_bench"}, None),
        ({"bench__quality": "needle"}, None),
        ({"engine__api_key": None}, None),
        ({"parallel__max_num_batched_tokens": None}, None),
    ],
)
def test_only_what_may_be_in_flight_may_delay_a_probe(values: dict[str, Any], ahead: int | None) -> None:
    one = change(settings(probe_s=10.0), **{"parallel__max_model_len": 131072, "bench__concurrency": 4} | values)
    assert tokens_ahead(one) == ahead
    assert probe_limit_s(one, ahead) == pytest.approx(10.0 + (131072 if ahead is None else ahead) / 1000)


async def test_an_engine_without_long_prompts_is_given_up_early_at_any_max_model_len() -> None:
    async with watching() as one:
        one.watch.config = change(one.watch.config, parallel__max_model_len=10**9)
        one.watch.ahead = 0
        one.api.still.add("1")
        rank, _ = await one.failed()
        assert rank == 1
