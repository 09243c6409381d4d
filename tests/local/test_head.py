"""Rank 0 alone on one node: services one after the other, their points, and what is left; real engine processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from core_help import Pipe, change
from results_help import planned
from supervisor_help import ENGINE, free_port

from jobs.allocation import head, life, live, readiness, service
from jobs.allocation.context import RankContext
from jobs.allocation.control import ControlServer
from jobs.allocation.handshake import Secret
from jobs.allocation.life import ServiceFailed
from jobs.allocation.node import cleanup
from jobs.allocation.preflight.station import Station
from jobs.allocation.service import Service
from jobs.allocation.walltime import TIME_IS_UP, Walltime
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import Ports
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import read_json, write_json
from jobs.core.process import TAG
from jobs.core.rundir import SweepDir
from jobs.core.tasks import (
    AllocationTask,
    Outcome,
    ServiceTask,
    read_config,
    read_outcome,
    read_task,
    write_config,
)
from jobs.measure.point import Measured
from jobs.results.row import NOT_RUN

PATIENCE_S = 60.0
NO_LIMIT = Walltime(None)
SIGTERM = "cancelled or preempted (SIGTERM)"
Act = Callable[[asyncio.Event], Awaitable[str | None]]
"""What happens in a point, until it is stopped; returns why it is not valid, or None."""


async def well(_: asyncio.Event) -> str | None:
    return None


@dataclass
class Stage:
    """A sweep of two services of two points each, on an engine that does nothing but answer."""

    path: Path
    stopping: asyncio.Future[str]
    acts: dict[int, Act] = field(default_factory=dict)
    """By the number of the point, in the order of measuring."""
    inherited: dict[str, str] = field(default_factory=dict)
    serve: bool = False

    def __post_init__(self) -> None:
        (self.path / "engine.py").write_text(ENGINE)
        self.orders = Pipe(self.path / "orders")
        self.sweep, made = planned(
            self.path / "runs/s",
            "engine=simulator",
            "parallel.max_model_len=8192,16384",
            "bench.concurrency=1,2",
            "bench.repeats=1",
        )
        found: dict[str, list[str]] = {}
        for point in made.points:
            found.setdefault(point.service, []).append(point.point)
        self.services = [ServiceTask(name, tuple(points)) for name, points in found.items()]
        self.points = [point for task in self.services for point in task.points]
        self.measured: list[str] = []
        self.job = free_port()
        self.change(
            engine__command=(sys.executable, "-SE", str(self.path / "engine.py")),
            engine__source=(),
            engine__checks_model_path=False,
            model__served_model_name="deepseek_r1",
            parallel__data_parallel_size=1,
            preflight__enabled=False,
            limits__stop_s=5.0,
            limits__load_s=20.0,
        )
        self.play({"alone": True})

    def change(self, **settings: Any) -> None:
        """Change the config of every point."""
        for point in self.points:
            write_config(self.sweep, point, change(read_config(self.sweep, point), **settings))

    def play(self, role: dict[str, Any]) -> None:
        """Say what the engine does."""
        self.change(engine__env={"FAKE": json.dumps({"head": {**role, "orders": str(self.orders.path)}})})

    def context(self, walltime: Walltime) -> RankContext:
        folder = self.sweep.allocation(0, 1)
        folder.path.mkdir(parents=True)
        folder.new_key()
        services = self.services[:1] if self.serve else self.services
        write_json(folder.task, AllocationTask(tuple(services), 1, serve=self.serve))
        task = Task(0, 1, self.job, ("node0",), "node0")
        ports = Ports(*(free_port() for _ in range(3)))
        inherited = dict(os.environ) | self.inherited
        return RankContext(task, "lo", "127.0.0.1", ports, folder, read_task(folder), inherited, walltime)

    async def conduct(self, walltime: Walltime = NO_LIMIT) -> tuple[int, Outcome]:
        """Run the allocation. Returns its exit code, and its outcome."""
        context = self.context(walltime)
        first = read_config(self.sweep, self.points[0])
        conducting = head.conduct(context, first, self.stopping, cast(Station, None))
        code, lost = await asyncio.wait_for(conducting, PATIENCE_S)
        assert not lost
        assert self.living() == [], "no engine outlives its allocation"
        outcome = read_outcome(context.folder)
        assert outcome is not None
        return code, outcome

    def living(self) -> list[int]:
        """Return the processes of the engines that live."""
        found = []
        for one in psutil.process_iter():
            try:
                if one.environ().get(TAG, "").startswith(f"{self.job}/") and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one.pid)
            except psutil.Error:
                continue
        return found

    def rows(self) -> dict[int, dict[str, Any]]:
        """Return the rows that are there by the number of their point."""
        paths = {number: self.sweep.point(point).row for number, point in enumerate(self.points)}
        return {number: read_json(path) for number, path in paths.items() if path.exists()}

    def reasons(self) -> dict[int, str | None]:
        return {number: row["invalid_reason"] for number, row in self.rows().items()}

    def left(self, outcome: Outcome) -> list[int]:
        return [self.points.index(point) for task in outcome.left for point in task.points]

    async def die(self, stop: asyncio.Event, words: str = "RuntimeError: device lost") -> str | None:
        """Let the engine end in the middle of a point."""
        self.orders.tell(f"1 {words}")
        await stop.wait()
        return "64 of 64 requests failed"

    async def be_told(self, stop: asyncio.Event, reason: str = SIGTERM) -> str | None:
        self.stopping.set_result(reason)
        await stop.wait()
        return None


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(life, "SETTLE_S", 0.3)
    monkeypatch.setattr(readiness, "POLL_S", 0.02)
    made = Stage(tmp_path, asyncio.get_running_loop().create_future())

    class Point:
        """Stands for the measuring of one point."""

        def __init__(self, config: Config, *about: Any) -> None:
            self.stop = about[3]
            self.reason: str | None = None

        async def run(self) -> None:
            number = len(made.measured)
            made.measured.append(made.points[number % len(made.points)])
            self.reason = await made.acts.get(number, well)(self.stop)

        def result(self) -> Measured:
            usual: dict[str, Any] = {"notes": (), "windows": (), "lines": (), "canary": None, "engine_tokens": {}}
            cut = self.stop.is_set()
            return Measured(figures={"output_tok_per_s": 100.0}, reason=self.reason, truncated=cut, **usual)

    monkeypatch.setattr(live, "PointRun", Point)
    monkeypatch.setattr(live, "save", lambda folder, measured: folder.path.mkdir(parents=True, exist_ok=True))
    return made


async def test_every_point_of_every_service_is_measured_and_the_engines_are_gone(stage: Stage) -> None:
    code, outcome = await stage.conduct()
    assert (code, outcome.ended, outcome.valid, outcome.left) == (0, None, True, ())
    assert stage.measured == stage.points
    rows = stage.rows()
    assert [row["valid"] for row in rows.values()] == [True] * 4
    assert all(row["load_s"] > 0 and row["teardown_s"] >= 0 and row["attempt"] == 1 for row in rows.values())
    for task in stage.services:
        record = read_json(stage.sweep.service(task.service, 1).record)
        assert (record["points"], record["failure"], record["leftovers"]) == (list(task.points), None, [])
    assert stage.sweep.table("csv").read_text().count("\n") == 5
    assert not stage.sweep.allocation(0, 1).reserve.exists()


async def test_a_service_that_dies_in_a_point_costs_no_other_service(stage: Stage) -> None:
    stage.acts[0] = stage.die
    code, outcome = await stage.conduct()
    assert (code, outcome.ended, outcome.valid, outcome.left) == (1, None, False, ())
    reasons = stage.reasons()
    assert reasons[0] is not None
    assert reasons[0].startswith("rank 0: ")
    assert "device lost" in reasons[0]
    assert reasons[1] == NOT_RUN + reasons[0], "the point that was not begun is for a resume"
    assert (reasons[2], reasons[3]) == (None, None)
    record = read_json(stage.sweep.service(stage.services[0].service, 1).record)
    assert record["failure"] == reasons[0]


async def test_a_failure_that_may_pass_is_tried_once_more(stage: Stage) -> None:
    async def taken(stop: asyncio.Event) -> str | None:
        return await stage.die(stop, "OSError: [Errno 98] Address already in use")

    stage.acts[1] = taken
    code, outcome = await stage.conduct()
    assert (code, outcome.ended, outcome.valid) == (0, None, True)
    assert [row["attempt"] for row in stage.rows().values()] == [1, 2, 1, 1], "only what failed is done again"
    assert [len(stage.sweep.service_attempts(task.service)) for task in stage.services] == [2, 1]


async def test_a_failure_that_passes_twice_is_not_tried_a_third_time(stage: Stage) -> None:
    async def taken(stop: asyncio.Event) -> str | None:
        return await stage.die(stop, "OSError: [Errno 98] Address already in use")

    stage.acts |= {0: taken, 1: taken}
    code, outcome = await stage.conduct()
    assert (code, outcome.ended, outcome.valid) == (1, None, False)
    assert [row["attempt"] for row in stage.rows().values()] == [2, 2, 1, 1]


async def test_what_the_time_limit_cuts_short_is_left_for_another_allocation(stage: Stage) -> None:
    async def time_is_up(stop: asyncio.Event) -> str | None:
        return await stage.be_told(stop, TIME_IS_UP)

    stage.acts[1] = time_is_up
    code, outcome = await stage.conduct()
    assert (code, outcome.ended, outcome.too_short) == (1, TIME_IS_UP, None)
    assert stage.left(outcome) == [1, 2, 3]
    assert stage.reasons() == {0: None, 1: TIME_IS_UP}
    assert stage.rows()[1]["truncated"]


async def test_who_is_cancelled_leaves_nothing_and_gives_every_point_a_row(stage: Stage) -> None:
    stage.acts[0] = stage.be_told
    code, outcome = await stage.conduct()
    assert (code, outcome.ended, outcome.left) == (1, SIGTERM, ())
    assert stage.reasons() == {0: SIGTERM, 1: NOT_RUN + SIGTERM, 2: NOT_RUN + SIGTERM, 3: NOT_RUN + SIGTERM}


async def test_a_point_that_would_not_end_in_time_is_left_with_all_that_follow(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = iter([0.0, 1e9])
    monkeypatch.setattr(live, "point_seconds", lambda _: next(needed))
    monkeypatch.setattr(service, "service_seconds", lambda *_: 0.0)
    code, outcome = await stage.conduct(Walltime.of(3600.0))
    assert (code, outcome.ended, outcome.valid, outcome.too_short) == (0, None, True, None)
    assert stage.left(outcome) == [1, 2, 3]
    assert stage.reasons() == {0: None}


async def test_a_limit_that_is_too_short_for_any_service_is_said(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "service_seconds", lambda *_: 1e9)
    code, outcome = await stage.conduct(Walltime.of(3600.0))
    assert (code, outcome.ended, outcome.valid) == (0, None, True)
    assert str(outcome.too_short).startswith("it needs about 1000000000 s")
    assert stage.left(outcome) == [0, 1, 2, 3]
    assert stage.measured == []


async def test_a_second_service_without_time_is_left_and_another_job_can_begin_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[float | None] = []

    def needed(sweep: SweepDir, name: str, config: Config, last_load_s: float | None) -> float:
        loads.append(last_load_s)
        return 0.0 if len(loads) == 1 else 1e9

    monkeypatch.setattr(service, "service_seconds", needed)
    monkeypatch.setattr(live, "point_seconds", lambda _: 0.0)
    _, outcome = await stage.conduct(Walltime.of(3600.0))
    assert (outcome.too_short, stage.left(outcome)) == (None, [2, 3])
    assert loads[0] is None
    assert loads[1] == stage.rows()[0]["load_s"], "the load of the first one is the best guess"


async def test_it_makes_way_for_others_after_the_point_that_runs(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.change(cluster__yield_to_others=True)
    stage.inherited["SLURM_JOB_PARTITION"] = "npu"
    asked = []
    monkeypatch.setattr(live, "others_wait", lambda partition, user: asked.append(partition) or True)
    code, outcome = await stage.conduct()
    assert (code, outcome.ended, outcome.yielded, outcome.valid) == (0, None, True, True)
    assert stage.left(outcome) == [1, 2, 3]
    assert asked == ["npu"]


async def test_a_full_disk_costs_no_row(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RunError("requests.parquet", "(write)", "No space left on device", "Free space.")

    monkeypatch.setattr(live, "save", full)
    code, outcome = await stage.conduct()
    assert (code, outcome.valid) == (1, False)
    said = "rank 0 (head): requests.parquet = (write): No space left on device. Free space."
    assert outcome.ended == said
    assert stage.reasons() == {0: said, 1: NOT_RUN + said, 2: NOT_RUN + said, 3: NOT_RUN + said}
    assert stage.rows()[0]["output_tok_per_s"] == 100.0, "what was measured stands there all the same"


async def test_what_is_left_behind_ends_the_allocation(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "leftovers", lambda *_: ["port 8000 is held by process 7"])
    code, outcome = await stage.conduct()
    assert (code, outcome.valid) == (1, False)
    first = stage.services[0].service
    assert outcome.ended == f"service {first} left something behind: rank 0: port 8000 is held by process 7"
    assert stage.reasons() == {0: None, 1: None, 2: NOT_RUN + outcome.ended, 3: NOT_RUN + outcome.ended}


async def test_a_service_for_hand_tests_ends_well_when_it_is_told_to_end(stage: Stage) -> None:
    stage.serve = True

    async def cancel_once_reachable() -> None:
        folder = stage.sweep.allocation(0, 1)
        while not folder.serving.exists():
            await asyncio.sleep(0.02)
        stage.stopping.set_result(SIGTERM)

    cancelling = asyncio.create_task(cancel_once_reachable())
    code, outcome = await stage.conduct()
    await cancelling
    assert (code, outcome.ended, outcome.valid, outcome.left) == (0, None, True, ())
    assert stage.measured == []
    assert all("served for hand tests" in str(reason) for reason in stage.reasons().values())
    assert not stage.sweep.allocation(0, 1).serving.exists()


async def alone(stage: Stage) -> Service:
    """Return the first service, with nothing around it."""
    context = stage.context(NO_LIMIT)
    return Service(context, stage.services[0], ControlServer(1, Secret("key"), 5.0), stage.stopping, 1)


async def test_a_service_that_does_not_start_leaves_the_block_with_its_rows_written(stage: Stage) -> None:
    stage.change(engine__command=("no-such-engine",))
    one = await alone(stage)
    with pytest.raises(ServiceFailed, match="there is no such program on this node"):
        async with one:
            pytest.fail("it is not ready")
    reasons = stage.reasons()
    assert reasons[0] == reasons[1]
    assert str(reasons[0]).startswith("rank 0: the program that was to be started is not on this node")
    assert (one.ends_allocation, one.load_s, one.rows.left) == (None, None, ())


async def test_whatever_ends_the_block_stops_the_engine(stage: Stage) -> None:
    one = await alone(stage)
    with pytest.raises(ZeroDivisionError):
        async with one:
            assert len(stage.living()) > 0
            raise ZeroDivisionError
    assert stage.living() == []
    assert stage.rows() == {}, "who ends it so writes the rows"


async def test_who_is_cancelled_while_it_loads_leaves_no_engine(stage: Stage) -> None:
    stage.play({"healthy": False})
    one = await alone(stage)
    starting = asyncio.create_task(one.__aenter__())
    while not stage.living():
        await asyncio.sleep(0.02)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert stage.living() == []
