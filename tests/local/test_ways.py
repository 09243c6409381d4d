"""Another user exchanges a part of a way while we go it: at each moment, by a process with other rights."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from users import Host, two_users

from jobs.core import files, foreign, lock
from jobs.core.errors import RunError
from jobs.core.rundir import Root

AGENT = """
import os, sys
for line in sys.stdin:
    what, name, more = line.rstrip("\\n").split("\\t")
    try:
        if what == "link":
            os.symlink(more, name)
        elif what == "dir":
            os.mkdir(name); os.chmod(name, 0o777)
        elif what == "pipe":
            os.mkfifo(name, 0o666)
        elif what == "move":
            os.rename(name, more)
        print("done", flush=True)
    except OSError as error:
        print(error, flush=True)
"""

Act = Callable[[str, Path, str], str]
"""Has the other user do something, and returns how that went."""


@pytest.fixture
def host() -> Iterator[Host]:
    with two_users() as made:
        made.shared.chmod(0o777)  # a directory of a group that all of it write to: names can be moved, too
        yield made


@pytest.fixture
def act(host: Host) -> Iterator[Act]:
    agent = host.attacker.start(AGENT)
    assert agent.stdin and agent.stdout

    def ask(what: str, name: Path, more: str = "") -> str:
        return _ask(agent, f"{what}\t{name}\t{more}")

    yield ask
    agent.stdin.close()
    agent.wait(10)
    agent.stdout.close()


def _ask(agent: subprocess.Popen[str], line: str) -> str:
    assert agent.stdin and agent.stdout
    agent.stdin.write(line + "\n")
    agent.stdin.flush()
    return agent.stdout.readline().strip()


def _lock(path: Path) -> None:
    with lock.exclusive(path):
        pass


def _new(path: Path) -> None:
    try:
        files.new_file(path, 0o600).close()
    except OSError as error:
        raise RunError(str(path), "(write)", str(error), "") from None


def _remove(path: Path) -> None:
    try:
        files.remove(path)
    except OSError as error:
        raise RunError(str(path), "(remove)", str(error), "") from None


def _append(path: Path) -> None:
    files.append_json(path, {})


def _write(path: Path) -> None:
    files.write_json(path, {})


def hurried(name: str, before: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Have something done by others once, just before this process calls a function of `os`."""

    @contextlib.contextmanager
    def patched() -> Iterator[None]:
        real = getattr(os, name)

        def late(*args: Any, **more: Any) -> Any:
            setattr(os, name, real)
            before()
            return real(*args, **more)

        setattr(os, name, late)
        try:
            yield
        finally:
            setattr(os, name, real)

    return patched()


@pytest.mark.parametrize("put", ["link", "dir", "pipe"])
@pytest.mark.parametrize("operation", [_write, _append], ids=lambda one: one.__name__[1:])
def test_what_is_put_there_between_the_look_and_the_mkdir_gets_nothing(
    host: Host, act: Act, put: str, operation: Callable[[Path], None]
) -> None:
    mine, root = host.victim.home / "private", Root(host.shared)

    def victim() -> tuple[str, str, list[str]]:
        mine.mkdir()
        path = root.calibration("x")
        with hurried("mkdir", lambda: act(put, path.parent, str(mine))), pytest.raises(RunError) as caught:
            operation(path)
        operation(again := root.calibration("x"))  # the next one goes beside it
        return str(caught.value), again.parent.name, [one.name for one in mine.iterdir()]

    said, name, left = host.victim.call(victim)
    assert "another user has put something there just now" in said
    assert name == f".calibration-{host.victim.uid}" and left == []
    assert not (host.shared / ".calibration").is_dir() or not any((host.shared / ".calibration").iterdir())


@pytest.mark.parametrize("operation", [_write, _append, _lock, _new, _remove], ids=lambda one: one.__name__[1:])
@pytest.mark.parametrize("put", ["link", "dir"])
def test_a_directory_of_ours_that_is_moved_away_is_not_written_through_what_stands_there_then(
    host: Host, act: Act, put: str, operation: Callable[[Path], None]
) -> None:
    mine, root = host.victim.home / "private", Root(host.shared)

    def victim() -> tuple[str, list[str]]:
        mine.mkdir()
        if operation is _remove:
            (mine / "y.json").write_text("mine")
        files.write_json(path := root.calibration("x"), {})
        folder = path.parent

        def exchange() -> None:
            assert act("move", folder, f"{folder}.away") == "done"
            assert act(put, folder, str(mine)) == "done"

        said = ""
        with hurried("open", exchange):
            try:
                operation(path.with_name("y.json"))
            except RunError as error:
                said = str(error)
        return said, [one.name for one in mine.iterdir()]

    said, left = host.victim.call(victim)
    assert left == (["y.json"] if operation is _remove else [])
    if put == "link":
        assert "a link of another user leads to what is not that user's" in said
    elif operation in (_write, _append, _remove):  # the others may be asked for in a directory that the user named
        assert "this directory belongs to another user" in said


def test_a_directory_that_is_exchanged_while_a_file_is_written_holds_the_file_all_the_same(
    host: Host, act: Act
) -> None:
    mine, root = host.victim.home / "private", Root(host.shared)

    def victim() -> list[str]:
        mine.mkdir()
        (mine / "x.json").write_text("mine")
        files.make_directory((path := root.calibration("x")).parent)

        def exchange() -> None:
            assert act("move", path.parent, f"{path.parent}.away") == "done"
            assert act("link", path.parent, str(mine)) == "done"

        with hurried("replace", exchange):
            files.write_json(path, {})
        return [(mine / "x.json").read_text(), *(one.name for one in Path(f"{path.parent}.away").iterdir())]

    assert host.victim.call(victim) == ["mine", "x.json"]


@pytest.mark.parametrize("end", ["link", "folder"])
def test_a_link_that_is_taken_away_before_it_is_looked_at_gives_nothing_away(host: Host, act: Act, end: str) -> None:
    """Opened through the link, looked at when a plain name of the same kind stands there."""
    place = host.shared / "sweep"

    def attacker() -> None:
        place.mkdir()
        (place / "plain").mkdir()
        (place / "plain/x.json").write_text('"theirs"')
        (place / "plain/x.json").chmod(0o644)
        (place / "x").symlink_to(host.victim.home / ("x.json" if end == "link" else ""))

    def victim() -> Any:
        (host.victim.home / "x.json").write_text('"secret"')
        path = place / "x" if end == "link" else place / "x/x.json"

        def exchange() -> None:
            assert act("move", place / "x", str(place / "away")) == "done"
            assert act("move", place / ("plain/x.json" if end == "link" else "plain"), str(place / "x")) == "done"

        moment = "readlink" if end == "folder" else "fstat"
        with hurried(moment, exchange):
            try:
                return foreign.load_json(path)
            except RunError as error:
                return error.reason

    host.attacker.call(attacker)
    found = host.victim.call(victim)
    assert found != "secret"
    assert found == "theirs" or "link of another user" in found


def test_users_who_hold_every_name_that_can_be_known_keep_nobody_from_his_own(host: Host) -> None:
    root = Root(host.shared)

    def attacker() -> None:
        for end in ("", f"-{host.victim.uid}", *(f"-{host.victim.uid}-{n}" for n in range(100))):
            (host.shared / f".calibration{end}").mkdir()

    def victim() -> list[str]:
        files.write_json(path := root.calibration("x"), {"a": 1})
        assert root.calibration("x") == path and json.loads(path.read_text()) == {"a": 1}
        return [root.calibration(name).parent.name for name in ("x", "y")]

    host.attacker.call(attacker)
    one, two = host.victim.call(victim)
    assert one == two and one.startswith(f".calibration-{host.victim.uid}-")
