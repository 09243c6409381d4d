"""An external client on a rehearsed service: it is warmed up before, and watched meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
from simulator_help import LIMIT_S, Service, service
from test_point import CONFIG, FLAGS, asked

from jobs.core.rundir import PointDir
from jobs.measure.clients.result import Result, figures
from jobs.measure.clients.run import External
from jobs.measure.keep import keep
from jobs.measure.point import Measured, OfService, PointRun
from jobs.measure.records import Target
from jobs.results.row import make_row

REQUESTS = 12
BODY = {"model": "tiny", "prompt": list(range(100, 164)), "max_tokens": 8, "ignore_eos": True}


async def measured(made: Service, phases: list[str], sent: int = REQUESTS, **bench: Any) -> Measured:
    """Measure by a client that says it sent REQUESTS and really sends `sent`."""
    config = asked(client="vllm_bench", canary="off", **bench)

    def no_probes(begin_s: float, end_s: float) -> Mapping[str, int]:
        return {}

    async def client(seed_offset: int) -> External:
        phases.append(f"client {seed_offset}")
        async with aiohttp.ClientSession(made.url) as session:
            for _ in range(sent):
                async with session.post("/v1/completions", json=BODY) as response:
                    assert response.status == 200
        known = {"completed": REQUESTS, "failed": 0, "input_tokens_mean": 64.0, "output_tok_s": 9.0}
        tokens = {"0": sent * 4, "1": sent * 4}
        result = Result(REQUESTS, REQUESTS, 0, 1.0, REQUESTS * 8, [8] * REQUESTS, [], figures(known))
        return External(result, None, tokens, 1.0)

    target = Target(made.url, "tiny")
    run = PointRun(config, target, OfService(), no_probes, asyncio.Event(), phases.append, client)
    await asyncio.wait_for(run.run(), 3 * LIMIT_S)
    return run.result()


async def test_the_service_is_warm_before_the_client_and_watched_meanwhile(tmp_path: Any) -> None:
    phases: list[str] = []
    async with service(*FLAGS) as made:
        await made.both()
        point = await measured(made, phases)
    assert phases == ["warmup", "client 0"]
    assert point.reason is None
    [window] = point.windows
    assert window.warmup_s >= 0.2, "bench.warmup_s"
    assert window.finished == REQUESTS, "the warm-up has run dry before"
    assert {sample.engine for sample in window.series} == {"0", "1"}
    assert point.figures["preemptions"] == 0
    make_row("p", "s", CONFIG, **point.figures)
    keep(PointDir(tmp_path), point)


async def test_requests_that_the_client_does_not_know_of_make_its_row_invalid() -> None:
    async with service(*FLAGS) as made:
        await made.both()
        point = await measured(made, [], sent=REQUESTS + 3)
    assert point.reason == "2 requests that were not ours ran on the service", "one may be its own first try"


async def test_a_service_that_answers_nothing_is_not_measured() -> None:
    phases: list[str] = []
    async with service(*FLAGS) as made:
        await made.both()
    point = await measured(made, phases)
    assert phases == ["warmup"]
    assert (point.reason or "").startswith("the window never opened: no answer within bench.warmup_s")
    assert point.truncated
