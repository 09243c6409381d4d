"""Import and create, at once and killed at random: what is half-made is never used."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from container_fakes import DIGEST, REGISTRY, URI, Fakes

from containers import enroot
from containers.base import Local
from containers.spec import Image, parse_image
from containers.store import Entry, Store
from jobs.core import process, session
from jobs.core.errors import RunError
from jobs.core.lock import exclusive

IMAGE = parse_image("test/image:v1", REGISTRY)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes(tmp_path / "bin")
    monkeypatch.setenv("PATH", made.path)
    return made


def paths(tmp_path: Path) -> Local:
    return Local(tmp_path / "node")


def ensure(tmp_path: Path, image: Image = IMAGE, *, refresh: bool = False) -> Entry:
    """Import as a rank does."""
    where, env = paths(tmp_path), dict(os.environ)
    return Store(tmp_path / "images").ensure(
        image,
        lambda output: enroot.fetch(image, output, where, env),
        lambda: enroot.digest(image, env | where.env()),
        refresh=refresh,
    )


def check_is_whole(tmp_path: Path) -> None:
    entry = Store(tmp_path / "images").find(IMAGE)
    assert entry is not None
    assert Store(tmp_path / "images").verify(entry) is None


def test_an_image_is_imported_once_and_named_by_its_digest(tmp_path: Path, fakes: Fakes) -> None:
    first = ensure(tmp_path)
    assert (first.digest, first.reference) == (DIGEST, URI)
    assert Path(first.path).name.startswith(DIGEST.replace(":", "-"))
    assert ensure(tmp_path) == first
    assert len(fakes.calls("imported")) == 1
    check_is_whole(tmp_path)
    assert not list((tmp_path / "node/enroot/temp").iterdir())


OTHER = parse_image("test/image:latest", REGISTRY)


def test_two_references_of_one_digest_share_its_file(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(images={URI: DIGEST, str(OTHER): DIGEST})
    store = Store(tmp_path / "images")
    first, second = ensure(tmp_path), ensure(tmp_path, OTHER)
    assert (second.reference, second.path, second.sha256) == (str(OTHER), first.path, first.sha256)
    assert len(fakes.calls("imported")) == 1
    assert store.find(IMAGE) == first
    assert store.find(OTHER) == second
    assert store.prune() == []
    Path(first.path).write_bytes(Path(first.path).read_bytes() + b"x" * 4096)
    assert store.find(IMAGE) is None
    healed = ensure(tmp_path)
    assert store.verify(healed) is None
    assert ensure(tmp_path, OTHER).sha256 == healed.sha256
    assert len(fakes.calls("imported")) == 2
    assert store.find(IMAGE) == healed


def test_two_references_of_one_digest_at_once_are_one_import(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(images={URI: DIGEST, str(OTHER): DIGEST}, enroot_import={"pause_s": 0.1})
    workers = [FORK.Process(target=ensure, args=(tmp_path, image)) for image in (IMAGE, OTHER) * 3]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert len(fakes.calls("imports")) == 1
    store = Store(tmp_path / "images")
    assert {store.verify(entry) for entry in store.entries()} == {None}


def test_a_tag_that_has_moved_is_followed_where_that_is_asked_for(tmp_path: Path, fakes: Fakes) -> None:
    first, moved = ensure(tmp_path), "sha256:" + "cd" * 32
    assert ensure(tmp_path, refresh=True) == first
    assert len(fakes.calls("imported")) == 1, "the digest is the same"
    fakes.tell(images={URI: moved})
    assert ensure(tmp_path) == first
    again = ensure(tmp_path, refresh=True)
    assert again.digest == moved
    assert Store(tmp_path / "images").find(IMAGE) == again
    assert len(fakes.calls("imported")) == 2
    fakes.tell(images={URI: None})
    assert ensure(tmp_path, refresh=True).digest.startswith("sha256:")
    assert len(fakes.calls("imported")) == 3, "without digests nobody can tell: it is imported again"


def test_an_enroot_without_digests_names_the_file_by_its_content(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(images={URI: None})
    entry = ensure(tmp_path)
    assert entry.digest == f"sha256:{entry.sha256}"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"exit0": True}, "the import ended without an error, but"),
        ({"cut": True}, "bytes of"),  # its superblock is valid, and `unsquashfs -s` content with it
        ({"say": "[ERROR] URL https://r/v2/x returned error code: 401 Unauthorized"}, "refuses access"),
        ({"say": "curl: (6) Could not resolve host: r", "code": 6}, "not known here"),
        ({"say": "write error: No space left on device"}, "the disk is full"),
        ({"say": "[ERROR] something new"}, "something new"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_failed_import_is_a_clear_error_and_leaves_nothing(
    tmp_path: Path, fakes: Fakes, told: dict[str, object], words: str
) -> None:
    fakes.tell(enroot_import=told)
    with pytest.raises(RunError) as caught:
        ensure(tmp_path)
    assert (caught.value.key, str(caught.value.value)) == ("container.image", URI)
    assert words in str(caught.value)
    assert Store(tmp_path / "images").find(IMAGE) is None
    assert {path.suffix for path in (tmp_path / "images").iterdir()} == {".lock"}
    fakes.tell()
    ensure(tmp_path)
    check_is_whole(tmp_path)


def test_no_enroot_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError) as caught:
        enroot.fetch(IMAGE, tmp_path / "x", paths(tmp_path), dict(os.environ))
    assert (caught.value.key, caught.value.reason) == ("enroot", "it is not on PATH")


def test_directories_that_are_not_ours_to_write_are_named(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("a file")
    with pytest.raises(RunError) as caught:
        paths(tmp_path).make()
    assert caught.value.key == "container.local_dir"


def test_a_file_that_has_changed_since_is_no_longer_trusted(tmp_path: Path, fakes: Fakes) -> None:
    entry = ensure(tmp_path)
    store, file = Store(tmp_path / "images"), Path(entry.path)
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    assert store.verify(entry) == "its content has changed since it was imported"
    os.truncate(file, len(content) - 10)
    assert store.find(IMAGE) is None
    assert "another length" in str(store.verify(entry))
    assert ensure(tmp_path).sha256 == entry.sha256
    assert store.verify(entry) is None


def test_prune_removes_half_files_and_keeps_images(tmp_path: Path, fakes: Fakes) -> None:
    entry = ensure(tmp_path)
    folder = tmp_path / "images"
    lock = next(folder.glob("*.lock"))
    half = folder / f".{lock.stem}.other.123.part"
    half.write_bytes(b"half")
    (folder / "sha256-00.sqsh").write_bytes(b"whole, but its importer died before it wrote the record")
    with exclusive(lock):
        assert Store(folder).prune() == [], "an import is going on"
    assert sorted(Store(folder).prune()) == [half.name, "sha256-00.sqsh"]
    assert Store(folder).find(IMAGE) == entry
    assert Store(folder).prune(older_s=0) == [URI, Path(entry.path).name]
    assert {path.suffix for path in folder.iterdir()} == {".lock"}


def test_whoever_stops_an_import_stops_its_children(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(enroot_import={"hang": True})

    def work() -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        ensure(tmp_path)

    worker = FORK.Process(target=work)
    worker.start()
    wait_for(lambda: bool(fakes.calls("hangs")), worker)
    children = psutil.Process(worker.pid).children(recursive=True)
    assert children
    worker.terminate()
    worker.join(20)
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert not list((tmp_path / "node/enroot/temp").iterdir())
    assert {path.suffix for path in (tmp_path / "images").iterdir()} == {".lock"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_layers_that_a_child_goes_on_to_unpack_are_removed_after_its_end(
    tmp_path: Path, fakes: Fakes, number: int
) -> None:
    """GNU parallel gives each of enroot's jobs a process group: to kill that of enroot leaves its tar at work."""
    fakes.tell(enroot_import={"writes": True})

    def work() -> None:
        with session.orderly():
            ensure(tmp_path)

    worker = FORK.Process(target=work)
    worker.start()
    wait_for(lambda: bool(fakes.calls("writes")), worker)
    tar = psutil.Process(int(fakes.calls("writes")[0][1]))
    temp = tmp_path / "node/enroot/temp"
    [layers] = temp.iterdir()
    os.kill(int(worker.pid or 0), number)
    worker.join(20)
    assert psutil.wait_procs([tar], timeout=30)[1] == []
    if number == signal.SIGKILL:
        assert [path.name for path in temp.iterdir()] == [layers.name], "nobody was left to remove them"
        other = temp / "serving-sweep.import.another-node.1-7"
        other.mkdir()
        assert layers.name in enroot.Enroot().sweep(paths(tmp_path), os.environ, lambda _: None)
        assert list(temp.iterdir()) == [other], "of a node that shares the directory nothing is known"
        other.rmdir()
    assert list(temp.iterdir()) == []


def wait_for(true: Callable[[], bool], worker: multiprocessing.process.BaseProcess) -> None:
    end = time.monotonic() + 30
    while not true():
        assert worker.is_alive()
        assert time.monotonic() < end
        time.sleep(0.02)


def crowd(work: Callable[[], None], seed: int, kill: int, before_s: float) -> list[int | None]:
    """Let twenty do the same at once, and kill some at random moments. Returns the exit codes of the others."""
    chance = random.Random(seed)
    workers = [FORK.Process(target=work) for _ in range(20)]
    for worker in workers:
        worker.start()
    victims = chance.sample(workers, kill)
    begun = time.monotonic()
    for moment, victim in sorted((chance.uniform(0, before_s), index) for index, victim in enumerate(victims)):
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        victims[victim].kill()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    return [worker.exitcode for worker in workers if worker not in victims]


def quiet() -> None:
    """Progress of twenty is of no use."""
    sys.stderr = io.StringIO()


@pytest.mark.parametrize(("seed", "kill"), [(1, 0), (2, 12)])
def test_twenty_imports_at_once(tmp_path: Path, fakes: Fakes, seed: int, kill: int) -> None:
    fakes.tell(enroot_import={"pause_s": 0.03})

    def work() -> None:
        quiet()
        entry = ensure(tmp_path)
        wrong = Store(tmp_path / "images").verify(entry)
        os._exit(9 if wrong else 0)

    codes = crowd(work, seed, kill, before_s=2.0)
    assert codes == [0] * (20 - kill), "whoever got an image got a whole one"
    check_is_whole(tmp_path)
    if not kill:
        assert len(fakes.calls("imports")) == 1
    assert len(fakes.calls("imports")) <= 1 + kill
    Store(tmp_path / "images").prune()
    assert sorted(path.suffix for path in (tmp_path / "images").iterdir() if path.suffix != ".lock") == [
        ".json",
        ".sqsh",
    ]


@pytest.mark.parametrize(("seed", "kill"), [(3, 0), (4, 12)])
def test_twenty_creates_at_once(tmp_path: Path, fakes: Fakes, seed: int, kill: int) -> None:
    fakes.tell(enroot_create={"pause_s": 0.1})
    file = fakes.image(tmp_path / "x.sqsh")
    where, env, name = paths(tmp_path), dict(os.environ), "serving-sweep.7.s.0"

    def work() -> None:
        quiet()
        root = enroot.create(file, name, where, env, "7/s/0")
        os._exit(0 if (root / "usr/bin/sh").exists() and root.name == name else 9)

    codes = crowd(work, seed, kill, before_s=1.0)
    assert codes == [0] * (20 - kill), "whoever got a root got a whole one"
    made = len(fakes.calls("enroot", "create"))
    assert made == 1 if not kill else 1 <= made <= 1 + kill
    wait_for_orphans(fakes)
    for old in enroot.leftovers(where, lambda: process.tags() | {"7/s/0"}):
        assert enroot.PART in old or old == name
    assert enroot.remove(name, where, env) is None


def wait_for_orphans(fakes: Fakes) -> None:
    """Children of killed enroots go on for a while, as the real ones do."""
    end = time.monotonic() + 20
    while any(str(fakes.folder) in " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("told", [{"exit0": True}, {"say": "[ERROR] no", "code": 1}])
def test_a_create_that_only_seems_to_work_leaves_no_root(tmp_path: Path, fakes: Fakes, told: dict[str, object]) -> None:
    fakes.tell(enroot_create=told)
    file, where = fakes.image(tmp_path / "x.sqsh"), paths(tmp_path)
    with pytest.raises(RunError):
        enroot.create(file, "serving-sweep.7.s.0", where, dict(os.environ), "7/s/0")
    assert [path.name for path in where.data.iterdir()] == [".serving-sweep.lock"]


def test_roots_of_dead_jobs_are_found_and_those_of_living_ranks_are_not(tmp_path: Path) -> None:
    where = paths(tmp_path)
    for name in ("serving-sweep.7.a.0", "serving-sweep.8.b.0", "serving-sweep.8.b.1.part.99", "mine", ".hidden"):
        (where.data / name).mkdir(parents=True)
    assert enroot.leftovers(where, lambda: {"7/a/0"}) == ["serving-sweep.8.b.0", "serving-sweep.8.b.1.part.99"]
    assert enroot.leftovers(where, lambda: {"7/a/0", "8/b/1"}) == ["serving-sweep.8.b.0"]


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    told: list[str] = []

    def hold() -> None:
        with exclusive(tmp_path / "x.lock"):
            (tmp_path / "held").touch()
            time.sleep(60)

    holder = FORK.Process(target=hold)
    holder.start()
    wait_for((tmp_path / "held").exists, holder)

    def waiting(who: str) -> None:
        told.append(who)
        holder.kill()

    with exclusive(tmp_path / "x.lock", waiting):
        assert told == [f"process {holder.pid} on {socket.gethostname()}"]
    holder.join(10)
