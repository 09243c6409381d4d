"""Two ranks of one service for the tests of the supervisor: fake engines as real processes, the channel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from core_help import Pipe, change, config

from jobs.allocation.control import ControlClient, ControlServer
from jobs.allocation.life import Life, ServiceFailed
from jobs.allocation.node.engine import Engine
from jobs.allocation.supervisor import Supervisor
from jobs.core.config import Config
from jobs.core.files import read_lines
from jobs.core.layout import Placement
from jobs.core.process import TAG
from jobs.core.rundir import ServiceDir
from jobs.measure.records import Target

PATIENCE_S = 30.0
"""A test that waits longer for an event fails."""

ENGINE = r'''
import json, os, signal, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

rank = "headless" if "--headless" in sys.argv else "head"
role = json.loads(os.environ["FAKE"])[rank]
print(rank, "starts", flush=True)
up = os.path.join(os.path.dirname(role["orders"]), "headless.up")
if rank == "headless":
    open(up, "w").close()


def obey():
    """Wait for an order in the pipe: code and last words."""
    code, words = open(role["orders"]).readline().split(" ", 1)
    print(words.strip(), flush=True)
    os._exit(int(code))


threading.Thread(target=obey, daemon=True).start()
if role.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Api(BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/health":
            well = role.get("healthy", True) and (role.get("alone") or os.path.exists(up))
            self.answer(200 if well else 503, {})
        elif self.path == "/v1/models":
            self.answer(200, role.get("models", {"data": [{"id": "deepseek_r1"}]}))
        else:
            self.answer(404, {})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(*role.get("completion", (200, {"choices": []})))

    def log_message(self, *_):
        pass


if rank == "head":
    port = int(sys.argv[sys.argv.index("--port") + 1])
    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", port), Api).serve_forever, daemon=True).start()
while True:
    signal.pause()
'''


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Stage:
    """Two ranks on this machine: rank 0 is the test, rank 1 a headless rank beside it."""

    path: Path
    roles: dict[str, dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    programs: Mapping[int, list[str]] = field(default_factory=dict)
    ranks: int = 2

    def __post_init__(self) -> None:
        self.folder = ServiceDir(self.path / "service")
        self.port = free_port()
        self.target = Target(f"http://127.0.0.1:{self.port}", "deepseek_r1")
        self.stopping: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        (self.path / "engine.py").write_text(ENGINE)
        self.orders = {role: Pipe(self.path / f"{role}.orders") for role in ("head", "headless")}
        for role, pipe in self.orders.items():
            self.roles.setdefault(role, {})["orders"] = str(pipe.path)

    def config(self, rank: int) -> Config:
        program = self.programs.get(rank, [sys.executable, "-SE", str(self.path / "engine.py")])
        usual = {
            "engine__command": tuple(program),
            "engine__source": (),
            "engine__env": {"FAKE": json.dumps(self.roles)},
            "engine__checks_model_path": False,
            "limits__stop_s": 5.0,
            "limits__load_s": 20.0,
        }
        return change(config("cluster=local"), **(usual | self.settings))

    def engine(self, rank: int) -> Engine:
        place = Placement(rank, self.ranks, "127.0.0.1", "lo", "127.0.0.1", str(self.port), "1")
        return Engine(self.config(rank), place, self.folder.rank(rank), self.tag(rank))

    def tag(self, rank: int) -> str:
        """The whole path: two workers give their directories the same names."""
        return f"{self.path}/{rank}"

    def order(self, role: str, code: int, words: str = "bye") -> None:
        """Let an engine end."""
        self.orders[role].tell(f"{code} {words}")

    def states(self, rank: int) -> list[str]:
        return [line["state"] for line in read_lines(self.folder.rank(rank).states)]

    def pid(self, rank: int) -> int:
        [line] = [line for line in read_lines(self.folder.rank(rank).states) if line["state"] == "loading"]
        return int(line["pid"])


@dataclass
class Running:
    """A supervisor with rank 1 connected."""

    stage: Stage
    supervisor: Supervisor
    life: Life
    control: ControlServer
    client: ControlClient
    headless: asyncio.Task[str | None]

    async def start(self) -> None:
        await asyncio.wait_for(self.supervisor.start(dict(os.environ), self.stage.target), PATIENCE_S)

    async def stop(self) -> list[str]:
        return await asyncio.wait_for(self.supervisor.stop(), PATIENCE_S)

    async def failed(self) -> str:
        """Wait for the end of the service and return its reason."""
        with pytest.raises(ServiceFailed) as caught:
            await asyncio.wait_for(self.life.during(asyncio.Event().wait()), PATIENCE_S)
        return caught.value.reason


def tagged(stage: Stage) -> list[int]:
    """Return the pids of all living processes of the stage's engines."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            tag = f"{TAG}={stage.tag(0)[:-1]}".encode()
            if folder.name.isdigit() and tag in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
