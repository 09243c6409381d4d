"""A program in a session of its own: what belongs to it, and what ends all of that, also when its owner is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import psutil

from jobs.core.errors import RunError

CHILD = "SERVING_SWEEP_CHILD"
"""Variable that tells a program that is run in the foreground, and all that it starts, from everything else."""

KILL_S = 10.0
"""After SIGKILL a process may hang in the kernel for as long as its driver takes; then it counts as left behind."""

# What ends a whole tree when its owner is gone without a word (SIGKILL, a lost container, the OOM killer). Not by
# PR_SET_PDEATHSIG, which reaches one process and dies with its exec under other rights; not by Slurm, which finds
# orphans only where a cgroup holds them. Its standard input is a pipe from the owner: first the pid of the tree, then
# nothing until the owner's end closes it.
_GUARD = """trap '' HUP INT TERM USR1 USR2
read -r pid
read -r never
strays() {
  grep -lszxF -- "$1" /proc/[0-9]*/environ | cut -d/ -f3
  [ -z "$pid" ] || sed -n "s/^\\([0-9]*\\) (.*) [^ZX] [0-9]* [0-9]* $pid .*/\\1/p" /proc/[0-9]*/stat
}
alive() { { [ -n "$pid" ] && kill -0 -- "-$pid"; } || [ -n "$(strays "$1")" ]; } 2>/dev/null
[ -z "$pid" ] || { kill -0 -- "-$pid" && kill -TERM "$pid"; } 2>/dev/null
tries=0
while alive "$1"; do
  sleep 0.2
  tries=$((tries + 1))
  [ "$tries" -lt "$2" ] && continue
  { [ -z "$pid" ] || kill -KILL -- "-$pid"; kill -KILL $(strays "$1"); } 2>/dev/null
  [ "$tries" -lt "$(($2 + 50))" ] || exit 1
done
[ -z "$3" ] || rm -rf -- "$3"
"""

_GUARD_TRIES = 15
"""Times 0.2 s from SIGTERM to SIGKILL, where nobody is left to wait for the engine."""


class Guard:
    """What ends everything with one variable, and the group of one process that has it, once this process is gone."""

    def __init__(self, variable: str, path: str, scratch: str = "") -> None:
        """Start it.

        Args:
            variable: as NAME=VALUE.
            path: a PATH that finds the tools of its script.
            scratch: a directory that it removes at last; empty: none.
        """
        self.minds: asyncio.subprocess.Process | subprocess.Popen[str] | None = None
        self._process = subprocess.Popen(
            ["bash", "-c", _GUARD, "serving-sweep-guard", variable, str(_GUARD_TRIES), scratch],
            env={"PATH": f"{path}{os.pathsep}{os.defpath}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def mind(self, process: asyncio.subprocess.Process | subprocess.Popen[str]) -> None:
        """Tell it the process whose group it ends too."""
        assert self._process.stdin is not None
        self.minds = process
        self._process.stdin.write(f"{process.pid}\n".encode())
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """End it without an act."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()


@contextlib.contextmanager
def alone(
    argv: Sequence[str], env: Mapping[str, str], grace_s: float, **output: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a session of its own. The end of the block is the end of all that it started.

    `grace_s`: seconds from SIGTERM to SIGKILL, where the block ends before the program.
    """
    mark = f"{CHILD}={os.getpid()}.{time.monotonic_ns()}"
    guard = Guard(mark, env.get("PATH", ""))
    try:
        started = popen(argv, {**env, CHILD: mark.partition("=")[2]}, **output)
        guard.mind(started)
        try:
            yield started
        finally:
            end_all(started, mark, grace_s)
    finally:
        guard.dismiss()


def popen(argv: Sequence[str], env: dict[str, str], **output: Any) -> subprocess.Popen[str]:
    """Start a program in a session of its own. RunError: it cannot be started."""
    try:
        return subprocess.Popen(
            list(argv),
            env=env,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            **output,
        )
    except FileNotFoundError:
        raise RunError(argv[0], "(program)", "it is not on PATH", "Install it or mend PATH.") from None
    except OSError as error:
        raise RunError(argv[0], "(program)", str(error), "Try it by hand.") from None


def end_all(started: subprocess.Popen[str], mark: str = "", grace_s: float = 0.0) -> None:
    """End what is left of a program's session; where it did not end well, also whoever left that with its mark."""
    if grace_s and started.poll() is None:
        for one in _of_session(started.pid, mark):
            with contextlib.suppress(psutil.Error):
                one.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(grace_s)
    mark = "" if started.poll() == 0 else mark  # a container's monitor outlives what started it, and is meant to
    deadline = time.monotonic() + KILL_S
    while (left := _of_session(started.pid, mark)) and time.monotonic() < deadline:
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        started.poll()
        time.sleep(0.02)
    started.wait()


def _of_session(leader: int, mark: str) -> list[psutil.Process]:
    """Return the living processes of a session, and those whose environment has a mark, NAME=VALUE."""
    name, _, value = mark.partition("=")
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if one.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(one.pid) == leader or (name and one.environ().get(name) == value):
                found.append(one)
    return found


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Let SIGTERM, and a terminal that goes away, end this process by SystemExit: what it started then ends first."""
    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, _exit) for one in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
