"""Waiting for the first of two things, for all of several ranks, and for blocking work."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest
from core_help import python

from jobs.core.waiting import Barrier, aside, first_of


async def after(event: asyncio.Event, value: str) -> str:
    await event.wait()
    return value


async def test_work_that_is_done_first_gives_its_result() -> None:
    end, done = asyncio.Event(), asyncio.Event()
    done.set()
    found = await first_of(after(done, "done"), end)
    assert found
    assert found.result() == "done"


async def test_work_that_fails_first_raises_where_it_is_asked() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    found = await first_of(fail(), asyncio.Event())
    assert found
    with pytest.raises(ZeroDivisionError):
        found.result()


@pytest.mark.parametrize("kind", ["event", "future"])
async def test_work_that_an_end_comes_before_is_cancelled(kind: str) -> None:
    cancelled, event = asyncio.Event(), asyncio.Event()
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    waiting = asyncio.create_task(first_of(work(), event, future))
    await asyncio.sleep(0)
    event.set() if kind == "event" else future.set_result("told to end")
    assert await waiting is None
    assert cancelled.is_set()
    assert not future.cancelled(), "others wait for it too"


async def test_work_that_is_to_go_on_goes_on() -> None:
    end, done = asyncio.Event(), asyncio.Event()
    end.set()
    work = asyncio.create_task(after(done, "done"))
    assert await first_of(work, end, cancel=False) is None
    done.set()
    assert await work == "done"


async def test_of_work_and_end_together_the_work_counts() -> None:
    both = asyncio.Event()
    both.set()
    found = await first_of(after(both, "done"), both)
    assert found
    assert found.result() == "done"


async def test_who_is_cancelled_while_waiting_leaves_no_work_behind() -> None:
    work = asyncio.create_task(asyncio.Event().wait())
    waiting = asyncio.create_task(first_of(work, asyncio.Event()))
    await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert work.cancelled()


async def test_a_barrier_waits_for_all_that_are_expected() -> None:
    there = {1, 2}
    barrier = Barrier[str](lambda: there)
    waiting = asyncio.create_task(barrier.wait())
    barrier.answer(1, "one")
    await asyncio.sleep(0)
    assert not waiting.done()
    barrier.answer(2, "two")
    await waiting
    assert barrier == {1: "one", 2: "two"}


async def test_a_barrier_does_not_wait_for_a_rank_that_is_lost() -> None:
    there = {1, 2}
    barrier = Barrier[str](lambda: there)
    waiting = asyncio.create_task(barrier.wait())
    barrier.answer(1, "one")
    await asyncio.sleep(0)
    there.discard(2)
    barrier.check()
    await waiting


async def test_a_barrier_of_nobody_is_open() -> None:
    await Barrier[str](set).wait()


async def test_work_aside_returns_or_raises_and_the_loop_goes_on() -> None:
    came = threading.Event()
    asyncio.get_running_loop().call_soon(came.set)
    assert await aside(came.wait, 20)
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 // 0)


def test_a_tool_that_never_ends_does_not_keep_the_rank(tmp_path: Path) -> None:
    """The limit is that of a hang: the work would take an hour."""
    code = (
        "import asyncio, time\nfrom jobs.core.waiting import aside\n"
        "async def main():\n"
        "    with __import__('contextlib').suppress(TimeoutError):\n"
        "        await asyncio.wait_for(aside(time.sleep, 3600), 0.1)\n"
        "asyncio.run(main())\nprint('over')"
    )
    with python("-c", code, cwd=tmp_path) as process:
        assert process.communicate(timeout=120)[0] == "over\n"
