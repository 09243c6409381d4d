"""Life and death of one service on two ranks: real processes, a real channel, a real HTTP stub."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from supervisor_help import PATIENCE_S, Running, Stage, free_port, tagged

from jobs.allocation import headless, life, readiness, supervisor
from jobs.allocation.control import ControlClient, ControlServer, join
from jobs.allocation.handshake import Secret
from jobs.allocation.life import Life, ServiceFailed
from jobs.allocation.messages import (
    Bye,
    Ended,
    EngineStart,
    Inspect,
    Inspected,
    Prepare,
    Prepared,
    Progress,
    Signalled,
    Stop,
    Stopped,
)
from jobs.allocation.node import cleanup, staging
from jobs.allocation.node.engine import Engine
from jobs.allocation.supervisor import Supervisor
from jobs.core.errors import RunError
from jobs.core.files import read_json, read_lines
from jobs.core.rundir import RankDir

Make = Callable[..., Any]

START = EngineStart("s", "p", 2, 1, "127.0.0.1", "0", "0")
"""The engines of this test are made by the test itself: two ranks is all that it tells."""


@pytest_asyncio.fixture
async def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Make one service; whatever is left at the end of the test is ended."""
    monkeypatch.setattr(life, "SETTLE_S", 0.15)
    monkeypatch.setattr(supervisor, "PROGRESS_S", 0.05)
    monkeypatch.setattr(readiness, "POLL_S", 0.02)
    made: list[Running] = []

    async def make(
        serve: Callable[[ControlClient], Any] | None = None,
        make_engine: headless.MakeEngine | None = None,
        **stage: Any,
    ) -> Running:
        here = Stage(tmp_path, stage.pop("roles", {}), **stage)
        control, port = ControlServer(2, Secret("key"), 10.0), free_port()
        await control.open(port)
        client = await join("127.0.0.1", port, 1, Secret("key"), 10.0, PATIENCE_S)
        await control.joined(PATIENCE_S)
        engine = make_engine or (lambda _: here.engine(1))
        work = serve(client) if serve else headless.serve(client, engine, dict(os.environ))
        task = asyncio.create_task(work)
        alive = Life(here.stopping)
        running = Running(here, Supervisor(here.engine(0), control, START, alive), alive, control, client, task)
        made.append(running)
        return running

    yield make
    for one in made:
        with contextlib.suppress(Exception):
            await one.supervisor.stop()
        await one.control.send(Bye())
        with contextlib.suppress(BaseException):
            await asyncio.wait_for(one.headless, PATIENCE_S)
        await one.control.close()
        for pipe in one.stage.orders.values():
            pipe.close()


async def test_a_service_starts_works_and_stops_on_both_ranks(run: Make) -> None:
    running = await run()
    await running.start()
    stage = running.stage
    assert {stage.pid(0), stage.pid(1)} <= set(tagged(stage))

    async def work() -> str:
        return "figures"

    assert await running.life.during(work()) == "figures"
    assert await running.life.failure() is None
    assert await running.stop() == []
    assert tagged(stage) == []
    assert stage.states(0) == ["staged", "loading", "healthy", "ready", "draining", "done"]
    assert stage.states(1) == ["staged", "loading", "healthy", "ready", "draining", "done"], "as rank 0 tells it"
    for rank in (0, 1):
        intended = read_json(stage.folder.rank(rank).command)
        assert ("--headless" in intended["argv"]) == (rank == 1)
        effective = read_json(stage.folder.rank(rank).effective)
        assert effective["argv"] == intended["argv"]
        assert stage.folder.rank(rank).log.read_text() == f"{'headless' if rank else 'head'} starts\n"


@pytest.mark.parametrize(("role", "rank"), [("head", 0), ("headless", 1)])
@pytest.mark.parametrize(("phase", "code"), [("loading", 3), ("in use", 0)])
async def test_any_exit_of_any_rank_ends_the_service_and_is_named(
    run: Make, role: str, rank: int, code: int, phase: str
) -> None:
    running = await run(roles={"head": {"healthy": phase == "in use"}})
    words = f"ValueError: the words of {role}"
    if phase == "loading":
        starting = asyncio.create_task(running.start())
        running.stage.order(role, code, words)
        with pytest.raises(ServiceFailed) as caught:
            await starting
        reason = caught.value.reason
    else:
        await running.start()
        running.stage.order(role, code, words)
        reason = await running.failed()
    assert reason == f"rank {rank} ({role}): engine exited with code {code}: {words}"
    assert await running.stop() == []
    assert tagged(running.stage) == []
    assert "failed" in running.stage.states(rank)


async def obedient(client: ControlClient, failed: asyncio.Event | None = None) -> str | None:
    """A rank without an engine; it reports a failure of a second ago once it is told to."""
    while (message := await client.receive()) is not None:
        match message:
            case Inspect():
                await client.send(Inspected())
                if failed:
                    await failed.wait()
                    await client.send(Ended("EI0006: link down", time.time() - 1))
            case Stop():
                await client.send(Stopped(("pid 7 python",)))
            case Bye():
                return None
    return None


async def test_the_first_failing_rank_is_named_though_the_other_is_heard_first(run: Make) -> None:
    told = asyncio.Event()
    running = await run(serve=lambda client: obedient(client, told), roles={"head": {"alone": True}})
    await running.start()
    running.stage.order("head", 1, "RuntimeError: peer is gone")
    while not running.life._failed.is_set():
        await asyncio.sleep(0)
    told.set()
    assert await running.failed() == "rank 1 (headless): EI0006: link down"
    assert await running.stop() == ["rank 1: pid 7 python"]


@pytest.mark.parametrize("second", ["a", "c"])
async def test_a_rank_with_another_image_is_told_which_one_to_take(
    run: Make, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    asked: list[dict[str, str]] = []

    async def prepare(*_: Any) -> staging.Parts:
        return {"image digest": "a", "image id": "1", "sizes": "7"}

    async def serve(client: ControlClient) -> str | None:
        while (message := await client.receive()) is not None:
            match message:
                case Prepare(_, wanted):
                    asked.append(wanted)
                    first = {"image digest": "b", "image id": "2", "sizes": "7"}
                    await client.send(Prepared({"image digest": second} if wanted else first))
                case Inspect():
                    await client.send(Inspected())
                case Stop():
                    await client.send(Stopped())
                case Bye():
                    return None
        return None

    monkeypatch.setattr(staging, "prepare", prepare)
    monkeypatch.setattr(staging, "wanted", lambda _: True)
    running = await run(serve=serve, roles={"head": {"alone": True}})
    if second == "a":
        await running.start()
    else:
        with pytest.raises(ServiceFailed, match=r"rank 1 .*digest c \(a there\)\. Pull it again on both nodes"):
            await running.start()
    assert asked == [{}, {"image digest": "a", "image id": "1"}]
    [warning] = running.supervisor.warnings
    assert warning.startswith(
        "rank 1: its container image is not that of rank 0: digest b (a there), id 2 (1 there); it"
    )
    assert await running.stop() == []


async def test_a_killed_engine_is_named_with_its_signal(run: Make) -> None:
    running = await run()
    await running.start()
    os.kill(running.stage.pid(1), 9)
    assert (await running.failed()) == "rank 1 (headless): engine killed by SIGKILL: headless starts"


async def test_a_death_that_the_client_saw_first_is_the_reason(run: Make) -> None:
    running = await run()
    await running.start()
    os.kill(running.stage.pid(0), 9)
    assert (await running.life.failure_soon() or "").startswith("rank 0 (head): engine killed by SIGKILL")


async def test_a_service_that_lives_has_no_failure_soon(run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "SETTLE_S", 0.05)
    running = await run()
    await running.start()
    assert await running.life.failure_soon() is None


async def test_work_that_can_end_itself_keeps_its_result(run: Make) -> None:
    running = await run()
    await running.start()
    begun, stop = asyncio.Event(), asyncio.Event()

    async def measure() -> str:
        begun.set()
        await stop.wait()
        return "what was measured so far"

    work = asyncio.create_task(running.life.during(measure(), stop.set))
    await begun.wait()
    running.stage.order("head", 0)
    assert await asyncio.wait_for(work, PATIENCE_S) == "what was measured so far"
    assert (await running.life.failure() or "").startswith("rank 0 (head): engine exited with code 0")
    with pytest.raises(ServiceFailed):
        await running.life.during(measure(), stop.set)


async def test_work_that_cannot_end_itself_is_cancelled(run: Make) -> None:
    running = await run()
    await running.start()
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def measure() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    work = asyncio.create_task(running.life.during(measure()))
    await begun.wait()
    running.stage.order("headless", 0)
    with pytest.raises(ServiceFailed, match=r"rank 1 \(headless\)"):
        await work
    assert cancelled.is_set()


async def test_work_that_fails_by_itself_is_its_own_error(run: Make) -> None:
    running = await run()
    await running.start()

    async def measure() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await running.life.during(measure())
    assert await running.life.failure() is None


async def test_a_signal_to_us_ends_the_work_with_its_reason(run: Make) -> None:
    running = await run()
    await running.start()
    work = asyncio.create_task(running.failed())
    running.stage.stopping.set_result("cancelled or preempted (SIGTERM)")
    assert await work == "cancelled or preempted (SIGTERM)"
    assert await running.life.failure() == "cancelled or preempted (SIGTERM)"
    assert await running.stop() == []


async def test_an_engine_that_slurm_signals_with_us_did_not_fail_by_itself(run: Make) -> None:
    running = await run()
    await running.start()
    running.stage.stopping.set_result("cancelled or preempted (SIGTERM)")
    running.stage.order("headless", 143, "Shutdown signal received")
    await asyncio.wait_for(running.life._failed.wait(), PATIENCE_S)
    assert await running.failed() == "cancelled or preempted (SIGTERM)"


async def test_a_failure_that_came_well_before_the_signal_stays_the_reason(run: Make) -> None:
    running = await run()
    await running.start()
    running.stage.order("headless", 1, "RuntimeError: device lost")
    await running.failed()  # waits for the settling
    running.stage.stopping.set_result("cancelled or preempted (SIGTERM)")
    assert await running.failed() == "rank 1 (headless): engine exited with code 1: RuntimeError: device lost"


async def test_a_lost_rank_ends_the_service_and_is_counted_as_left_behind(run: Make) -> None:
    running = await run()
    await running.start()
    running.client.close()
    assert await running.failed() == "rank 1 (headless): its connection to rank 0 ended"
    assert await running.stop() == ["rank 1: lost, nothing is known"]
    # The rank itself sees the end of the connection and stops its engine.
    assert await asyncio.wait_for(running.headless, PATIENCE_S) == "rank 0 is gone"
    assert tagged(running.stage) == []


async def test_what_is_missing_on_one_node_is_said_by_that_rank(run: Make) -> None:
    running = await run(programs={1: ["no-such-engine"]})
    with pytest.raises(ServiceFailed) as caught:
        await running.start()
    assert caught.value.reason.startswith(
        "rank 1 (headless): engine.command = no-such-engine: there is no such program"
    )
    assert await running.stop() == []


async def test_what_is_missing_here_is_said_by_the_head(run: Make) -> None:
    running = await run(settings={"engine__checks_model_path": True, "model__path": "/no/such/model"})
    with pytest.raises(ServiceFailed) as caught:
        await running.start()
    assert caught.value.reason.startswith("rank ")
    assert "model.path = /no/such/model: there is no such directory on this node" in caught.value.reason
    assert await running.stop() == []


async def test_an_engine_that_cannot_even_be_made_is_said(run: Make) -> None:
    def unreadable(_: EngineStart) -> Engine:
        raise RunError("config.yaml", "(read)", "Permission denied", "Is it on a shared file system?")

    running = await run(make_engine=unreadable)
    with pytest.raises(ServiceFailed, match=r"rank 1 \(headless\): config.yaml = \(read\): Permission denied"):
        await running.start()
    assert await running.stop() == []


async def test_a_rank_that_is_not_needed_does_nothing(run: Make) -> None:
    running = await run(
        make_engine=lambda _: None, roles={"head": {"alone": True}}, settings={"parallel__data_parallel_size": 1}
    )
    await running.start()
    assert await running.stop() == []
    assert not running.stage.folder.rank(1).path.exists()


async def test_an_engine_that_ignores_sigterm_is_killed(run: Make) -> None:
    stubborn = {role: {"stubborn": True} for role in ("head", "headless")}
    running = await run(roles=stubborn, settings={"limits__stop_s": 0.2})
    await running.start()
    assert await running.stop() == []
    assert tagged(running.stage) == []


@pytest.mark.parametrize(
    ("signal", "words"),
    [(None, "0.3 s (limits.stop_s)"), ("cancelled or preempted (SIGTERM)", "0.1 s")],
    ids=["at its end", "told to end"],
)
async def test_a_rank_that_does_not_answer_stop_is_left_behind(
    run: Make, monkeypatch: pytest.MonkeyPatch, signal: str | None, words: str
) -> None:
    """Told to end, rank 0 waits no longer than Slurm does, whatever limits.stop_s is."""
    monkeypatch.setattr(supervisor, "STOP_MARGIN_S", 0.1)
    monkeypatch.setattr(supervisor, "HASTE_S", 0.0)

    async def deaf(client: ControlClient) -> str | None:
        while (message := await client.receive()) is not None:
            if isinstance(message, Inspect):
                await client.send(Inspected())
            if isinstance(message, Bye):
                return None
        return None

    running = await run(serve=deaf, roles={"head": {"alone": True}}, settings={"limits__stop_s": 0.2})
    await running.start()
    if signal:
        running.stage.stopping.set_result(signal)
    assert await running.stop() == [f"rank 1: did not stop within {words}"]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"models": {"data": [{"id": "another"}]}}, "the service offers ['another']"),
        ({"models": []}, "did not list its models"),
        ({"completion": (400, {"error": "no such model"})}, "no such model"),
    ],
)
async def test_a_service_that_is_healthy_and_useless_is_not_ready(run: Make, head: dict[str, Any], words: str) -> None:
    running = await run(roles={"head": head})
    with pytest.raises(ServiceFailed) as caught:
        await running.start()
    assert words in caught.value.reason
    assert "ready" not in running.stage.states(0)
    assert await running.stop() == []


async def test_a_dead_rank_is_the_reason_and_not_what_the_api_says_of_it(run: Make) -> None:
    running = await run(roles={"head": {"completion": (500, {"error": "EngineDeadError"})}})
    starting = asyncio.create_task(running.start())
    running.stage.order("headless", 1, "RuntimeError: device lost")
    with pytest.raises(ServiceFailed) as caught:
        await starting
    assert caught.value.reason == "rank 1 (headless): engine exited with code 1: RuntimeError: device lost"


async def test_a_limit_that_is_exceeded_is_named(run: Make) -> None:
    running = await run(roles={"head": {"healthy": False}}, settings={"limits__load_s": 0.3})
    with pytest.raises(ServiceFailed, match=r"limits\.load_s = 0.3: /health was not 200 in time"):
        await running.start()


async def test_a_rank_that_says_nothing_while_it_loads_is_named(run: Make) -> None:
    running = await run(roles={"head": {"healthy": False}}, settings={"limits__load_silence_s": 0.2})
    with pytest.raises(ServiceFailed, match=r"no new line in its log for 0.2 s \(limits.load_silence_s\)"):
        await running.start()
    assert await running.stop() == []


@pytest.mark.parametrize(
    ("talks", "read", "named"),
    [(True, False, "rank 0 (head)"), (False, False, "rank 1 (headless)"), (False, True, "rank 0 (head)")],
)
async def test_of_two_ranks_that_load_too_long_the_one_that_is_silent_or_behind_is_named(
    run: Make, talks: bool, read: bool, named: str
) -> None:
    async def loading(client: ControlClient) -> str | None:
        async def tell() -> None:
            if read:  # and waits for rank 0 in silence: it began to be silent first
                await client.send(Progress(weights=True))
            while talks:
                await client.send(Progress())
                await asyncio.sleep(0.02)

        telling = asyncio.create_task(tell())
        try:
            return await obedient(client)
        finally:
            telling.cancel()

    running = await run(serve=loading, roles={"head": {"healthy": False}}, settings={"limits__load_s": 0.6})
    with pytest.raises(ServiceFailed) as caught:
        await running.start()
    assert caught.value.reason.startswith(f"{named}: limits.load_s = 0.6: /health was not 200 in time")


async def test_the_time_of_a_log_that_another_host_keeps_ends_no_load(run: Make) -> None:
    running = await run(
        roles={"head": {"healthy": False}}, settings={"limits__load_s": 0.8, "limits__load_silence_s": 60}
    )
    starting = asyncio.create_task(running.start())
    for rank in (0, 1):
        log = running.stage.folder.rank(rank).log
        while not log.exists():
            await asyncio.sleep(0.01)
        os.utime(log, (0, 0))  # an NFS server whose clock is behind, or a step of ours
    with pytest.raises(ServiceFailed, match=r"limits\.load_s"):
        await starting
    assert await running.stop() == []


async def test_a_full_disk_does_not_keep_an_engine_alive(run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await run()
    await running.start()

    def full(self: RankDir, state: str, **_: Any) -> None:
        raise RunError(str(self.states), "(write)", "No space left on device", "Free space.")

    monkeypatch.setattr(RankDir, "enter", full)
    os.kill(running.stage.pid(1), 9)
    assert (await running.failed()).startswith("rank 1 (headless): engine killed by SIGKILL")
    assert await running.stop() == []
    assert running.stage.pid(0) not in tagged(running.stage)


async def test_cleaning_up_takes_its_time_beside_the_heartbeats(run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await run()
    await running.start()
    others_ran = threading.Event()
    monkeypatch.setattr(cleanup, "leftovers", lambda *_: [] if others_ran.wait(PATIENCE_S / 2) else ["it held up all"])
    stopping = asyncio.create_task(running.stop())
    asyncio.get_running_loop().call_later(0.05, others_ran.set)
    assert await stopping == []


async def test_a_second_service_may_follow_on_the_same_ranks(run: Make) -> None:
    running = await run()
    await running.start()
    assert await running.stop() == []
    alive = Life(running.stage.stopping)
    again = Supervisor(running.stage.engine(0), running.control, START, alive)
    await asyncio.wait_for(again.start(dict(os.environ), running.stage.target), PATIENCE_S)
    assert await alive.failure() is None
    assert await again.stop() == []
    assert tagged(running.stage) == []


async def test_every_rank_records_what_the_service_does(run: Make) -> None:
    running = await run()
    await running.start()
    running.supervisor.enter("measuring", point="p1")
    await asyncio.gather(*running.supervisor._telling)
    await running.stop()
    for rank in (0, 1):
        entries = read_lines(running.stage.folder.rank(rank).states)
        assert [entry["point"] for entry in entries if entry["state"] == "measuring"] == ["p1"]


SIGTERM = "cancelled or preempted (SIGTERM)"


async def test_a_signal_to_another_rank_alone_ends_the_service_at_once_and_names_it(run: Make) -> None:
    running = await run()
    await running.start()
    await running.client.send(Signalled(SIGTERM, time.time()))
    assert await running.failed() == f"rank 1 (headless): {SIGTERM}"
    assert running.life.from_outside
    assert running.control.leaving == {1}
    assert await running.stop() == []


async def test_a_signal_to_all_ranks_is_told_as_our_own_whatever_the_other_clock_says(run: Make) -> None:
    running = await run()
    await running.start()
    await running.client.send(Signalled(SIGTERM, time.time() - 60))
    running.stage.stopping.set_result(SIGTERM)
    assert await running.failed() == SIGTERM
    assert running.life.from_outside
