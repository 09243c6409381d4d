"""An external client on a rehearsed service: it is warmed up before, and watched meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp
from simulator_help import LIMIT_S, Service, service
from test_point import CONFIG, FLAGS, asked

from jobs.core.process import Ended
from jobs.core.rundir import PointDir
from jobs.measure.clients.run import ExternalRun
from jobs.measure.point import Measured, OfService, PointRun
from jobs.measure.records import Target
from jobs.measure.saved import save
from jobs.results.row import make_row

REQUESTS = 12
BODY = {"model": "tiny", "prompt": list(range(100, 164)), "max_tokens": 8, "ignore_eos": True}
SAYS = {
    "completed": REQUESTS, "duration": 1.0, "request_throughput": 12.0, "output_throughput": 9.0,
    "total_token_throughput": 9.0, "total_input_tokens": 64 * REQUESTS, "total_output_tokens": 8 * REQUESTS,
    "output_lens": [8] * REQUESTS,
}  # fmt: skip


class Done:
    """A client that has ended before anybody asked."""

    ended = Ended(0)

    async def wait(self) -> Ended:
        return self.ended

    async def stop(self, grace_s: float) -> list[str]:
        return []


class Site:
    """A site whose client says that it sent REQUESTS and really sends `sent`."""

    inherited: Mapping[str, str] = {}

    def __init__(self, url: str, sent: int) -> None:
        self._url, self._sent = url, sent
        self.argv: list[Sequence[str]] = []

    def place(self, folder: Path) -> Path:
        return folder

    async def start(self, argv: Sequence[str], env: Mapping[str, str], log: Path, tag: str) -> Done:
        self.argv.append(argv)
        async with aiohttp.ClientSession(self._url) as session:
            for _ in range(self._sent):
                async with session.post("/v1/completions", json=BODY) as response:
                    assert response.status == 200
        (log.parent / "vllm_bench.json").write_text(json.dumps(SAYS))
        return Done()

    async def close(self, folder: Path) -> None:
        pass


async def measured(made: Service, phases: list[str], folder: Path, sent: int = REQUESTS) -> tuple[Measured, Site]:
    config, site = asked(client="vllm_bench", canary="off", num_requests=REQUESTS), Site(made.url, sent)
    client = ExternalRun(config, site, folder / "client", "tag")
    run = PointRun(config, Target(made.url, "tiny"), OfService(), None, asyncio.Event(), phases.append, client)
    await asyncio.wait_for(run.run(), 3 * LIMIT_S)
    return run.result(), site


async def test_the_service_is_warm_before_the_client_and_watched_meanwhile(tmp_path: Path) -> None:
    phases: list[str] = []
    async with service(*FLAGS) as made:
        await made.both()
        point, site = await measured(made, phases, tmp_path)
    assert phases == ["warm", "measuring"]
    assert [argv[argv.index("--seed") + 1] for argv in site.argv] == ["0"]
    assert point.reason is None
    [window] = point.windows
    assert window.warmup_s >= 0.2, "bench.warmup_s"
    assert window.finished == REQUESTS, "the warm-up has run dry before"
    assert {sample.engine for sample in window.series} == {"0", "1"}
    assert point.figures["preemptions"] == 0
    make_row("p", "s", CONFIG, **point.figures)
    save(PointDir(tmp_path), point)


async def test_requests_that_the_client_does_not_know_of_make_its_row_invalid(tmp_path: Path) -> None:
    async with service(*FLAGS) as made:
        await made.both()
        point, _ = await measured(made, [], tmp_path, sent=REQUESTS + 3)
    assert point.reason == "2 requests that were not ours ran on the service", "one may be its own first try"


async def test_a_service_that_answers_nothing_is_not_measured(tmp_path: Path) -> None:
    phases: list[str] = []
    async with service(*FLAGS) as made:
        await made.both()
    point, _ = await measured(made, phases, tmp_path)
    assert phases == ["warm"]
    assert (point.reason or "").startswith("the window never opened: no answer within bench.warmup_s")
    assert point.truncated
