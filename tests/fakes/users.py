"""Two users of one host, by number: what one does to the other is done by real processes with other rights."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from world import ROOT

ATTACKER, VICTIM = 61_001, 61_002
GROUP = ("users", 100)
"""A group that every Debian has (base-passwd)."""


def lacking() -> str | None:
    """Return why this process cannot act as two other users, or None."""
    if os.geteuid() != 0:
        return "only root can act as two other users"
    for path in (ROOT, Path(sys.executable).resolve()):
        if any(not part.stat().st_mode & 0o001 for part in path.parents):
            return f"other users cannot reach {path}"
    return None


def need_users() -> None:
    """Skip a test where there can be no other users; under CI=true that is a failure."""
    if reason := lacking():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have two users: {reason}")
        pytest.skip(reason)


@dataclass(frozen=True)
class User:
    """Somebody with a home of its own.

    Attributes:
        uid: and number of its group.
        home: 0700, its own.
        groups: it belongs to as well.
    """

    uid: int
    home: Path
    groups: tuple[int, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Return what a function returns that is called as this user; what it raises is raised here."""
        here, there = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._work(there, work, args)
        os.close(there)
        with os.fdopen(here, "rb") as answers:
            answer = answers.read()
        os.waitpid(pid, 0)
        good, value = pickle.loads(answer)
        if not good:
            raise value
        return value

    def _work(self, answers: int, work: Callable[..., Any], args: Sequence[Any]) -> NoReturn:
        try:
            self.become()
            answer = pickle.dumps((True, work(*args)))
        except BaseException as error:
            try:
                answer = pickle.dumps((False, error))
                pickle.loads(answer)
            except Exception:
                answer = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
        with os.fdopen(answers, "wb") as out:
            out.write(answer)
        os._exit(0)

    def become(self) -> None:
        """Be this user from now on."""
        os.setgroups(self.groups)
        os.setgid(self.uid)
        os.setuid(self.uid)
        os.umask(0o022)
        os.environ.update(self.environment())
        os.chdir(self.home)

    def environment(self) -> dict[str, str]:
        """Return the variables that are this user's."""
        return {"HOME": str(self.home), "TMPDIR": str(self.home / "tmp"), "USER": str(self.uid)} | self.env

    def start(self, script: str, *words: str) -> subprocess.Popen[str]:
        """Start a Python script as this user."""
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", script, *words],
            user=self.uid, group=self.uid, extra_groups=self.groups, cwd=self.home, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program as this user to its end, whatever its exit code."""
        return subprocess.run(
            words, user=self.uid, group=self.uid, extra_groups=self.groups, cwd=self.home, capture_output=True,
            text=True, check=False, env={**os.environ, **self.environment(), **env},
        )  # fmt: skip

    def run(self, *words: str, **env: str) -> str:
        """Run a program as this user. Returns what it printed; it has to end well."""
        done = self.ask(*words, **env)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        return done.stdout

    def need_namespaces(self) -> None:
        """Skip a test where ordinary users cannot make user namespaces."""
        if (refused := self.ask("unshare", "--user", "true")).returncode:
            pytest.skip(f"this kernel gives ordinary users no user namespaces: {refused.stderr.strip()}")

    def can_read(self, path: Path) -> bool:
        """Return whether this user may read a file."""
        return bool(self.call(os.access, path, os.R_OK))


@dataclass(frozen=True)
class Host:
    """Two users, and a directory in which both may make names, as in /tmp or at the top of a scratch file system."""

    attacker: User
    victim: User
    shared: Path


def working_in(place: Path) -> list[psutil.Process]:
    """Return the processes whose working directory lies in a directory."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(one.cwd()).is_relative_to(place):
                found.append(one)
    return found


@contextmanager
def two_users() -> Iterator[Host]:
    """Yield two users; what they leave is removed.

    Their processes too: the first podman of an ordinary user leaves one that holds its namespaces for the next.
    """
    need_users()
    place = Path(tempfile.mkdtemp(prefix="two-users-", dir="/tmp"))
    place.chmod(0o755)
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    users = []
    for uid in (ATTACKER, VICTIM):
        home = place / str(uid)
        for path in (home, home / "tmp"):
            path.mkdir(mode=0o700)
            os.chown(path, uid, uid)
        users.append(User(uid, home))
    try:
        yield Host(*users, shared)
    finally:
        left = working_in(place)
        for one in left:
            with suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(left, timeout=60)
        shutil.rmtree(place, ignore_errors=True)
