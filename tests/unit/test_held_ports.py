"""Ports of runs whose ranks share one host: free, held from the choice to the end, and no obstacle to the engine."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from jobs.allocation.control import ControlServer
from jobs.allocation.handshake import Secret
from jobs.cluster.ports import Ports, hold_ports
from jobs.core.errors import ConfigError, RunError


def bind(port: int, *, reuse: bool) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        one.bind(("0.0.0.0", port))


def test_two_runs_at_once_have_different_ports() -> None:
    one, held = hold_ports()
    two, others = hold_ports()
    assert len({one.api, one.dp_rpc, one.control, two.api, two.dp_rpc, two.control}) == 6
    for sock in (*held, *others):
        sock.close()


async def test_a_port_is_held_from_strangers_and_not_from_a_server_of_ours() -> None:
    ports, held = hold_ports()
    for port in (ports.api, ports.dp_rpc, ports.control):
        with pytest.raises(OSError, match="in use"):
            bind(port, reuse=False)
    for _ in range(2):  # and again after the first engine has ended
        server = await asyncio.start_server(lambda *_: None, "0.0.0.0", ports.api)
        with pytest.raises(OSError, match="in use"):
            bind(ports.api, reuse=True)
        server.close()
        await server.wait_closed()
    for sock in held:
        sock.close()
    bind(ports.control, reuse=False)


def test_what_is_configured_stays() -> None:
    ports, held = hold_ports(api=8000, control=9000)
    assert ports == Ports(8000, ports.dp_rpc, 9000)
    for sock in held:
        sock.close()
    with pytest.raises(ConfigError, match="the same port"):
        hold_ports(api=8000, control=8000)


async def test_a_taken_port_is_named_with_its_owner() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=rf"it is taken by process {os.getpid()} \S+ of \S+"):
            await ControlServer(1, Secret("key"), 1.0).open(port)
