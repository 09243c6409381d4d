# ruff: noqa: F811
"""Images and nodes that are not as one expects: another user, a removal that fails, a pull that was killed."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from container_fakes import Fakes
from test_runtimes import INHERITED, engine, failed, fakes, until_says  # noqa: F401

from containers import imports
from containers.base import Local
from jobs.allocation.node import staging
from jobs.core.files import read_json
from jobs.core.registry import RUNTIMES


@pytest.mark.parametrize("runtime", ["docker", "podman"])
async def test_an_image_of_another_user_is_started_as_root(tmp_path: Path, fakes: Fakes, runtime: str) -> None:
    fakes.tell(node="node1", user="1000:1000")
    one = engine(tmp_path, runtime)
    await staging.prepare(one, dict(os.environ) | INHERITED)
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    line = read_json(one.folder.command)["container"][0]
    assert line[line.index("--user") + 1] == "0:0"
    assert await one.stop() == []


@pytest.mark.parametrize("runtime", ["docker", "podman"])
async def test_what_could_not_be_removed_is_not_called_removed(
    tmp_path: Path, fakes: Fakes, runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = engine(tmp_path, runtime)
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    for stray in one._process.strays() if one._process else ():
        stray.kill()
    await one.ended()
    kind = RUNTIMES.get(runtime)
    fakes.tell(node="node1", **{f"{runtime}_rm": {"say": "Error: device or resource busy"}})
    told: list[str] = []
    assert kind.sweep(Local(tmp_path / "node"), os.environ, told.append) == []
    assert "is still there" in told[-1]
    fakes.tell(node="node1")
    assert len(kind.sweep(Local(tmp_path / "node"), os.environ, told.append)) == 1


@pytest.mark.parametrize("runtime", ["enroot", "pyxis", "apptainer"])
async def test_what_a_killed_import_left_is_removed_by_the_next_sweep(
    tmp_path: Path, fakes: Fakes, runtime: str
) -> None:
    """The layers of an image in full size, under each runtime that unpacks some."""
    local = Local(tmp_path / "node")
    local.make()
    gone = int(Path("/proc/sys/kernel/pid_max").read_text())  # all numbers are below it
    with ThreadPoolExecutor(1) as pool, imports.scratch(local.temp) as at_work:
        os.utime(at_work, (0, 0))  # the clock was set since, or is another one
        own = at_work.with_suffix("")
        thread = pool.submit(threading.get_native_id).result()  # a number in use, and no process's
        dead = [local.temp / f"{own.name}.{number}-7" for number in (gone, thread, os.getpid())]
        other = local.temp / "serving-sweep.import.another-node.1-7"
        for path in (*dead, other):
            path.mkdir()
        swept = RUNTIMES.get(runtime).sweep(local, os.environ, lambda _: None)
        assert sorted(swept) == sorted(path.name for path in dead)
        assert set(local.temp.iterdir()) == {at_work, other}


async def test_a_pull_of_apptainer_leaves_nothing_unpacked(tmp_path: Path, fakes: Fakes) -> None:
    one = engine(tmp_path, "apptainer")
    await staging.prepare(one, dict(os.environ) | INHERITED)
    assert list((tmp_path / "node/enroot/temp").iterdir()) == []


async def test_a_login_that_apptainer_lacks_is_said_with_its_own_exit_code(tmp_path: Path, fakes: Fakes) -> None:
    words = "FATAL:   While making image from oci registry: unauthorized: authentication required"
    fakes.tell(node="node1", apptainer_pull={"say": words, "code": 255})
    reason = await failed(engine(tmp_path, "apptainer"))
    assert "the registry wants a login" in reason
