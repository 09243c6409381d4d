"""The only place that starts, signals and reaps processes; what belongs to one of them says session.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import psutil

from jobs.core.errors import RunError
from jobs.core.fields import CODE
from jobs.core.files import open_append
from jobs.core.session import KILL_S, Guard, alone, end_all, popen
from jobs.core.waiting import aside

TAG = "SERVING_SWEEP_RANK"
"""Environment variable that tags every process of an engine, so that strays are found wherever they went."""

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

_guards: dict[str, list[Guard]] = {}
"""By process tag. Held here, since a guard acts when its pipe is closed: also when nobody refers to it any more."""


def python(module: str, *words: str) -> list[str]:
    """Return the command line of a module; of what lies in the directory in which we are called none is loaded.

    Others may put a `random.py` there. Only the directory of our own code may be that one.
    """
    return [sys.executable, "-u", *([] if Path.cwd() == CODE else ["-P"]), "-m", module, *words]


def run(
    argv: Sequence[str], *, timeout_s: float = 60.0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a short command and return its output and exit code; never raises for an exit code.

    What it started ends with it when the time is over: a child could else keep our end of its output open for ever.

    Raises:
        RunError: the program is missing or did not end in time.
    """
    both = subprocess.PIPE
    started = popen(argv, dict(os.environ if env is None else env), stdout=both, stderr=both)
    try:
        output, errors = started.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        reason = f"no answer within {timeout_s:g} s"
        raise RunError(" ".join(argv), "(command)", reason, "Try it by hand.") from None
    finally:
        if started.returncode is None:
            end_all(started)

    return subprocess.CompletedProcess(list(argv), started.returncode, output, errors)


def gather(argv: Sequence[str], env: Mapping[str, str], timeout_s: float, most: int) -> tuple[int, str, str]:
    """Run a command that nobody here knows. Returns its exit code, its output and its errors; it ends with us.

    Args:
        argv, env: its command line and its whole environment.
        timeout_s: seconds after which it is ended.
        most: bytes that it may write to each of both.

    Raises:
        RunError: it cannot be started, needs longer, or writes more.
    """
    end, pipe = time.monotonic() + timeout_s, subprocess.PIPE
    with alone(argv, env, 0, stdout=pipe, stderr=pipe) as started, selectors.DefaultSelector() as open_ones:
        said = {stream: bytearray() for stream in (started.stdout, started.stderr) if stream}
        for stream in said:
            open_ones.register(stream, selectors.EVENT_READ, stream)
        late = RunError(argv[0], "(command)", f"no answer within {timeout_s:g} s", "Try it by hand.")
        while open_ones.get_map():
            left = end - time.monotonic()
            if left < 0 or not (ready := open_ones.select(left)):
                raise late
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                said[key.data] += chunk
                if not chunk:
                    open_ones.unregister(key.fileobj)
                elif len(said[key.data]) > most:
                    raise RunError(argv[0], "(command)", f"it wrote more than {most >> 20} MiB", "Try it by hand.")
        output, errors = (found.decode("utf-8", "replace") for found in said.values())
        try:  # it may have closed both, and go on
            return started.wait(max(end - time.monotonic(), 0)), output, errors
        except subprocess.TimeoutExpired:
            raise late from None


def attend(argv: Sequence[str], grace_s: float = 5.0) -> int:
    """Run a program with its output on stderr, as on a terminal. Returns its exit code. It ends with us, as `stream`'s.

    Raises:
        RunError: it cannot be started.
    """
    with alone(argv, os.environ, grace_s, stdout=sys.stderr) as started:
        return started.wait()


LAST_LINES = 200


def stream(argv: Sequence[str], env: Mapping[str, str], output: IO[str], cwd: Path | None = None) -> tuple[int, str]:
    """Run a long command; its words go to `output` as they come. Returns its exit code and its last lines.

    It has a session of its own, and whatever ends the wait (a signal handler that raises, Ctrl-C, SIGKILL of us) ends
    all of it: programs that are shell scripts leave their children behind otherwise, in groups of their own.

    Raises:
        RunError: it cannot be started.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    with alone(argv, env, 0, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd) as started:
        assert started.stdout is not None
        for line in started.stdout:
            last.append(line)
            output.write(line)
            output.flush()
        return started.wait(), "".join(last)


def become(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Go on as another program, under the same process id. RunError: there is no such program."""
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


@contextlib.contextmanager
def detached(argv: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own, which outlives this one and its terminal.

    The program runs once the block has ended: where that raises, or we die in it, it never does.
    """
    with open_append(log) as output:
        started = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh", *argv],
            bufsize=0,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    assert started.stdin
    try:
        yield started
        with contextlib.suppress(BrokenPipeError):  # somebody has ended it: its state tells
            started.stdin.write(b"go\n")
    finally:
        started.stdin.close()


def alive(pid: int, argument: str) -> bool:
    """Return whether a process lives and has this argument: a stranger may have its pid by now; a zombie is dead."""
    try:
        found = psutil.Process(pid)
        words = found.cmdline()  # empty for a moment after its start
        return found.status() != psutil.STATUS_ZOMBIE and (not words or argument in words)
    except psutil.Error:
        return False


def with_arguments(words: Sequence[str]) -> list[int]:
    """Return the processes of this user whose command line ends with these words."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            asked = one.cmdline()[-len(words) :] == list(words)
            if asked and one.uids().real == os.getuid() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
    return found


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


async def fewer_children(pid: int, count: int) -> None:
    """Wait until a process has fewer living children than it starts, one after the other: at three looks."""
    fewer = 0
    while fewer < 3:
        await asyncio.sleep(1.0)
        with contextlib.suppress(psutil.Error):
            living = [one for one in psutil.Process(pid).children() if one.status() != psutil.STATUS_ZOMBIE]
            fewer = fewer + 1 if len(living) < count else 0


def terminate(pid: int, by: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, by)


def signal_name(code: int) -> str | None:
    """Return the signal of which a program ended by its exit code; None: of none.

    128 + N is the signal N where something stands between: a shell, srun, `docker exec`.
    """
    with contextlib.suppress(ValueError):
        return signal.Signals(-code if code < 0 else code - 128).name
    return None


_MEANS = {126: " (the program cannot be executed)", 127: " (there is no such program)"}
"""Exit codes of shells, of srun and of container runtimes about what they were to start (POSIX, XCU 2.8.2)."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int

    def __str__(self) -> str:
        if name := signal_name(self.code):
            return f"killed by {name}" + (f" (exit code {self.code})" if self.code > 0 else "")
        return f"exited with code {self.code}{_MEANS.get(self.code, '')}"


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
        return [f"pid {p.pid} {name_of(p.pid)}" for p in strays]

    def _stands_still(self) -> bool:
        """Whether the main process was stopped (SIGSTOP): then it does not see SIGTERM."""
        with contextlib.suppress(psutil.Error):
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        return False

    def owns(self, pid: int) -> bool:
        """Return whether a process is of this engine: of its group, or with its tag."""
        with contextlib.suppress(psutil.Error):
            return self._is_ours(psutil.Process(pid))
        return False

    def strays(self) -> list[psutil.Process]:
        """Return living processes of this engine: its session, and whatever carries its tag."""
        return [p for p in psutil.process_iter() if self._is_ours(p)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            ours = self.pid in (os.getpgid(process.pid), os.getsid(process.pid))
            return ours or process.environ().get(TAG) == self.tag
        except (psutil.Error, OSError):
            return False


def name_of(pid: int) -> str:
    """Return the name of a process's program."""
    with contextlib.suppress(psutil.Error):
        return str(psutil.Process(pid).name())
    return "(gone)"


def _guard(tag: str, path: str, scratch: str) -> Guard:
    """Start a guard. Several processes may have one tag at once: what stages weights, and what brings an image."""
    _dismiss(tag)
    guard = Guard(f"{TAG}={tag}", path, scratch)
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
    scratch: str = "",
) -> Process:
    """Start an engine, or a client of it, with its output in `log`, whose directory is made.

    Args:
        argv, env: program and arguments; the whole environment.
        tag: value of TAG in the environment of the whole tree.
        source: shell files that are sourced first, in this order.
        scratch: a directory that goes with it, where this process is gone.

    The whole tree ends with this process, however that ends: within seconds, and by SIGTERM first.
    A missing program or shell file shows as exit code 127 with the shell's words in `log`.

    Raises:
        RunError: it cannot be started at all: no bash, a list that is too long, a NUL character.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["bash", "-c", _WRAPPER, "bash", *source, "--", *argv]
    guard: Guard | None = None
    try:
        guard = _guard(tag, env.get("PATH", ""), scratch)  # first: there is no moment in which nobody minds it
        with open_append(log) as output:
            process = await asyncio.create_subprocess_exec(
                *command, env=dict(env) | {TAG: tag}, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        guard.mind(process)
    except (OSError, ValueError) as error:
        if guard:
            guard.dismiss()
            _guards[tag].remove(guard)
        raise RunError(argv[0], "(start)", str(error), "Check engine.command, engine.env and engine.args.") from None
    return Process(process, tag)
