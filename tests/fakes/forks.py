"""Lets tests start the tool's own programs as forks of a process that has imported them already (warm.py)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from threading import Lock
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
HEARS_CTRL_C = ["env", "--default-signal=INT"]
"""Before a program: a test run in the background has SIGINT ignored, and what it starts would inherit that."""
_exec = subprocess.Popen._execute_child  # type: ignore[attr-defined]


class Zygote:
    """The process of which all others are forks."""

    def __init__(self) -> None:
        self._turn = Lock()
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = os.pathsep.join([str(ROOT / "tests/fakes"), str(ROOT)])
        self._env = os.environ | {"PYTHONPATH": paths}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "warm", str(theirs.fileno())],
            cwd=ROOT,
            env=self._env | {"OPENBLAS_NUM_THREADS": "1"},  # a fork has no further threads
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        said = self._read()
        self.lacks = None if said == "warm" else said

    def _read(self) -> str:
        return self._orders.recv(4096).decode()

    def need(self) -> None:
        """Skip a test that needs it where the kernel does not let it be; under CI=true that is a failure."""
        if self.lacks:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(self.lacks)

    def start(
        self, argv: list[str], env: dict[str, str], output: Path, uid: int = 0, groups: tuple[int, ...] = ()
    ) -> psutil.Process:
        """Start `python ARGV...`, as this user or as another one; what it says goes to a file."""
        order = {"argv": argv, "env": self._env | env, "cwd": str(ROOT), "output": str(output)}
        with self._turn:
            self._orders.send(json.dumps(order | {"uid": uid, "groups": groups}).encode())
            started = psutil.Process(int(self._read()))
            self._orders.send(b"go")  # what ends at once would be gone before we had a look
        return started

    def execute(self, popen: Any, args: Any, *rest: Any) -> None:
        """Stand for Popen._execute_child (CPython 3.11 to 3.13, subprocess.py): fork where it is a program of ours."""
        words = [] if isinstance(args, str) else [os.fspath(word) for word in args]
        words = words[2:] if words[:2] == HEARS_CTRL_C else words
        if words[:1] != [sys.executable] or (words[1:2] != ["launch.py"] and words[1:3] != ["-m", "jobs"]):
            _exec(popen, args, *rest)
            return
        _, _, _, _, cwd, env, _, _, _, *pipes = rest
        p2cread, _, _, c2pwrite, _, errwrite = pipes[:6]
        order = {"argv": words[1:], "env": dict(os.environ if env is None else env), "leads": bool(rest[-2])}
        files = [own if own != -1 else number for number, own in enumerate((p2cread, c2pwrite, errwrite))]
        with self._turn:
            socket.send_fds(self._orders, [json.dumps(order | {"cwd": os.fspath(cwd or Path.cwd())}).encode()], files)
            popen.pid = int(self._read())
        popen._child_created = True
        popen._close_pipe_fds(*pipes[:6])

    def close(self) -> None:
        """End it."""
        self._orders.close()
        self._process.wait()
