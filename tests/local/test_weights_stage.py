"""A staged copy is whole or not used: killed, doubled, out of space, changed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_help import shard, write
from core_help import ROOT

from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.files import read_json
from jobs.engines.checkpoint import copying, stage
from jobs.engines.checkpoint.checkpoint import INDEX, files
from jobs.engines.checkpoint.copying import Copied


def same(source: Path, target: Path) -> bool:
    """Return whether two directories hold the same bytes."""
    return files(source) == files(target) and all(
        (source / name).read_bytes() == (target / name).read_bytes() for name in files(source)
    )


def worker(source: Path, root: Path, result: Path) -> subprocess.Popen[str]:
    """Start what a rank starts."""
    order = result.with_suffix(".order")
    asked = {"source": str(source), "stage_to": str(root), "result": str(result)}
    asked |= {"check": True, "sampled": 0, "quantized": "", "weights": True}
    order.write_text(json.dumps(asked))
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.engines.checkpoint", str(order)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_staged_once_and_found_again(tmp_path: Path) -> None:
    source = write(tmp_path / "R1", shards=5)
    (source / ".cache").mkdir()
    (source / ".cache/client.json").write_text("{}")
    seen: list[Copied] = []
    first = stage.stage(source, tmp_path / "local", progress=seen.append)
    assert not first.reused
    assert first.path.name.startswith("R1-")
    assert same(source, first.path)
    assert not (first.path / ".cache").exists()
    assert (seen[0].done, seen[-1].done) == (0, seen[-1].total)
    assert first.bytes == seen[-1].total == sum(files(source).values())
    inode = shard(first.path).stat().st_ino
    again = stage.stage(source, tmp_path / "local")
    assert (again.path, again.reused, again.bytes) == (first.path, True, 0)
    assert shard(first.path).stat().st_ino == inode


def test_links_are_followed(tmp_path: Path) -> None:
    blobs = write(tmp_path / "blobs")
    source = tmp_path / "snapshot"
    source.mkdir()
    for name in files(blobs):
        (source / name).symlink_to(blobs / name)
    done = stage.stage(source, tmp_path / "local")
    assert same(source, done.path)
    assert not any(path.is_symlink() for path in done.path.iterdir())


def test_another_state_of_the_source_is_another_copy(tmp_path: Path) -> None:
    source = write(tmp_path / "R1")
    first = stage.stage(source, tmp_path / "local").path
    old = shard(first).read_bytes()
    data = bytearray(shard(source).read_bytes())
    data[-1] ^= 1
    shard(source).write_bytes(data)
    second = stage.stage(source, tmp_path / "local").path
    assert second != first
    assert same(source, second)
    assert shard(first).read_bytes() == old, "an engine may still read it"


@pytest.mark.parametrize("damage", ["no stamp", "empty stamp", "cut file", "missing file"])
def test_what_has_no_good_stamp_is_not_trusted(tmp_path: Path, damage: str) -> None:
    source = write(tmp_path / "R1")
    target = stage.stage(source, tmp_path / "local").path
    if damage == "no stamp":
        (target / ".staged.json").unlink()
    elif damage == "empty stamp":
        (target / ".staged.json").write_text("")
    elif damage == "cut file":
        os.truncate(shard(target), 50)
    else:
        shard(target).unlink()
    assert not stage.is_staged(target)
    done = stage.stage(source, tmp_path / "local")
    assert not done.reused
    assert same(source, target)


def test_a_copy_that_is_not_its_source_gets_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "R1")
    real = stage.copy_files

    def bad_disk(*words: object, **more: object) -> Copied:
        copied = real(*words, **more)  # type: ignore[arg-type]
        target = shard(Path(str(words[1])))
        data = bytearray(target.read_bytes())
        data[-1] ^= 1
        target.write_bytes(data)
        return copied

    with monkeypatch.context() as patch:
        patch.setattr(stage, "copy_files", bad_disk)
        with pytest.raises(RunError, match=r"its sampled content is not that in the source"):
            stage.stage(source, tmp_path / "local")
    assert not any((tmp_path / "local").glob("*/.staged.json"))
    assert same(source, stage.stage(source, tmp_path / "local").path)


def test_a_damaged_source_is_never_stamped(tmp_path: Path) -> None:
    source = write(tmp_path / "R1")
    os.truncate(shard(source), 3000)
    with pytest.raises(RunError, match=r"the copy is not right: model-00001-of-00002.safetensors"):
        stage.stage(source, tmp_path / "local")
    assert not any((tmp_path / "local").glob("*/.staged.json"))


def test_killed_at_random_points_it_is_taken_up_and_never_trusted_half(tmp_path: Path) -> None:
    source = write(tmp_path / "R1", shards=3)
    for number in range(1, 4):  # large enough for a copy that takes a while
        with (source / f"extra-{number}.bin").open("wb") as file:
            file.write(random.Random(number).randbytes(1 << 20) * 48)
    root, chance = tmp_path / "local", random.Random(7)
    for round_ in range(6):
        running = worker(source, root, tmp_path / f"{round_}.json")
        if round_ % 2:  # after some bytes were written
            while running.poll() is None and sum(f.stat().st_size for f in list(root.glob("*/*"))) < chance.uniform(
                0, 150e6
            ):
                time.sleep(0.002)
        else:
            time.sleep(chance.uniform(0.1, 0.6))
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=30)
        for target in root.glob("R1-*"):
            assert not stage.is_staged(target) or same(source, target)
    last = worker(source, root, tmp_path / "last.json")
    output, _ = last.communicate(timeout=60)
    assert last.returncode == 0, output
    target = Path(read_json(tmp_path / "last.json")["path"])
    assert stage.is_staged(target)
    assert same(source, target)
    assert not list(target.glob("*.part"))


def test_two_at_once_copy_once(tmp_path: Path) -> None:
    source, started, go = write(tmp_path / "R1"), threading.Event(), threading.Event()
    results: list[stage.Staged] = []

    def first_progress(_: Copied) -> None:
        started.set()
        go.wait(20)

    first = threading.Thread(
        target=lambda: results.append(stage.stage(source, tmp_path / "local", progress=first_progress))
    )
    first.start()
    assert started.wait(20)
    waited = threading.Event()
    second = threading.Thread(
        target=lambda: results.append(stage.stage(source, tmp_path / "local", waiting=lambda _: waited.set()))
    )
    second.start()
    assert waited.wait(20), "the second must wait for the first"
    go.set()
    for thread in (first, second):
        thread.join(20)
    assert [one.reused for one in results] == [False, True]
    assert same(source, results[1].path)


def test_too_little_space_is_said_before_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, other = write(tmp_path / "R1"), write(tmp_path / "other")
    kept = stage.stage(other, tmp_path / "local").path

    class Usage:
        free = 1000

    monkeypatch.setattr(copying.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(RunError) as caught:
        stage.stage(source, tmp_path / "local")
    assert caught.value.key == "model.stage_to"
    assert "GiB are needed and 0.0 GiB are free" in caught.value.reason
    assert str(kept) in caught.value.remedy
    assert not any(target.glob("*.safetensors") for target in (tmp_path / "local").glob("R1-*/*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if process.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield place
    process.run(["umount", str(place)])


def test_a_disk_that_runs_full_is_left_as_it_was(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "R1")
    (source / "extra.bin").write_bytes(random.Random(0).randbytes(3 << 20))
    with pytest.raises(RunError, match=r"0.0 GiB are free"):
        stage.stage(source, small_disk)
    # Another job of the node fills the disk after the check.
    monkeypatch.setattr(stage, "check_space", lambda *_: None)
    with pytest.raises(RunError, match="the disk ran full: No space left on device"):
        stage.stage(source, small_disk)
    assert [path for path in small_disk.iterdir() if path.is_dir()] == []


def test_errors_are_for_people(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no such directory on this node"):
        stage.stage(tmp_path / "nowhere", tmp_path / "local")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"model.stage_to .* Not a directory|File exists"):
        stage.stage(write(tmp_path / "R1"), tmp_path / "file")


def test_the_worker_writes_its_result(tmp_path: Path) -> None:
    source = write(tmp_path / "R1")
    running = worker(source, tmp_path / "local", tmp_path / "result.json")
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    found = read_json(tmp_path / "result.json")
    assert Path(found["path"]).parent == tmp_path / "local"
    assert "set of file sizes" in found["parts"]
    assert "staged 0.0/0.0 GiB" in output
    shard(source).unlink()
    running = worker(source, tmp_path / "local", tmp_path / "result.json")
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert read_json(tmp_path / "result.json")["error"][0] == "model.stage_to"
    assert "Traceback" not in output


def test_no_file_outside_of_a_copy_is_removed(tmp_path: Path) -> None:
    source, victim = write(tmp_path / "R1"), tmp_path / "model-00001.safetensors"
    victim.write_text("mine")
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["nope"] = str(victim)
    (source / INDEX).write_text(json.dumps(index))
    with pytest.raises(RunError, match="names a file outside the checkpoint"):
        stage.stage(source, tmp_path / "local")
    assert victim.read_text() == "mine"


def test_a_copy_is_for_its_user_alone(tmp_path: Path) -> None:
    done = stage.stage(write(tmp_path / "R1"), tmp_path / "local")
    modes = {path.stat().st_mode & 0o777 for path in done.path.rglob("*") if path.is_file()}
    assert (done.path.stat().st_mode & 0o777, modes) == (0o700, {0o600})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_link_to_what_its_maker_does_not_own_is_not_copied(tmp_path: Path) -> None:
    source = write(tmp_path / "R1")
    (tmp_path / "secret").write_text("{}")
    (source / "generation_config.json").symlink_to(tmp_path / "secret")
    os.chown(source / "generation_config.json", 61_002, 61_002, follow_symlinks=False)
    with pytest.raises(RunError, match="a link of another user leads"):
        stage.stage(source, tmp_path / "local")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_copy_that_another_user_prepared_is_not_taken(tmp_path: Path) -> None:
    source = write(tmp_path / "R1")
    done = stage.stage(source, tmp_path / "local")
    os.chown(done.path, 61_002, 61_002)
    with pytest.raises(RunError, match="belongs to somebody else"):
        stage.stage(source, tmp_path / "local")


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "modeling_r1.py", INDEX])
def test_a_file_beside_the_weights_that_would_fill_the_disk_is_not_copied(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / "R1")
    with (source / name).open("ab") as file:
        file.truncate(40 << 30)  # a hole, which costs its owner nothing
    with pytest.raises(RunError, match="is no file of weights") as caught:
        stage.stage(source, tmp_path / "local")
    assert str(caught.value.value).endswith(name)
    assert not list((tmp_path / "local").rglob(name))
