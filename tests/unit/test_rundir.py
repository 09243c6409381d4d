"""Files are the record: atomic, private where they must be, never of another sweep."""

from __future__ import annotations

import grp
import json
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from core_help import ROOT

from jobs.core import files
from jobs.core.errors import RunError
from jobs.core.rundir import AllocationDir, RankDir, SweepDir, new_sweep

NOW = datetime(2030, 1, 2, 3, 4, 5)


def test_a_reader_sees_the_old_content_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    sizes = (10, 300_000)
    contents = {str(n) * sizes[n % 2] for n in range(10)}
    files.write_text(path, "0" * sizes[0])
    seen: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(200):
        files.write_text(path, str(n % 10) * sizes[n % 2])
    stop.set()
    reader.join()
    assert len(seen) > 1
    assert seen <= contents
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_directories_are_made_and_json_keeps_its_text(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.json"
    files.write_json(path, {"ü": [1, None, 1.5], "p": Path("/x")})
    assert files.read_json(path) == {"ü": [1, None, 1.5], "p": "/x"}
    assert "ü" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", [None, "", "{", "{} {}"])
def test_reading_what_is_not_there_or_no_json_is_a_clear_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RunError) as caught:
        files.read_json(path)
    assert caught.value.key == str(path)


FULL = """
import resource, sys
from pathlib import Path
from jobs.core import files
from jobs.core.errors import RunError
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
files.write_text(folder / "row.json", "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (
    lambda: files.write_text(folder / "row.json", "x" * 8192),
    lambda: [files.append_json(folder / "state.jsonl", "y" * 1000) for _ in range(6)],
):
    try:
        write()
    except RunError as error:
        print(f"{error.key}: {error.reason}")
"""


def test_a_full_disk_is_a_clear_error_and_the_old_file_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/row.json: ")
    assert second.startswith(f"{tmp_path}/state.jsonl: ")
    assert "File too large" in done.stdout
    assert (tmp_path / "row.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["row.json", "state.jsonl"]
    assert files.read_lines(tmp_path / "state.jsonl") == ["y" * 1000] * 4  # the half-written fifth is left out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_really_full_file_system(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("no right to mount a tmpfs here")
    try:
        files.write_text(small / "a", "old")
        with pytest.raises(RunError, match=r"No space left on device.*results\.root"):
            files.write_text(small / "a", "x" * 100_000)
        assert (small / "a").read_text() == "old"
        assert [p.name for p in small.iterdir()] == ["a"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def _append(path: Path, word: str) -> None:
    for n in range(100):
        files.append_json(path, {"word": word * 3000, "n": n})


def test_lines_of_two_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "x/state.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(path, word)) for word in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    lines = path.read_text().splitlines()
    assert len(lines) == 200
    for word in "ab":
        own = [json.loads(line) for line in lines if word in line]
        assert [line["n"] for line in own] == list(range(100))


def test_states_are_lines_with_a_time(tmp_path: Path) -> None:
    rank = RankDir(tmp_path / "rank0")
    rank.enter("loading", pid=7)
    rank.enter("failed", reason="words\nof two lines")
    first, second = files.read_lines(rank.states)
    assert (first["state"], first["pid"]) == ("loading", 7)
    assert second["reason"] == "words\nof two lines"
    assert first["time"] <= second["time"]
    assert files.read_lines(tmp_path / "none") == []


def test_a_note_is_written_where_that_is_possible_and_never_stops_anybody(tmp_path: Path) -> None:
    rank = RankDir(tmp_path / "rank0")
    rank.note("draining", point="p")
    assert [line["state"] for line in files.read_lines(rank.states)] == ["draining"]
    nowhere = RankDir(tmp_path / "file/rank0")
    (tmp_path / "file").touch()
    nowhere.note("draining")
    with pytest.raises(RunError, match="Not a directory"):
        nowhere.enter("draining")


def test_space_that_is_held_takes_the_last_rows(tmp_path: Path) -> None:
    folder = AllocationDir(tmp_path / "allocations/0/1")
    folder.free_reserve()  # nothing is held: nothing happens
    folder.take_reserve()
    assert folder.reserve.stat().st_blocks * 512 >= 4 << 20, "blocks, not a hole"
    folder.free_reserve()
    assert not folder.reserve.exists()


def test_secrets_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    folder, other = AllocationDir(tmp_path / "0"), AllocationDir(tmp_path / "1")
    for one in (folder, other):
        one.new_key()
        one.keep_api_key(f"{one.path.name:>32}")
    assert folder.key.name == "control.key"
    secrets = [path for one in (folder, other) for path in (one.key, one.api_key)]
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert len({path.read_text() for path in secrets}) == 4
    assert all(len(path.read_text()) >= 32 for path in secrets)


def test_a_sweep_is_named_after_the_time_or_as_asked(tmp_path: Path) -> None:
    assert new_sweep(tmp_path / "runs", None, NOW).path == tmp_path / "runs/2030-01-02_03-04-05"
    assert new_sweep(tmp_path / "runs", None, NOW).path == tmp_path / "runs/2030-01-02_03-04-05-2"
    assert new_sweep(tmp_path / "runs", "mine", NOW).path == tmp_path / "runs/mine"
    assert new_sweep(tmp_path / "runs", "mine", NOW).path == tmp_path / "runs/mine-2"
    assert (tmp_path / "runs/mine").stat().st_mode & 0o777 == 0o700


def test_a_root_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError) as caught:
        new_sweep(tmp_path / "file/runs", None, NOW)
    assert caught.value.key == "results.root"


def _new(root: Path, count: int) -> list[str]:
    return [new_sweep(root, "same", NOW).path.name for _ in range(count)]


def test_two_launches_at_once_never_share_a_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        names = [name for part in pool.starmap(_new, [(tmp_path, 50)] * 2) for name in part]
    assert len(set(names)) == 100
    assert {p.name for p in tmp_path.iterdir()} == {*names, "latest"}
    assert (tmp_path / "latest").resolve().name in names


def test_the_latest_attempt_of_each_allocation_in_order(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path)
    for index, attempt in ((0, 1), (0, 2), (0, 10), (10, 1), (2, 1)):
        files.write_json(sweep.allocation(index, attempt).task, {})
    sweep.allocation(2, 2).path.mkdir()  # being written: it is not there yet
    found = [str(folder.path.relative_to(tmp_path / "allocations")) for folder in sweep.allocations()]
    assert found == ["0/10", "2/1", "10/1"]
    assert sweep.allocation(2, 1).sweep == sweep


def test_names_are_those_of_the_design(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path)
    rank = sweep.service("s", 1).rank(0)
    paths = [
        sweep.plan, sweep.log, *(sweep.table(s) for s in ("csv", "parquet", "md")),
        sweep.point("p").config, sweep.point("p").row, sweep.point("p").requests,
        sweep.service("s", 1).record, rank.command, rank.states, rank.log,
        sweep.allocation(0, 1).submission, sweep.allocation(0, 1).job, sweep.allocation(0, 1).stdout(1),
    ]  # fmt: skip
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "plan.json", "sweep.log", "table.csv", "table.parquet", "table.md",
        "points/p/config.yaml", "points/p/row.json", "points/p/requests.parquet",
        "services/s/1/service.json", "services/s/1/rank0/command.json", "services/s/1/rank0/state.jsonl",
        "services/s/1/rank0/server.log",
        "allocations/0/1/submission.sh", "allocations/0/1/job.json", "allocations/0/1/stdout-1.log",
    ]  # fmt: skip


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("strict_umask")
@pytest.mark.parametrize("hydra_was_first", [True, False])
def test_a_shared_sweep_can_be_read_by_its_group_under_any_umask(tmp_path: Path, *, hydra_was_first: bool) -> None:
    root = tmp_path / "new" / "root"
    if hydra_was_first:
        (root / ".hydra").mkdir(parents=True)
    sweep = new_sweep(root, None, NOW, grp.getgrgid(os.getgid()).gr_name)
    allocation = sweep.allocation(0, 1)
    allocation.path.mkdir(parents=True)
    allocation.new_key()
    allocation.keep_api_key("key")
    files.write_json(sweep.plan, {})
    sweep.service("s", 1).rank(0).enter("loading")
    for path in (root, *sweep.path.rglob("*")):
        mode = path.stat().st_mode
        if path.suffix == ".key":
            assert stat.S_IMODE(mode) == 0o600, path
        else:
            wanted = 0o050 if path.is_dir() else 0o040
            assert mode & wanted == wanted, (path, oct(mode))
        assert not path.is_dir() or not mode & 0o027, (path, oct(mode))


@pytest.mark.usefixtures("strict_umask")
def test_a_sweep_is_its_owners_alone_unless_it_is_shared(tmp_path: Path) -> None:
    sweep = new_sweep(tmp_path / "root", None, NOW)
    sweep.service("s", 1).rank(0).enter("loading")
    assert not any(path.stat().st_mode & 0o077 for path in sweep.path.rglob("*"))
