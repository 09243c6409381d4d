"""Rehearsal engines as real processes on loopback, for the tests of jobs/engines/simulator."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from jobs.core.service_config import Shape
from jobs.engines.ascend import release
from jobs.engines.simulator.settings import RehearsalSpec, Settings, hardware, parse, settle

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 90.0
"""A test that waits longer for an event fails."""

READY = "Application startup complete."

R1 = Shape(
    parameters=671e9,
    active_parameters=37e9,
    weight_gib=640.0,
    kv_bytes_per_token=70272,
    max_position_embeddings=163840,
    token_ids=(1000, 120000),
)


def settled(*argv: str, spec: RehearsalSpec | None = None, env: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of `vllm serve m ARGV...`."""
    return settle(parse(["serve", "m", *argv], release("0.9.1")).args, spec or RehearsalSpec(shape=R1), env or {})


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Rank:
    """One running rank; its output is read all the time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            async with self._news:
                self.lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def says(self, words: str) -> str:
        """Wait until a line with these words appears and return it; fail when the output ends without it."""
        async with asyncio.timeout(LIMIT_S), self._news:
            while True:
                for line in self.lines:
                    if words in line:
                        return line
                assert not self._reader.done(), self.output
                await self._news.wait()

    async def ends(self) -> int:
        """Wait for the end of the process and return its exit code."""
        async with asyncio.timeout(LIMIT_S):
            await self._reader
            return await self.process.wait()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.ends()


class Service:
    """Ports, flags and ranks of one rehearsal of two data-parallel ranks on loopback."""

    def __init__(self, *flags: str, env: Mapping[str, str] | None = None, **rehearsal: Any) -> None:
        self.port, self.rpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ranks: list[Rank] = []
        self._flags, self._env = flags, dict(env or {})
        constants = asdict(hardware()) | {"overhead_ms": 2.0, "prefill_overhead_ms": 0.0}
        constants |= {key: value for key, value in rehearsal.items() if key in constants}
        others = {key: value for key, value in rehearsal.items() if key not in constants}
        self._spec = {"load_s": 0.0, "hardware": constants} | others

    async def start(self, rank: int, *flags: str, headless: bool | None = None, level: str = "INFO") -> Rank:
        """Start one rank; every rank but 0 is headless."""
        given = [
            "--port",
            str(self.port),
            "--host",
            "127.0.0.1",
            "--served-model-name",
            "tiny",
            "-dp",
            "2",
            "-dpl",
            "1",
        ]
        given += ["--max-model-len", "4096", "--data-parallel-rpc-port", str(self.rpc_port), *self._flags]
        if headless if headless is not None else rank > 0:
            given += ["--headless", "--data-parallel-start-rank", str(rank)]
        spec = json.dumps({"rank": rank, **self._spec})
        started = await run_rank(
            "/models/tiny", *given, *flags, spec=spec, env={**self._env, "VLLM_LOGGING_LEVEL": level}
        )
        self.ranks.append(started)
        return started

    async def both(self) -> tuple[Rank, Rank]:
        """Start both ranks and wait until the head answers."""
        head, second = await asyncio.gather(self.start(0), self.start(1))
        await head.says(READY)
        return head, second

    async def stop(self) -> None:
        for rank in self.ranks:
            await rank.kill()


async def run_rank(*argv: str, spec: str = "", env: Mapping[str, str] | None = None) -> Rank:
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_API_KEY"} | {"REHEARSAL_SPEC": spec, **(env or {})}
    return Rank(
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "jobs.engines.simulator",
            "serve",
            *argv,
            cwd=ROOT,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    )


@asynccontextmanager
async def service(*flags: str, env: Mapping[str, str] | None = None, **rehearsal: Any) -> AsyncIterator[Service]:
    """A service whose processes are gone at the end."""
    made = Service(*flags, env=env, **rehearsal)
    try:
        yield made
    finally:
        await made.stop()


class Client:
    """Calls one service."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def status(self, path: str) -> int:
        async with self.session.get(path) as response:
            return response.status

    async def json(self, path: str) -> Any:
        async with self.session.get(path) as response:
            return await response.json()

    async def ask(self, rank: int | None = None, path: str = "/v1/completions", **body: Any) -> tuple[int, Any]:
        headers = {} if rank is None else {"X-data-parallel-rank": str(rank)}
        given = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": True} | body
        async with self.session.post(path, json=given, headers=headers) as response:
            return response.status, json.loads(await response.text() or "null")

    async def events(self, rank: int | None = None, path: str = "/v1/completions", **body: Any) -> list[Any]:
        """Return the events of a stream; [DONE] as the word."""
        headers = {} if rank is None else {"X-data-parallel-rank": str(rank)}
        given = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": True, "stream": True} | body
        async with self.session.post(path, json=given, headers=headers) as response:
            assert response.status == 200 and response.content_type == "text/event-stream"
            parts = (await response.text()).split("\n\n")
        assert parts.pop() == ""
        words: Sequence[str] = [part.removeprefix("data: ") for part in parts]
        return [word if word == "[DONE]" else json.loads(word) for word in words]

    async def metric(self, name: str, engine: int) -> float | None:
        async with self.session.get("/metrics") as response:
            text = await response.text()
        prefix = f'vllm:{name}{{engine="{engine}",model_name="tiny"}} '
        found = [line for line in text.splitlines() if line.startswith(prefix)]
        return float(found[0].removeprefix(prefix)) if found else None


@asynccontextmanager
async def client(of: Service, key: str | None = None) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=LIMIT_S)
    async with aiohttp.ClientSession(of.url, headers=headers, timeout=timeout) as session:
        yield Client(session)
