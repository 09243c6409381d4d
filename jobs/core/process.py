"""The only place that starts, signals and reaps processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import psutil

from jobs.core.errors import RunError
from jobs.core.waiting import aside

TAG = "SERVING_SWEEP_RANK"
"""Environment variable that tags every process of an engine, so that strays are found wherever they went."""

KILL_S = 10.0
"""After SIGKILL a process may hang in the kernel for as long as its driver takes; then it counts as left behind."""

# Signals that Slurm and submitit send to us must not end the engine: an ignored signal stays ignored over
# exec. Values are positional arguments and never pass through the shell's parser.
# They wait in an array, because a sourced file may set or shift the positional ones.
_WRAPPER = """trap '' USR1 USR2
serving_sweep_words=("$@")
while [ "$serving_sweep_words" != -- ]; do
  set --
  source "$serving_sweep_words" || { echo "cannot source $serving_sweep_words" >&2; exit 127; }
  serving_sweep_words=("${serving_sweep_words[@]:1}")
done
exec "${serving_sweep_words[@]:1}"
"""

# What ends a whole tree when its owner is gone without a word (SIGKILL, a lost container, the OOM killer). Not by
# PR_SET_PDEATHSIG, which reaches one process and dies with its exec under other rights; not by Slurm, which finds
# orphans only where a cgroup holds them. Its standard input is a pipe from the owner: first the pid of the tree, then
# nothing until the owner's end closes it.
_GUARD = """trap '' HUP INT TERM USR1 USR2
read -r pid
read -r never
strays() { grep -lszxF -- "$1" /proc/[0-9]*/environ | cut -d/ -f3; }
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
"""

_guards: dict[str, list[Guard]] = {}
"""By process tag. Held here, since a guard acts when its pipe is closed: also when nobody refers to it any more."""

_GUARD_TRIES = 15
"""Times 0.2 s from SIGTERM to SIGKILL, where nobody is left to wait for the engine."""


def run(
    argv: Sequence[str], *, timeout_s: float = 60.0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a short command and return its output and exit code; never raises for an exit code.

    Raises:
        RunError: the program is missing or did not end in time.
    """
    try:
        return subprocess.run(
            list(argv), capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            stdin=subprocess.DEVNULL, env=None if env is None else dict(env),
        )  # fmt: skip
    except FileNotFoundError:
        raise RunError(argv[0], "(program)", "it is not on PATH", "Install it or mend PATH.") from None
    except OSError as error:
        raise RunError(argv[0], "(program)", str(error), "Try it by hand.") from None
    except subprocess.TimeoutExpired:
        reason = f"no answer within {timeout_s:g} s"
        raise RunError(" ".join(argv), "(command)", reason, "Try it by hand.") from None


def attend(argv: Sequence[str]) -> int:
    """Run a program in the foreground with its output on stderr, as on a terminal. Returns its exit code.

    Raises:
        RunError: it cannot be started.
    """
    try:
        return subprocess.run(list(argv), stdout=sys.stderr, check=False).returncode
    except OSError as error:
        raise RunError(argv[0], "(program)", str(error), "Try it by hand.") from None


LAST_LINES = 200


def stream(argv: Sequence[str], env: Mapping[str, str], output: IO[str]) -> tuple[int, str]:
    """Run a long command; its words go to `output` as they come. Returns its exit code and its last lines.

    It has a session of its own, and whatever ends the wait (a signal handler that raises, Ctrl-C) ends all of it:
    programs that are shell scripts leave their children behind otherwise.

    Raises:
        RunError: it cannot be started.
    """
    try:
        started = subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        reason = "it is not on PATH" if isinstance(error, FileNotFoundError) else str(error)
        raise RunError(argv[0], "(program)", reason, "Install it or mend PATH.") from None
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        assert started.stdout is not None
        for line in started.stdout:
            last.append(line)
            output.write(line)
            output.flush()
        return started.wait(), "".join(last)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def become(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Go on as another program, under the same process id.

    Raises:
        RunError: there is no such program.
    """
    try:
        os.execvpe(argv[0], list(argv), dict(env))
    except OSError as error:
        raise RunError(argv[0], "(program)", str(error), "Install it or mend PATH.") from None


def tags() -> set[str]:
    """Return the process tags of all living engines and of what prepares them, as far as this user can see them."""
    found = set()
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if one.status() != psutil.STATUS_ZOMBIE:
                found.add(one.environ().get(TAG, ""))
    return found - {""}


def detach(argv: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, which outlives this one and its terminal."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def alive(pid: int, argument: str) -> bool:
    """Return whether a process lives and has this argument: a stranger may have its pid by now; a zombie is dead."""
    try:
        found = psutil.Process(pid)
        words = found.cmdline()  # empty for a moment after its start
        return found.status() != psutil.STATUS_ZOMBIE and (not words or argument in words)
    except psutil.Error:
        return False


def child_with(pid: int, name: str, value: str) -> int | None:
    """Return the child of a process that has this variable in its environment; None: there is none."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and child.environ().get(name) == value:
                    return int(child.pid)
    return None


async def gone(pid: int | None, pause_s: float = 0.2) -> None:
    """Wait until a process that is no child of ours has ended; None has ended already."""
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(pid) if pid else None
        while found and found.is_running() and found.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(pause_s)


def terminate(pid: int) -> None:
    """Send SIGTERM to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int

    def __str__(self) -> str:
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-self.code).name}"
        return f"exited with code {self.code}"


class Process:
    """One engine process in a process group and session of its own."""

    def __init__(self, process: asyncio.subprocess.Process, tag: str) -> None:
        self._process, self.tag = process, tag
        self.pid = process.pid

    async def wait(self) -> Ended:
        """Wait until the main process has ended."""
        return Ended(await self._process.wait())

    @property
    def ended(self) -> Ended | None:
        """How it ended, or None while it lives."""
        return None if self._process.returncode is None else Ended(self._process.returncode)

    async def stop(self, grace_s: float) -> list[str]:
        """End the whole tree: SIGTERM, then SIGKILL after `grace_s` seconds. Returns what could not be ended."""
        if self.ended is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 0 if self._stands_still() else grace_s)
        deadline = time.monotonic() + KILL_S
        while (strays := await aside(self.strays)) and time.monotonic() < deadline:
            for stray in strays:
                with contextlib.suppress(psutil.Error):
                    stray.kill()
            await asyncio.sleep(0.05)
        if self.ended is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 5.0)
        if not strays:
            _dismiss(self.tag)  # their pids may be given away from now on
        return [f"pid {p.pid} {_name(p)}" for p in strays]

    def _stands_still(self) -> bool:
        """Whether the main process was stopped (SIGSTOP): then it does not see SIGTERM."""
        with contextlib.suppress(psutil.Error):
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        return False

    def strays(self) -> list[psutil.Process]:
        """Return living processes of this engine: its group, and whatever carries its tag."""
        return [p for p in psutil.process_iter() if self._is_ours(p)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return os.getpgid(process.pid) == self.pid or process.environ().get(TAG) == self.tag
        except (psutil.Error, OSError):
            return False


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return "(gone)"


class Guard:
    """What ends everything with a process tag, and the group of one process that has it, once this process is gone."""

    def __init__(self, tag: str, path: str) -> None:
        """Start it. `path`: a PATH that finds the tools of its script."""
        self.minds: asyncio.subprocess.Process | None = None
        self._process = subprocess.Popen(
            ["bash", "-c", _GUARD, "serving-sweep-guard", f"{TAG}={tag}", str(_GUARD_TRIES)],
            env={"PATH": f"{path}{os.pathsep}{os.defpath}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def mind(self, process: asyncio.subprocess.Process) -> None:
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


def _guard(tag: str, path: str) -> Guard:
    """Start a guard. Several processes may have one tag at once: what stages weights, and what brings an image."""
    _dismiss(tag)
    guard = Guard(tag, path)
    _guards.setdefault(tag, []).append(guard)
    return guard


def _dismiss(tag: str) -> None:
    """Dismiss the guards of a process tag whose processes have ended: they would end what came after."""
    guards = _guards.pop(tag, [])
    over = [one for one in guards if one.minds is not None and one.minds.returncode is not None]
    for one in over:
        one.dismiss()
    if kept := [one for one in guards if one not in over]:
        _guards[tag] = kept


async def start(
    argv: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    tag: str,
    source: Sequence[str] = (),
    cwd: Path | None = None,
) -> Process:
    """Start an engine, or a client of it, with its output in `log`.

    Args:
        argv: program and arguments.
        env: the whole environment.
        log: file that takes stdout and stderr; its directory is made.
        tag: value of TAG in the environment of the whole tree.
        source: shell files that are sourced first, in this order.
        cwd: working directory; None: ours.

    The whole tree ends with this process, however that ends: within seconds, and by SIGTERM first.
    A missing program or shell file shows as exit code 127 with the shell's words in `log`.

    Raises:
        RunError: it cannot be started at all: no bash, a list that is too long, a NUL character.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["bash", "-c", _WRAPPER, "bash", *source, "--", *argv]
    guard: Guard | None = None
    try:
        guard = _guard(tag, env.get("PATH", ""))  # before the engine: there is no moment in which nobody minds it
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(env) | {TAG: tag},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        guard.mind(process)
    except (OSError, ValueError) as error:
        if guard:
            guard.dismiss()
            _guards[tag].remove(guard)
        raise RunError(argv[0], "(start)", str(error), "Check engine.command, engine.env and engine.args.") from None
    return Process(process, tag)
