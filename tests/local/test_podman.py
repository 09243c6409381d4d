"""The real podman, where this machine has it: the rehearsal engine in an image that is made here, without network."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from test_rehearsal import ROOT, SHORT, finish, the_sweep
from test_rehearsal import start as launch
from test_runtimes import INHERITED, engine, failed, mark_of, until_says

from jobs.allocation.node.engine import Engine
from jobs.allocation.node.staging import prepare
from jobs.core import process
from jobs.core.files import read_json
from jobs.core.rundir import RankDir

IMAGE = "localhost/rehearsal:v1"
FOLDERS = ("dev", "etc", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var")
LINKS = ("bin", "lib", "lib64", "sbin")


def missing() -> str | None:
    """Return why this machine cannot run a container of podman, or None."""
    if os.getuid() != 0:
        return "this is not root, and podman's user namespaces want a set-up of their own"
    lacks = [name for name in ("podman", "runc") if not shutil.which(name)]
    return f"there is no {' and no '.join(lacks)}: python tests/lab/lab.py install" if lacks else None


def image(path: Path) -> Path:
    """Write the files of an image that has nothing but links to the /usr that is mounted into it."""
    with tarfile.open(path, "w") as tar:
        for name in FOLDERS:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(folder)
        for name in LINKS:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        text = b'PRETTY_NAME="an image made here"\n'
        release = tarfile.TarInfo("etc/os-release")
        release.size = len(text)
        tar.addfile(release, io.BytesIO(text))
    return path


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A podman with a store of its own and one image; crun wants to raise limits, which a sandbox forbids."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    engine_lines = 'runtime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    (tmp_path / "containers.conf").write_text(f"[containers]\ndefault_ulimits = []\n[engine]\n{engine_lines}")
    store = f'driver = "vfs"\ngraphroot = "{tmp_path}/store"\nrunroot = "{tmp_path}/run"\n'
    (tmp_path / "storage.conf").write_text(f"[storage]\n{store}")
    monkeypatch.setenv("CONTAINERS_CONF", str(tmp_path / "containers.conf"))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    subprocess.run(["podman", "import", image(tmp_path / "image.tar"), IMAGE], check=True, capture_output=True)
    yield tmp_path
    subprocess.run(["podman", "rm", "--all", "--force", "--time", "0"], check=False, capture_output=True)


def containers() -> list[str]:
    shown = subprocess.run(["podman", "ps", "--all", "--format", "{{.Names}}"], check=True, capture_output=True)
    return shown.stdout.decode().split()


def boxed(tmp_path: Path, **more: object) -> Engine:
    """An engine in a container of the image, with what it needs mounted."""
    given = {"container__image": IMAGE, "container__registry": None, "container__args": {"ulimit": "host"}}
    one = engine(tmp_path, "podman", **(given | more))
    mounts = ("/usr:/usr:ro", *one.config.container.mounts)
    return engine(tmp_path, "podman", **(given | {"container__mounts": mounts} | more))


async def up(tmp_path: Path, **more: object) -> Engine:
    one = boxed(tmp_path, **more)
    await prepare(one, dict(os.environ) | INHERITED)
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    return one


async def test_an_engine_starts_is_reached_joined_and_removed(podman: Path) -> None:
    one = await up(podman, container__shm_size="64m")
    assert one.inspect() == ()
    record = read_json(one.folder.effective)["container"]
    assert record["runtime"] == "podman"
    assert record["proof"]["os"] == "an image made here"
    assert record["proof"]["namespace"] != str(Path("/proc/self/ns/mnt").readlink())
    assert len(record["image_id"]) == 64
    assert one._container is not None
    argv, env = one._container.read_process()
    assert str(podman / "site/engine.py") in argv
    assert not [name for name in env if name.startswith(("SLURM_", "PMI"))]
    inside = one._container.inside
    joined = inside.join(["bash", "-c", "readlink /proc/self/ns/mnt; df -k --output=size /dev/shm"]).commands[-1]
    said = subprocess.run(joined, check=True, capture_output=True, text=True).stdout.split()
    assert (said[0], said[-1]) == (record["proof"]["namespace"], str(64 << 10))
    assert await one.stop() == []
    assert "ends itself" in one.folder.log.read_text(), "SIGTERM reached the engine itself"
    assert containers() == []
    assert mark_of(podman) not in process.tags()


@pytest.mark.parametrize(
    ("words", "reason"),
    [("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exited with code 137"), ("", "exited with code 0")],
    ids=["crash", "exit 0"],
)
async def test_an_engine_that_ends_by_itself_is_noticed(podman: Path, words: str, reason: str) -> None:
    one = boxed(podman)
    (podman / "site/engine.py").write_text(words)
    assert reason in await failed(one)
    assert containers() == []


async def test_what_a_killed_rank_left_is_removed_by_the_next(podman: Path) -> None:
    one = await up(podman)
    assert one._process is not None
    for stray in one._process.strays():  # as the guard of a rank that is gone ends them
        stray.kill()
    await asyncio.wait_for(one.ended(), 30)
    [left] = containers()
    two = boxed(podman)
    two.folder = RankDir(podman / "rank1")
    two.tag = mark_of(podman).replace("/0", "/1")
    await two.start(dict(os.environ) | INHERITED)
    await until_says(two, "up")
    assert left not in containers(), "its rank is dead, and its shell waits on"
    assert await two.stop() == []
    assert containers() == []


async def test_a_name_that_is_taken_is_refused_and_left_alone(podman: Path) -> None:
    taken = [
        "podman",
        "run",
        "--name",
        "theirs",
        "--net=host",
        "--ulimit",
        "host",
        "-v",
        "/usr:/usr:ro",
        "--detach",
        "-it",
        IMAGE,
    ]
    subprocess.run([*taken, "bash"], check=True, capture_output=True)
    reason = await failed(boxed(podman, container__name="theirs"))
    assert "podman has a container of this name already, running, of localhost/rehearsal:v1" in reason
    assert "that this tool did not make" in reason
    assert containers() == ["theirs"]
    subprocess.run(["podman", "rm", "--force", "--time", "0", "theirs"], check=True, capture_output=True)


def test_a_valid_row_comes_out_of_podman(podman: Path) -> None:
    needed = sorted({"/usr", str(ROOT), sys.prefix, sys.base_prefix})
    mounts = ",".join(f'"{path}:{path}:ro"' for path in needed if path == "/usr" or not path.startswith("/usr"))
    words = ["container=podman", f"container.image={IMAGE}", f"container.mounts=[{mounts}]"]
    words += ["container.args={ulimit: host}", f"engine.env.PYTHONPATH={ROOT}", *SHORT]
    finish(launch(podman / "runs", *words), 0)
    sweep = the_sweep(podman / "runs")
    [row] = pd.read_parquet(sweep.table("parquet")).to_dict("records")
    assert row["valid"], row["invalid_reason"]
    [service] = read_json(sweep.plan)["services"]
    for rank in (0, 1):
        folder = sweep.service(service["service"], 1).rank(rank)
        assert read_json(folder.effective)["differences"] == []
        run_line = json.loads(folder.command.read_text())["container"][0]
        assert run_line[:2] == ["podman", "run"]
        assert run_line[run_line.index("--ulimit") + 1] == "host"
    assert containers() == []
