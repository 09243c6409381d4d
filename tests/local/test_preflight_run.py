"""The checks of two ranks as they run: over the real channel, real ports, and stand-ins of the NPU tools."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from core_help import change, config
from preflight_help import ONE, TWO, fake_node

from jobs.allocation import headless
from jobs.allocation.control import ControlClient, ControlServer, join
from jobs.allocation.handshake import Secret
from jobs.allocation.messages import Bye, Message
from jobs.allocation.preflight import paths
from jobs.allocation.preflight.conduct import Preflight, Result
from jobs.allocation.preflight.facts import NpuPort
from jobs.allocation.preflight.questions import Clock, FactsFound
from jobs.allocation.preflight.station import Station, StationContext
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import Ports
from jobs.core.config import Config

KEY, LO = "the key", ("lo", "127.0.0.1", 8)
HCCL = 12_000 + 16 * (os.getpid() % 200)
"""Below the ports that the kernel gives to clients; tests in several processes do not meet."""

WITH_NPUS = config(
    "engine=simulator", "preflight.npus=true", "cluster.npus_per_node=2", f"engine.env.HCCL_IF_BASE_PORT={HCCL}"
)
WITHOUT = config("engine=simulator")
Serve = Callable[[ControlClient, Station], Any]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def station(settings: Config, rank: int, ports: Ports, folder: Path, **spot: Any) -> Station:
    made: dict[str, Any] = {
        # Both are on this host: the second one must not want HCCL's ports as well.
        "task": Task(rank, 2, 1, (ONE, TWO), (ONE, TWO)[rank], on_loopback=bool(rank)),
        "interface": LO,
        "interface_problem": None,
        "ports": ports,
        "results": folder,
        "inherited": {"PATH": f"{folder}:{os.environ['PATH']}"},
        "ascend": folder / "no-ascend",
        "dev": folder / "dev",
    }
    return Station(settings, StationContext(**(made | spot)))


async def obey(client: ControlClient, its: Station) -> None:
    await headless.serve(client, lambda _: None, {}, its.answer)


@asynccontextmanager
async def two_ranks(
    settings: Config, folders: tuple[Path, Path], serve: Serve = obey, spots: Mapping[int, dict[str, Any]] = {}
) -> AsyncIterator[tuple[Preflight, Ports]]:
    ports = Ports(*free_ports(3))
    control = ControlServer(2, Secret(KEY), 5.0)
    await control.open(ports.control)
    client = await join("127.0.0.1", ports.control, 1, Secret(KEY), 5.0, 20.0)
    await control.joined(20.0)
    first, second = (station(settings, rank, ports, folders[rank], **spots.get(rank, {})) for rank in (0, 1))
    work = asyncio.create_task(serve(client, second))
    try:
        yield Preflight(settings, ports, control, first), ports
    finally:
        await control.send(Bye())
        await control.close()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


def bad(result: Result) -> list[tuple[str, str, str]]:
    return [(one.node, one.device, one.check) for one in result.findings if one.state == "fail"]


async def test_healthy_nodes_pass_and_their_ports_are_free_afterwards(tmp_path: Path) -> None:
    nodes = fake_node(tmp_path / "a", {}, 2), fake_node(tmp_path / "b", {"subnet": "10.20.1"}, 2)
    async with two_ranks(WITH_NPUS, nodes) as (checks, ports):
        result = await asyncio.wait_for(checks.run(), 60)
        for port in (ports.api, ports.dp_rpc, HCCL, HCCL + 15):
            with socket.socket() as engine:  # without SO_REUSEADDR: not even a TIME_WAIT is left on it
                engine.bind(("0.0.0.0", port))
    assert result.reason is None, result.reason
    assert bad(result) == []
    states = {one.check: one.state for one in result.findings}
    assert states["fabric.ping"] == states["network.path"] == states["host.clock"] == "pass"
    assert states["npu.cann"] == "not-run"
    ping = next(one for one in result.findings if one.check == "fabric.ping")
    assert ping.reason == "4 of 4 pairs reach each other"
    assert result.facts[1].npus is not None
    assert result.facts[1].npus.ports[1] == NpuPort(1, "UP", "Success", False, "10.20.1.21", "255.255.255.0")
    assert result.as_json()["state"] != "pass", "what could not run is no pass"


async def test_sick_nodes_are_named_and_the_reason_is_the_first_failure(tmp_path: Path) -> None:
    sick = {
        "subnet": "10.20.1",
        "npus": {"1": {"health": "Alarm"}},
        "tls": 1,
        "version": "25.2.0",
        "unreachable": [[1, "10.20.0.21"]],
    }
    nodes = fake_node(tmp_path / "a", {"unreachable": ["10.20.1.21"]}, 2), fake_node(tmp_path / "b", sick, 2)
    async with two_ranks(WITH_NPUS, nodes) as (checks, _):
        result = await asyncio.wait_for(checks.run(), 60)
    assert bad(result) == [
        (TWO, "NPU 1", "npu.health"),
        (TWO, "", "npu.driver"),
        ("", "", "fabric.tls"),
        (TWO, "NPU 1", "fabric.ping"),
    ]
    assert result.reason is not None
    assert result.reason.startswith(f"preflight: {TWO} NPU 1: npu.health: its health is Alarm. See npu-smi info")
    assert result.reason.endswith("(and 3 more in preflight.json)")


async def test_without_npus_no_tool_is_asked(tmp_path: Path) -> None:
    hung = fake_node(tmp_path, {"smi": {"hang_s": 60}, "hccn": {"hang_s": 60}}, 2)
    async with two_ranks(WITHOUT, (hung, hung)) as (checks, _):
        result = await asyncio.wait_for(checks.run(), 30)
    assert result.reason is None
    assert {one.state for one in result.findings if one.check.startswith(("npu", "fabric"))} == {"not-run"}


async def test_a_busy_port_names_who_holds_it(tmp_path: Path) -> None:
    async with two_ranks(WITHOUT, (tmp_path, tmp_path)) as (checks, ports):
        with socket.socket() as taken:
            taken.bind(("0.0.0.0", ports.dp_rpc))
            taken.listen()
            result = await asyncio.wait_for(checks.run(), 30)
    assert bad(result) == [(ONE, f"port {ports.dp_rpc}", "network.ports")]
    assert f"process {os.getpid()}" in str(result.reason)
    assert "engine.data_parallel_rpc_port" in str(result.reason)


async def test_a_wrong_interface_ends_it_with_the_one_that_works(tmp_path: Path) -> None:
    wrong = {1: {"interface_problem": "hccl.socket_ifname=eth9: no interface of this host matches"}}
    async with two_ranks(WITHOUT, (tmp_path, tmp_path), spots=wrong) as (checks, _):
        result = await asyncio.wait_for(checks.run(), 30)
    assert bad(result) == [(TWO, "lo", "network.interface")]


async def test_a_clock_that_is_off_is_measured_over_the_connection(tmp_path: Path) -> None:
    async def askew(client: ControlClient, its: Station) -> None:
        async def answer(message: Message) -> Message | None:
            reply = await its.answer(message)
            return replace(reply, time=reply.time - 90.0) if isinstance(reply, Clock) else reply

        await headless.serve(client, lambda _: None, {}, answer)

    async with two_ranks(WITHOUT, (tmp_path, tmp_path), askew) as (checks, _):
        result = await asyncio.wait_for(checks.run(), 30)
    assert bad(result) == [(TWO, "", "host.clock")]
    away = result.facts[1].clock_s
    assert away is not None
    assert abs(away + 90) < 5


async def test_a_closed_path_is_found(tmp_path: Path) -> None:
    """A peer that says it listens, and does not: as behind a firewall that refuses."""

    async def closed(client: ControlClient, its: Station) -> None:
        async def answer(message: Message) -> Message | None:
            reply = await its.answer(message)
            if isinstance(reply, FactsFound):
                return replace(reply, facts=replace(reply.facts, listening=tuple(free_ports(1))))
            return reply

        await headless.serve(client, lambda _: None, {}, answer)

    async with two_ranks(WITHOUT, (tmp_path, tmp_path), closed) as (checks, _):
        result = await asyncio.wait_for(checks.run(), 30)
    [(node, device, check)] = bad(result)
    assert (node, device[:5], check) == ("", "port ", "network.path")
    assert f"{ONE} does not reach {TWO}" in str(result.reason)


async def test_a_crowd_of_strangers_at_an_open_port_keeps_no_peer_out_and_costs_few_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paths, "WAIT_S", 600.0)
    listeners = paths.Listeners()
    assert await listeners.open("127.0.0.1", [0]) == {}
    [port] = listeners.ports
    before = psutil.Process().num_fds()
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(3 * paths.MOST)]
    async with asyncio.timeout(30):
        assert await paths.reach("127.0.0.1", port, "word") is None
        while psutil.Process().num_fds() > before + len(crowd) + paths.MOST + 2:  # ours of both ends
            await asyncio.sleep(0.01)
    for one in crowd:
        one.close()
    await listeners.close()


async def test_what_a_stranger_sends_to_an_open_port_is_kept_nowhere() -> None:
    listeners = paths.Listeners()
    await listeners.open("127.0.0.1", [0])
    before = psutil.Process().memory_info().rss
    _, writer = await asyncio.open_connection("127.0.0.1", listeners.ports[0])
    writer.write(b"word\n")
    with contextlib.suppress(OSError):
        for _ in range(200):
            writer.write(bytes(1 << 20))
            await writer.drain()
    assert psutil.Process().memory_info().rss - before < 100 << 20
    writer.close()
    await listeners.close()


async def test_a_rank_that_does_not_answer_runs_into_its_own_limit(tmp_path: Path) -> None:
    async def silent(client: ControlClient, its: Station) -> None:
        await asyncio.Event().wait()

    settings = change(WITHOUT, limits__preflight_s=0.3)
    async with two_ranks(settings, (tmp_path, tmp_path), silent) as (checks, _):
        result = await asyncio.wait_for(checks.run(), 30)
    assert result.reason == "preflight: rank 1 did not finish its checks within 0.3 s (limits.preflight_s)"
    assert result.as_json()["state"] == "fail"


async def test_a_rank_that_goes_is_named_at_once(tmp_path: Path) -> None:
    async def gone(client: ControlClient, its: Station) -> None:
        await client.receive()
        client.close()

    async with two_ranks(WITHOUT, (tmp_path, tmp_path), gone) as (checks, _):
        result = await asyncio.wait_for(checks.run(), 30)
    assert result.reason == "preflight: rank 1 (headless): its connection to rank 0 ended"


async def test_skipped_checks_are_not_made(tmp_path: Path) -> None:
    settings = change(WITH_NPUS, preflight__skip=("npu", "fabric", "network.path"))
    hung = fake_node(tmp_path, {"smi": {"hang_s": 60}}, 2)
    async with two_ranks(settings, (hung, hung)) as (checks, _):
        result = await asyncio.wait_for(checks.run(), 30)
    assert result.reason is None
    assert {one.reason for one in result.findings if one.check == "network.path"} == {"preflight.skip names it"}
