"""The digest of an image file: read once, and again as soon as the file is another one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from core_help import change, config

from containers import store
from containers.store import Digests
from jobs.allocation.node import container, fingerprint
from jobs.allocation.preflight import look
from jobs.allocation.preflight.facts import UNKNOWN
from jobs.core import files
from jobs.core.config import Config


def of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.sqsh"
    path.write_bytes(b"one")
    return path


def rewrite(path: Path, content: bytes) -> None:
    """Change the content in place, and nothing by which a file is known."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def known(kept: Digests, image: Path) -> str | None:
    """Return the digest of a file where it was read before: it is not read now."""
    return kept.read(image, lambda: True)


def test_a_file_is_read_once_for_all(tmp_path: Path, image: Path) -> None:
    kept = Digests(tmp_path / "kept")
    assert known(kept, image) is None
    assert kept.read(image) == of(b"one")
    rewrite(image, b"two")
    assert kept.read(image) == of(b"one"), "it was not opened again"
    assert known(Digests(tmp_path / "kept"), image) == of(b"one"), "another process, another node"
    [record] = (tmp_path / "kept").iterdir()
    record.write_text("{")
    assert known(kept, image) is None
    assert kept.read(image) == of(b"two")


def test_each_mark_of_another_file_is_seen(tmp_path: Path, image: Path) -> None:
    kept = Digests(tmp_path / "kept")
    assert kept.read(image) == of(b"one")
    rewrite(image, b"longer")
    assert kept.read(image) == of(b"longer")
    rewrite(image, b"change")
    os.utime(image, ns=(1, 1))
    assert kept.read(image) == of(b"change")
    other = tmp_path / "other"
    other.write_bytes(b"rename")
    os.utime(other, ns=(1, 1))
    other.replace(image)
    assert kept.read(image) == of(b"rename"), "the inode alone differs"


def test_a_link_is_what_it_leads_to(tmp_path: Path, image: Path) -> None:
    kept, link = Digests(tmp_path / "kept"), tmp_path / "current.sqsh"
    link.symlink_to(image)
    assert kept.read(link) == of(b"one")
    (tmp_path / "new.sqsh").write_bytes(b"new")
    link.unlink()
    link.symlink_to(tmp_path / "new.sqsh")
    assert kept.read(link) == of(b"new")


def test_what_was_given_up_or_changed_meanwhile_is_not_kept(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Digests(tmp_path / "kept")
    assert kept.read(image, lambda: True) is None
    monkeypatch.setattr(files, "CHUNK_BYTES", 1)
    asked = []

    def grows() -> bool:
        asked.append(1)
        if len(asked) == 2:
            image.write_bytes(b"another one")
        return False

    assert kept.read(image, grows) is None
    assert len(asked) > 2
    assert not (tmp_path / "kept").exists()
    assert kept.read(tmp_path / "nothing") is None


def test_a_directory_that_cannot_be_written_costs_the_memory_not_the_digest(tmp_path: Path, image: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Digests(tmp_path / "file/kept")
    assert kept.read(image) == of(b"one")
    assert known(kept, image) is None


def test_long_files_are_announced(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Digests(tmp_path / "kept")
    kept.read(image)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(store, "WORTH_SAYING_BYTES", 4)
    image.write_bytes(b"longer")
    kept.read(image)
    assert f"reading {image} for its digest, once" in capsys.readouterr().err
    kept.read(image)
    assert capsys.readouterr().err == ""


def in_image(tmp_path: Path, image: Path) -> Config:
    made = config("cluster=slurm", "container=enroot", f"container.image={image}")
    return change(made, results__root=str(tmp_path / "runs"))


def test_a_fingerprint_has_the_digest_of_an_image_file(tmp_path: Path, image: Path) -> None:
    one = in_image(tmp_path, image)
    assert fingerprint.at_once(one).image_digest is None
    before = fingerprint.of_this_host(one)
    assert before.image_digest == of(b"one")
    image.write_bytes(b"two")
    assert fingerprint.of_this_host(one).changes(vars(before)) == [f"image_digest {of(b'one')} -> {of(b'two')}"]
    assert fingerprint.of_this_host(change(one, container__runtime="none")).image_digest is None
    assert container.image_file(change(one, container__runtime="none")) is None


def test_the_checks_of_nodes_read_no_image(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(Digests, "read", read)
    assert look._contents(in_image(tmp_path, image))["image"] == "3 bytes"
    assert look._contents(in_image(tmp_path, tmp_path / "nothing"))["image"] == UNKNOWN
