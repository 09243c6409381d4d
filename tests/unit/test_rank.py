"""What a task of an allocation does when ranks are lost or signals come: real connections, Slurm's stand-in."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from core_help import ROOT, change, config
from fake_slurm import FakeSlurm
from supervisor_help import free_port

from jobs.allocation import rank
from jobs.allocation.context import RankContext
from jobs.allocation.control import ControlServer
from jobs.allocation.handshake import Secret
from jobs.allocation.messages import Bye, EngineStart, Lost, Signalled, Stop, Stopped
from jobs.allocation.preflight.station import Station, StationContext
from jobs.allocation.walltime import Walltime
from jobs.cluster.base import Job
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import Ports
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.rundir import AllocationDir
from jobs.core.tasks import AllocationTask, ServiceTask

JOB = 4711
PATIENCE_S = 20.0
T = TypeVar("T")


async def soon(work: Awaitable[T]) -> T:
    """Await an event that must come."""
    return await asyncio.wait_for(work, PATIENCE_S)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    fake.job(str(JOB), "RUNNING", asked={"job-name": "sweep-sweep-ab12-0"})
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    return fake


@pytest.fixture
async def stopping() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


def task(number: int = 1) -> Task:
    return Task(number, 2, JOB, ("node0", "node1"), f"node{number}", on_loopback=True, head_pid=os.getpid())


@pytest.fixture
def folder(tmp_path: Path) -> AllocationDir:
    made = AllocationDir(tmp_path / "sweep/allocations/0/1")
    Job(made, str(JOB), "slurm", 2, time.time()).write()
    return made


async def test_a_job_that_slurm_does_not_end_is_cancelled_by_the_rank_that_is_left(
    slurm: FakeSlurm, folder: AllocationDir, stopping: asyncio.Future[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank, "GIVE_BACK_S", 0.01)
    await rank._give_back(folder, stopping)
    assert slurm.calls("scancel") == [["scancel", str(JOB)]]
    assert not stopping.done(), "the wait must not end what others wait for"


async def test_a_job_that_slurm_ends_is_left_to_it(
    slurm: FakeSlurm, folder: AllocationDir, stopping: asyncio.Future[str]
) -> None:
    giving = asyncio.create_task(rank._give_back(folder, stopping))
    await asyncio.sleep(0)
    stopping.set_result("cancelled or preempted (SIGTERM)")
    await soon(giving)
    assert slurm.calls("scancel") == []


async def test_a_cluster_that_does_not_answer_does_not_hold_the_rank(
    folder: AllocationDir, stopping: asyncio.Future[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank, "GIVE_BACK_S", 0.01)
    monkeypatch.setenv("PATH", str(tmp_path))  # no scancel at all
    await soon(rank._give_back(folder, stopping))


@pytest.fixture
async def control() -> AsyncIterator[tuple[ControlServer, int]]:
    made, port = ControlServer(2, Secret("key", str(JOB)), 5.0), free_port()
    await made.open(port)
    yield made, port
    await made.close()


def here(tmp_path: Path, port: int) -> RankContext:
    folder = AllocationDir(tmp_path / "sweep/allocations/0/1")
    folder.path.mkdir(parents=True)
    folder.key.write_text("key")
    work = AllocationTask((), 1)
    return RankContext(task(), "lo", "127.0.0.1", Ports(1, 2, port), folder, work, {}, Walltime(None))


async def obey(place: RankContext, one: Config, stopping: asyncio.Future[str]) -> tuple[int, bool]:
    """Do what a headless rank does after it has started."""
    interface = (place.interface, place.address, 8)
    station = Station(one, StationContext(place.task, interface, None, place.ports, place.folder.path, {}))
    return await rank._obey(place, one, 8, stopping, station)


async def test_a_signalled_rank_serves_until_rank_0_says_goodbye(
    control: tuple[ControlServer, int], tmp_path: Path, stopping: asyncio.Future[str]
) -> None:
    made, port = control
    obeying = asyncio.create_task(obey(here(tmp_path, port), config("cluster=local"), stopping))
    await soon(made.joined(PATIENCE_S))
    stopping.set_result("cancelled or preempted (SIGTERM)")
    number, told = await soon(made.inbox.get())
    assert isinstance(told, Signalled)
    assert (number, told.reason) == (1, "cancelled or preempted (SIGTERM)")
    await made.send(Stop())
    assert await soon(made.inbox.get()) == (1, Stopped())
    await made.send(Bye())
    assert await soon(obeying) == (0, False)


async def test_a_signalled_rank_does_not_wait_for_rank_0_for_ever(
    control: tuple[ControlServer, int], tmp_path: Path, stopping: asyncio.Future[str]
) -> None:
    made, port = control
    hasty = change(config("cluster=local"), limits__stop_s=0.1)
    obeying = asyncio.create_task(obey(here(tmp_path, port), hasty, stopping))
    await soon(made.joined(PATIENCE_S))
    stopping.set_result("cancelled or preempted (SIGTERM)")
    assert await soon(obeying) == (1, False)
    assert isinstance((await soon(made.inbox.get()))[1], Signalled)
    assert await soon(made.inbox.get()) == (1, Lost("its connection to rank 0 ended"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"point": "/home/a/point"},
        {"point": "../../a"},
        {"point": "another"},
        {"service": "../x"},
        {"master_address": "-x"},
        {"master_address": "10.0.0.1 --x"},
        {"api_port": "1a"},
        {"rpc_port": "{x}"},
        {"attempt": 0},
    ],
    ids=str,
)
def test_rank_0_names_what_is_of_this_allocation_or_is_not_obeyed(tmp_path: Path, wrong: dict[str, Any]) -> None:
    place = replace(here(tmp_path, 1), work=AllocationTask((ServiceTask("s", ("p",)),), 1))
    good = EngineStart("s", "p", 2, 1, "10.0.0.1", "8000", "8001")
    rank._check_start(good, place)
    with pytest.raises(RunError, match=r"rank 0 = "):
        rank._check_start(replace(good, **wrong), place)


async def test_a_rank_that_loses_rank_0_says_so(
    control: tuple[ControlServer, int],
    tmp_path: Path,
    stopping: asyncio.Future[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, port = control
    obeying = asyncio.create_task(obey(here(tmp_path, port), config("cluster=local"), stopping))
    await soon(made.joined(PATIENCE_S))
    await made.close()
    assert await soon(obeying) == (1, True)
    assert "ended: rank 0 is gone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("jobs.allocation.rank", ["jobs.allocation.head", "pandas", "numpy", "pyarrow", "aiohttp", "hydra"]),
        ("jobs.engines.simulator.__main__", ["aiohttp", "numpy", "omegaconf"]),
    ],
)
def test_what_only_rank_0_needs_costs_no_other_rank_its_start(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
