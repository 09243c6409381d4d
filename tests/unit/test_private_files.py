"""What is written is for this user, or the group of a shared directory, through no link, where nobody exchanges it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from jobs.core import files, lock
from jobs.core.errors import RunError
from jobs.core.rundir import Root, images_path

STRANGER = 61_002
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_file_is_for_its_user_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write_json(tmp_path / "a/b.json", {})
        files.append_json(tmp_path / "a/c.jsonl", {})
    finally:
        os.umask(before)
    assert (mode(tmp_path / "a"), mode(tmp_path / "a/b.json"), mode(tmp_path / "a/c.jsonl") & 0o077) == (
        0o700,
        0o600,
        0,
    )


def test_a_file_of_a_shared_directory_is_for_its_group_too(tmp_path: Path) -> None:
    tmp_path.chmod(0o2750)
    files.write_json(tmp_path / "a/b.json", {})
    assert (mode(tmp_path / "a") & 0o777, mode(tmp_path / "a/b.json")) == (0o750, 0o640)


def test_a_directory_may_be_made_by_two_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, there = Path.is_dir, tmp_path / "services/1"

    def late(path: Path) -> bool:
        answer = real(path)
        if path == there and not answer:
            there.mkdir(parents=True)  # the other one, just after we have looked
        return answer

    monkeypatch.setattr(Path, "is_dir", late)
    files.make_directory(there)
    assert real(there)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        files.make_directory(tmp_path / "file/below")


def test_a_file_that_the_user_asked_for_obeys_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert files.public() == 0o644
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_link_is_replaced_or_refused_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("row.json", "state.jsonl", "x.lock"):
        (tmp_path / name).symlink_to("mine")
    files.write_json(tmp_path / "row.json", {})
    with pytest.raises(RunError):
        files.append_json(tmp_path / "state.jsonl", {})
    with pytest.raises(RunError), lock.exclusive(tmp_path / "x.lock"):
        pass
    assert not lock.is_free(tmp_path / "x.lock")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "row.json").is_symlink()


def test_a_lock_with_a_second_name_or_that_is_a_pipe_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "x.lock").hardlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / "y.lock")
    for name in ("x.lock", "y.lock"):
        with pytest.raises(RunError), lock.exclusive(tmp_path / name):
            pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_second_name_is_not_appended_to_where_others_make_names(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / "x.part").hardlink_to(tmp_path / "mine")
    tmp_path.chmod(0o1777)
    with pytest.raises(OSError, match="it is a second name of a file"):
        files.open_append(tmp_path / "x.part", 0o600)
    assert (tmp_path / "mine").read_text() == "mine\n"
    tmp_path.chmod(0o700)  # a backup by second names
    files.append_json(tmp_path / "x.part", 1)
    assert (tmp_path / "mine").read_text() == "mine\n1\n"


def test_a_directory_that_nobody_else_can_exchange_is_private(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    assert files.not_private(tmp_path / "a/b") is None
    assert files.not_private(tmp_path / "not/there/yet") is None
    (tmp_path / "a").chmod(0o777)
    assert files.not_private(tmp_path / "a/b") == f"others may write to {tmp_path / 'a'}"
    (tmp_path / "a").chmod(0o1777)  # as /tmp itself
    assert files.not_private(tmp_path / "a/b") is None


@as_root
def test_every_component_below_tmp_is_ours(tmp_path: Path) -> None:
    (tmp_path / "theirs/data").mkdir(parents=True)
    (tmp_path / "good").mkdir()
    os.chown(tmp_path / "theirs", STRANGER, STRANGER)
    assert files.not_private(tmp_path / "theirs/data") == f"{tmp_path / 'theirs'} belongs to somebody else"
    (tmp_path / "link").symlink_to("good")
    assert files.not_private(tmp_path / "link") is None
    os.chown(tmp_path / "link", STRANGER, STRANGER, follow_symlinks=False)
    assert files.not_private(tmp_path / "link") == f"{tmp_path / 'link'} is a link of somebody else"
    with pytest.raises(PermissionError):
        files.make_private(tmp_path / "theirs/data")


@as_root
def test_what_users_keep_beside_their_sweeps_lies_apart(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert root.node("n1") == tmp_path / ".nodes/n1.json"
    for name in (".nodes", ".images"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, STRANGER, STRANGER)
    assert root.node("n1") == tmp_path / f".nodes-{os.geteuid()}/n1.json"
    assert images_path(tmp_path) == tmp_path / f".images-{os.geteuid()}"
    (tmp_path / ".calibration").symlink_to("/etc")
    assert root.calibration("x").parent == tmp_path / f".calibration-{os.geteuid()}"
