"""Start daemons, know them again, end exactly them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class LabError(Exception):
    """The lab cannot do what was asked; the text is one line for a person."""


def run(
    argv: Sequence[str | Path],
    *,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, output captured as text.

    Raises:
        LabError: it is not there, takes longer than `timeout` seconds, or fails (check; with its last line).
    """
    try:
        done = subprocess.run(
            [str(part) for part in argv],
            check=False,
            capture_output=True,
            text=True,
            env=env,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise LabError(f"no program {argv[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(map(str, argv))}` did not end in {timeout:.0f} s") from None
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise LabError(f"`{' '.join(map(str, argv))}` ended with {done.returncode}: {words}")
    return done


def wait_until(met: Callable[[], bool], timeout: float, what: str, poll: float = 0.05) -> None:
    """Wait until met() is true, at most `timeout` seconds; LabError says what did not happen."""
    end = time.monotonic() + timeout
    while not met():
        if time.monotonic() > end:
            raise LabError(f"{what}: not so after {timeout:.0f} s")
        time.sleep(poll)


@dataclass(frozen=True)
class Process:
    """A process known by its id and its start time (clock ticks since boot), for ids are used again."""

    pid: int
    started: int
    session: int = field(default=0, compare=False)

    @staticmethod
    def of(pid: int) -> Process | None:
        """Return the process that has this id now; None if there is none or it is a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # Field 2 is the command in brackets and may hold anything; 3 is the state, 6 the session, 22 the start
        # (proc(5)).
        state, *rest = stat.rpartition(") ")[2].split()
        return None if state in "ZX" else Process(pid, int(rest[18]), int(rest[2]))

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self

    def signal(self, number: int) -> None:
        """Send a signal unless the process is gone."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


@dataclass(frozen=True)
class Daemon:
    """A daemon in the foreground mode of its program, with a record of its process in `run`/NAME.process."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    record: Path
    output: Path

    def process(self) -> Process | None:
        """Return the running process, or None."""
        recorded = self._recorded()
        return recorded if recorded is not None and recorded.alive else None

    def session(self) -> list[Process]:
        """Return the process and what it started in its session, also if it is gone and they are not."""
        leader = self._recorded()
        if leader is None or Process.of(leader.pid) not in (leader, None):
            return []
        return [process for process in everything() if process.session == leader.pid]

    def start(self) -> None:
        """Start it, detached, unless it runs.

        The shell writes the record before it becomes the daemon: no moment exists in which the daemon runs
        unrecorded, whatever happens to the caller.
        """
        if self.process() is not None:
            return
        self.record.unlink(missing_ok=True)
        script = 'echo "$$ $(cut -d" " -f22 /proc/$$/stat)" >"$0"; exec "$@"'
        with self.output.open("ab") as output:
            subprocess.run(
                ["setsid", "--fork", "sh", "-c", script, str(self.record), *self.argv],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(self.env),
                cwd="/",
            )
        wait_until(lambda: self._recorded() is not None, 5, f"{self.name} has started", poll=0.005)

    def _recorded(self) -> Process | None:
        try:
            pid, started = self.record.read_text().split()
        except (FileNotFoundError, ValueError):  # not there, or not written to its end
            return None
        return Process(int(pid), int(started))

    def wait_ready(self, ready: Callable[[], bool], timeout: float = 30) -> None:
        """Wait until ready() is true; LabError with the daemon's last words if it dies or takes too long."""

        def settled() -> bool:
            return ready() or self.process() is None

        try:
            wait_until(settled, timeout, "ready")
        except LabError:
            raise LabError(f"{self.name} is not ready after {timeout:.0f} s; {self._last_words()}") from None
        if not ready():
            raise LabError(f"{self.name} ended at once; {self._last_words()}")

    def _last_words(self) -> str:
        lines = self.output.read_text(errors="replace").strip().splitlines() or ["nothing"]
        return f"its last line in {self.output}: {lines[-1]}"


def end(processes: Iterable[Process], grace: float) -> None:
    """End these processes: SIGTERM, then SIGKILL after `grace` seconds. Returns when all are gone."""
    left = [process for process in processes if process.alive]
    for process in left:
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)
    try:
        wait_until(lambda: not any(process.alive for process in left), grace, "ended", poll=0.02)
    except LabError:
        for process in left:
            process.signal(signal.SIGKILL)
        wait_until(lambda: not any(process.alive for process in left), 10, "killed", poll=0.02)


def everything() -> list[Process]:
    """Return every process of the machine but zombies."""
    found = (Process.of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [process for process in found if process is not None]


def inside(namespace: Path) -> list[Process]:
    """Return the processes whose network namespace is the one that this file holds."""
    if not namespace.is_file():
        return []
    wanted = namespace.stat()
    return [process for process in everything() if _in_namespace(process, wanted)]


def _in_namespace(process: Process, wanted: os.stat_result) -> bool:
    try:
        own = Path(f"/proc/{process.pid}/ns/net").stat()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return (own.st_ino, own.st_dev) == (wanted.st_ino, wanted.st_dev)
