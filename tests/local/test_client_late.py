"""The client as the subject, in real time and a process of its own: it is stopped, and it is starved of its processor.

Nothing here depends on how fast the machine is: a client that kept time is a case of tests/unit/test_oracle_gate.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from measure_stub import Answer, serving

from jobs.core.config import Bench

WINDOW_S = 12.0
BENCH = Bench(concurrency=8, input_tokens=16, output_tokens=8, warmup_s=0.5, window_s=WINDOW_S, canary="off", repeats=1)

CHILD = f"""
import asyncio, json, sys
from jobs.core.config import Bench, Config, Model
from jobs.measure.point import OfService, PointRun
from jobs.measure.records import Target

bench = Bench(**json.loads(sys.argv[2]), window_s={WINDOW_S})
config = Config(bench=bench, model=Model(name="stub", path="/models/stub", served_model_name="stub"))

async def main():
    news = lambda phase: print(phase, flush=True)
    run = PointRun(config, Target(sys.argv[1], "stub"), OfService(), None, asyncio.Event(), news)
    await run.run()
    measured = run.result()
    print(json.dumps([measured.reason, measured.figures["client_lag_ms_p99"]]), flush=True)

asyncio.run(main())
"""


async def answered(answer: Answer) -> None:
    await answer.open()
    for _ in range(answer.asked["max_tokens"]):
        await asyncio.sleep(0.03)
        await answer.tokens(1)
    await answer.end()


@asynccontextmanager
async def measuring() -> AsyncIterator[asyncio.subprocess.Process]:
    """Give a client, in a process of its own, whose window has just been opened."""
    asked = {
        key: getattr(BENCH, key)
        for key in ("concurrency", "input_tokens", "output_tokens", "warmup_s", "canary", "repeats")
    }
    async with serving(BENCH, answered) as stub:
        stub.generated = None  # no counters
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, stub.target.base_url, json.dumps(asked), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        try:
            while (line := await child.stdout.readline()) != b"measuring\n":
                assert line, "the client ended too early"
            yield child
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()


async def said(child: asyncio.subprocess.Process) -> Any:
    assert child.stdout is not None
    return json.loads((await child.stdout.read()).split(b"\n")[-2])


async def test_a_client_that_was_stopped_says_so() -> None:
    async with measuring() as child:
        os.kill(child.pid, signal.SIGSTOP)
        await asyncio.sleep(2.0)  # what is measured is this time itself
        os.kill(child.pid, signal.SIGCONT)
        reason, lag_ms = await said(child)
    assert reason.startswith("the client stood still for ") and lag_ms > 1000


async def test_a_client_that_shares_its_core_with_three_others_says_so() -> None:
    async with measuring() as child:
        core = min(os.sched_getaffinity(0))
        os.sched_setaffinity(child.pid, {core})
        loops = [await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass") for _ in range(3)]
        try:
            for loop in loops:
                os.sched_setaffinity(loop.pid, {core})
            reason, lag_ms = await said(child)
        finally:
            for loop in loops:
                loop.kill()
                await loop.wait()
    # How late it is made is the kernel's choice; that it is told where it was so is ours.
    late = (reason or "").startswith(("the client was starved of its processor", "the client stood still for "))
    # One late beat in a hundred makes this p99; the client was starved where half a second of them was late.
    assert lag_ms > 20 if late else reason is None, (reason, lag_ms)
