"""Signals that end a rank: heard while it works, harmless after that."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from core_help import python

from jobs.allocation.signals import SIGNALS, Signals
from jobs.allocation.walltime import TIME_IS_UP, Walltime

LATE = """
import asyncio.selector_events, signal, sys
from pathlib import Path
from jobs.allocation import rank
from jobs.cluster.nodelist import Task
from jobs.core.rundir import AllocationDir

closed = asyncio.selector_events.BaseSelectorEventLoop.close

def close(loop):
    closed(loop)
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2):  # Slurm's, while the loop is being closed
        signal.raise_signal(number)

asyncio.selector_events.BaseSelectorEventLoop.close = close
code = rank.run(AllocationDir(Path("there/is/none")), Task(1, 2, 4711, ("node0", "node1"), "node1"))
signal.raise_signal(signal.SIGTERM)
print("the rest is submitted", flush=True)
sys.exit(code)
"""


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_comes_when_the_work_is_done_neither_kills_nor_complains(tmp_path: Path) -> None:
    done = python("-c", LATE, cwd=tmp_path)
    out, err = done.communicate(timeout=60)
    assert (done.returncode, err) == (1, "")
    assert out.startswith("error: there/is/none")
    assert out.endswith("the rest is submitted\n")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
async def test_the_first_signal_is_the_reason(handlers: None, number: signal.Signals) -> None:
    ending = Signals(asyncio.get_running_loop())
    assert not ending.stopping.done()
    signal.raise_signal(number)
    assert await asyncio.wait_for(ending.stopping, 90) == SIGNALS[number]
    for other in SIGNALS:
        signal.raise_signal(other)
    await asyncio.sleep(0)
    assert ending.stopping.result() == SIGNALS[number]


CANCELLED = SIGNALS[signal.SIGTERM]


@pytest.mark.parametrize(
    ("left_s", "reason"),
    [
        (None, CANCELLED),
        (600.0, CANCELLED),
        (30.0, CANCELLED),
        (3.0, TIME_IS_UP),
        (-30.0, TIME_IS_UP),  # Slurm looks at limits every 30 s
        (-600.0, CANCELLED),  # the limit was extended
    ],
)
async def test_a_sigterm_at_the_time_limit_is_the_time_limit(handlers: None, left_s: float | None, reason: str) -> None:
    ending = Signals(asyncio.get_running_loop())
    ending.walltime = Walltime.of(left_s)
    signal.raise_signal(signal.SIGTERM)
    assert await asyncio.wait_for(ending.stopping, 90) == reason


async def test_ctrl_c_at_the_time_limit_is_still_ctrl_c(handlers: None) -> None:
    ending = Signals(asyncio.get_running_loop())
    ending.walltime = Walltime.of(1.0)
    signal.raise_signal(signal.SIGINT)
    assert await asyncio.wait_for(ending.stopping, 90) == SIGNALS[signal.SIGINT]
