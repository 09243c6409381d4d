"""Logs that are packed, of two bytes a letter, or not to be read: read, or named as not read."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.diagnose import diagnose
from jobs.diagnose.unpack import Unpacked

LINE = (
    "(Worker_TP0 pid=1) ERROR 08-06 11:02:11 [m.py:9] torch.OutOfMemoryError: NPU out of memory. Tried to allocate "
    "448.00 MiB (NPU 0; 60.96 GiB total capacity)\n"
)
UNREAD = "nothing could be read"


def _whole(data: bytes) -> tuple[bytes, str]:
    stream = Unpacked(io.BufferedReader(io.BytesIO(data)))
    parts = list(iter(lambda: stream.read(1000), b""))
    return b"".join(parts), stream.unread


@pytest.mark.parametrize(
    "pack",
    [
        str.encode,
        lambda text: gzip.compress(text.encode()),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: bytes(500) + text.encode(),
    ],
    ids=["plain", "gzip", "utf-16", "utf-16-le", "utf-16-be", "utf-8 with a mark", "a hole before it"],
)
def test_a_log_is_read_in_any_of_these_forms(tmp_path: Path, pack: Callable[[str], bytes]) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(pack(LINE))
    found = diagnose([path])
    assert found.signature == "npu-memory"
    assert not found.notes


def test_the_whole_part_of_a_log_that_was_cut_is_read(tmp_path: Path) -> None:
    data = gzip.compress(LINE.encode() + os.urandom(300_000))
    text, why = _whole(data[: len(data) // 2])
    assert text.startswith(LINE.encode())
    assert "damaged" in why
    path = tmp_path / "a.log"
    path.write_bytes(data[: len(data) // 2])
    found = diagnose([path])
    assert found.signature == "npu-memory"
    assert any("a.log could not be read to its end" in note for note in found.notes)


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh9"])
def test_what_is_packed_otherwise_is_no_log_without_errors(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a.log").write_bytes(head + LINE.encode())
    found = diagnose([tmp_path / "a.log"])
    assert not found.found
    assert UNREAD in found.cause
    assert "it is packed" in found.notes[0]


def test_a_pipe_in_the_place_of_a_log_is_told_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.log")
    found = diagnose([tmp_path / "a.log"])
    assert not found.found
    assert UNREAD in found.cause
    assert "a.log" in found.notes[0]


def test_beside_a_log_with_an_error_one_that_cannot_be_read_is_a_note(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rank0.log")
    (tmp_path / "rank1.log").write_text(LINE, encoding="utf-8")
    found = diagnose([tmp_path / "rank0.log", tmp_path / "rank1.log"])
    assert (found.signature, found.rank) == ("npu-memory", 1)
    assert "rank0.log" in found.notes[0]


def test_an_empty_log_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.log").touch()
    assert "empty" in diagnose([tmp_path / "a.log"]).cause


def test_no_failure_names_the_error_that_was_got_over(tmp_path: Path) -> None:
    ready = "(APIServer pid=2) INFO 08-06 11:03:00 [launcher.py:9] Application startup complete.\n"
    path = tmp_path / "a.log"
    path.write_text("(Worker_TP0 pid=1) ERROR 08-06 11:02:11 [m.py:9] the table is stale, and built anew\n" + ready)
    found = diagnose([path])
    assert not found.found
    assert any("got over" in note and "a.log:1" in note for note in found.notes)
    path.write_text(ready)
    assert not any("got over" in note for note in diagnose([path]).notes)
