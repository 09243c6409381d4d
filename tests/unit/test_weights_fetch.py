"""Fetching: the client's command line, a mirror that breaks off, changes, refuses or lies."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from checkpoint_help import shard, write
from core_help import executable

from jobs.core import lock
from jobs.core.errors import RunError
from jobs.engines.checkpoint import checkpoint, fetch, mirror
from jobs.engines.checkpoint.checkpoint import files
from jobs.engines.checkpoint.copying import Copied


@dataclass
class Site:
    """A mirror on loopback, and what it does wrong."""

    path: Path
    breaks: dict[str, int] = field(default_factory=dict)
    """How many bytes of a file's answer come before the connection breaks, once."""
    without_ranges: bool = False
    refused: str = ""
    size: str = ""
    """What it says of the size of every file; empty: the truth."""
    version: int = 1
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(mirror, "CHUNK_BYTES", 1000)
    site = Site(write(tmp_path / "mirror", shards=3))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            name = self.path.removeprefix("/R1/")
            site.asked.append((self.command, name, self.headers.get("Range")))
            file = site.path / name
            if name == site.refused or not file.is_file():
                self.send_response(403 if name == site.refused else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = file.read_bytes()
            first = 0
            if "Range" in self.headers and not site.without_ranges:
                first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("ETag", f'"{site.version}"')
            self.send_header("Content-Length", site.size or str(len(data) - first))
            self.end_headers()
            if not body:
                return
            part = data[first:]
            if name in site.breaks:
                part = part[: site.breaks.pop(name)]
                self.close_connection = True
            self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/R1"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def download(site: Site, target: Path) -> list[Copied]:
    target.mkdir(exist_ok=True)
    seen: list[Copied] = []
    mirror.download(site.url, target, parallel=2, progress=seen.append, pause_s=0.01)
    return seen


def same(one: Path, two: Path) -> bool:
    return files(one) == files(two) and all((one / n).read_bytes() == (two / n).read_bytes() for n in files(one))


def test_a_whole_checkpoint_comes_and_comes_once(site: Site, tmp_path: Path) -> None:
    seen = download(site, tmp_path / "R1")
    assert same(site.path, tmp_path / "R1")
    assert not list((tmp_path / "R1").glob("*.part"))
    assert (seen[0].done, seen[-1].done) == (0, seen[-1].total)
    assert seen[-1].total == 3 * shard(site.path).stat().st_size
    site.asked.clear()
    download(site, tmp_path / "R1")
    assert [what for what in site.asked if what[0] == "GET"] == [], "nothing is fetched twice"


def test_a_broken_download_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    name = shard(site.path).name
    site.breaks[name] = 4000
    download(site, tmp_path / "R1")
    assert same(site.path, tmp_path / "R1")
    assert [r for method, n, r in site.asked if method == "GET" and n == name] == [None, "bytes=4000-"]


def test_a_mirror_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    site.breaks[shard(site.path).name] = 4000
    site.without_ranges = True
    download(site, tmp_path / "R1")
    assert same(site.path, tmp_path / "R1")


def test_two_states_of_a_file_are_never_mixed(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "TRIES", 1)
    name = shard(site.path).name
    site.breaks[name] = 4000
    with pytest.raises(RunError, match="The same command again goes on where it stopped"):
        download(site, tmp_path / "R1")
    [part] = (tmp_path / "R1").glob(f"{name}.*.part")
    assert part.stat().st_size == 4000
    data = shard(site.path).read_bytes()
    shard(site.path).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    site.version = 2
    site.asked.clear()
    download(site, tmp_path / "R1")
    assert same(site.path, tmp_path / "R1")
    assert ("GET", name, None) in site.asked
    assert not list((tmp_path / "R1").glob("*.part"))


def test_what_the_mirror_lacks_or_refuses_is_named(site: Site, tmp_path: Path) -> None:
    shard(site.path, 2).unlink()
    with pytest.raises(RunError, match=r"model-00002-of-00003.safetensors: the mirror has no such file"):
        download(site, tmp_path / "one")
    site.refused = "config.json"
    asked = len(site.asked)
    with pytest.raises(RunError, match="403"):
        download(site, tmp_path / "two")
    assert len(site.asked) == asked + 1, "a refusal is not asked again"
    with pytest.raises(RunError, match="--from"):
        mirror.download("http://127.0.0.1:9/R1", tmp_path / "two", parallel=1, progress=lambda _: None, pause_s=0.001)


@pytest.mark.parametrize("size", ["\u00b2", "9" * 5000, "-5"])
def test_a_size_that_is_no_number_is_none(site: Site, tmp_path: Path, size: str) -> None:
    site.size = size
    with pytest.raises(RunError, match="does not tell its size"):
        download(site, tmp_path / "out")


def test_an_index_cannot_write_outside(site: Site, tmp_path: Path) -> None:
    (site.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../evil.safetensors"}}))
    with pytest.raises(RunError, match="it names a file outside the checkpoint"):
        download(site, tmp_path / "R1")


def test_a_mirror_directory_is_copied_and_resumed(tmp_path: Path) -> None:
    source, target = write(tmp_path / "mirror"), tmp_path / "R1"
    fetch.fetch(str(source), None, target)
    assert same(source, target)
    inode = shard(target).stat().st_ino
    shard(target, 2).unlink()
    fetch.fetch(str(source), None, target)
    assert same(source, target)
    assert shard(target).stat().st_ino == inode
    with pytest.raises(RunError, match="it is the mirror itself"):
        fetch.fetch(str(source), None, source)
    with pytest.raises(RunError, match="there is no such directory"):
        fetch.fetch(str(tmp_path / "nowhere"), None, target)


def test_of_two_fetches_into_one_directory_one_works_and_the_other_is_told_who(tmp_path: Path) -> None:
    origin, target = write(tmp_path / "mirror", shards=2), tmp_path / "R1"
    at_work, go, told = threading.Event(), threading.Event(), list[str]()
    late: list[Copied] = []

    def first_progress(_: Copied) -> None:
        at_work.set()
        assert go.wait(20)

    def waiting(who: str) -> None:
        told.append(who)
        go.set()

    first = threading.Thread(target=lambda: fetch.fetch(str(origin), None, target, progress=first_progress))
    first.start()
    assert at_work.wait(20)
    # Without a lock it would end here, while the first one still writes.
    second = threading.Thread(
        target=lambda: fetch.fetch(str(origin), None, target, progress=late.append, waiting=waiting)
    )
    second.start()
    for thread in (first, second):
        thread.join(20)
    assert told == [f"process {os.getpid()} on {socket.gethostname()}"]
    assert same(origin, target)
    assert [now.kept for now in late] == [sum(files(origin).values())], "everything was there"


def test_a_fetch_goes_on_where_the_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    origin = write(tmp_path / "mirror")
    fetch.fetch(str(origin), None, tmp_path / "R1")
    assert same(origin, tmp_path / "R1")
    with pytest.raises(RunError, match="on a file system with locks"), lock.exclusive(tmp_path / "x.lock"):
        pass


HELP_1_20 = "usage: modelscope download [-h] [--model MODEL] [--revision R] [--local_dir LOCAL_DIR] [repo_id]"
HELP_1_22 = HELP_1_20 + " [--max-workers N]"
HELP_1_40 = "usage: modelscope download [-h] [--revision R] [--local-dir L] [--max-workers M] [repo_id] [files ...]"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (HELP_1_20, ["--model", "org/R1", "--local_dir", "{to}"]),
        (HELP_1_22, ["--model", "org/R1", "--local_dir", "{to}", "--max-workers", "4"]),
        (HELP_1_40, ["org/R1", "--local-dir", "{to}", "--max-workers", "4"]),
    ],
    ids=["1.20", "1.22", "1.40"],
)
def test_the_client_is_run_as_its_own_help_says(tmp_path: Path, told: str, words: list[str]) -> None:
    says = f"#!/bin/sh\ncase $1 in --version) echo banner; echo modelscope 1.2.3;; *) echo '{told}';; esac\n"
    client = executable(tmp_path / "bin/modelscope", says)
    calls: list[list[str]] = []

    def run(command: list[str]) -> int:
        calls.append(command)
        return len(calls) - 1

    fetch.fetch("modelscope", "org/R1", tmp_path / "R1", client=str(client), revision="v1", run=run)
    placed = [word.format(to=tmp_path / "R1") for word in words]
    assert calls == [[str(client), "download", *placed, "--revision", "v1"]]
    with pytest.raises(RunError, match=r"the client \(modelscope 1.2.3\) on .* exited with code 1"):
        fetch.fetch("modelscope", "org/R1", tmp_path / "R1", client=str(client), run=run)


def test_a_client_that_cannot_run_is_named(tmp_path: Path) -> None:
    client = executable(
        tmp_path / "bin/modelscope", "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'x'\"; exit 1\n"
    )
    with pytest.raises(RunError, match="No module named") as caught:
        fetch.fetch("modelscope", "org/R1", tmp_path / "R1", client=str(client))
    assert caught.value.key == "--client"


def test_without_the_client_the_remedy_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        fetch.fetch("modelscope", "org/R1", tmp_path / "R1", client="no-such-client")
    assert "pip install modelscope" in caught.value.remedy
    assert "--from DIRECTORY_OR_URL" in caught.value.remedy
    with pytest.raises(RunError, match=r"model.source"):
        fetch.fetch("modelscope", None, tmp_path / "R1")


@pytest.mark.parametrize("module", ["{there}/mod.Class", "../mod.Class", "a/b.Class", ".hidden.Class"])
def test_code_that_the_mirror_names_lies_beside_its_config(site: Site, tmp_path: Path, module: str) -> None:
    (tmp_path / "mod.py").write_text("mine")
    there = json.loads((site.path / "config.json").read_text())
    there["auto_map"] = {"AutoModel": module.format(there=tmp_path)}
    (site.path / "config.json").write_text(json.dumps(there))
    with pytest.raises(RunError, match="auto_map"):
        fetch.fetch(site.url, None, tmp_path / "copy")
    assert (tmp_path / "mod.py").read_text() == "mine"


def test_a_small_file_of_the_mirror_has_a_limit(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SMALL_BYTES", 10)
    with pytest.raises(RunError, match="is no file of weights"):
        fetch.fetch(site.url, None, tmp_path / "copy")


@pytest.mark.parametrize("url", ["http://u:secret@127.0.0.1/", "http://", "http://a b/"])
def test_the_url_of_a_mirror_is_one_and_holds_no_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(RunError) as caught:
        fetch.fetch(url, None, tmp_path / "copy")
    assert caught.value.key == "--from"
