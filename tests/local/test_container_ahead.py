# ruff: noqa: F811
"""What takes long of a container is done before any engine starts, ends with its limit, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest
from container_fakes import DIGEST, URI, Fakes
from core_help import config
from test_runtimes import INHERITED, engine, fakes, mark_of, until_says  # noqa: F401

from jobs.allocation.node import staging
from jobs.allocation.node.engine import Engine
from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.rundir import RankDir

REFERENCE = URI.removeprefix("docker://").replace("#", "/")


async def prepare(one: Engine) -> None:
    await staging.prepare(one, dict(os.environ) | INHERITED)


def roots(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "node/enroot/data").iterdir() if path.is_dir()]


def states(folder: RankDir) -> list[str]:
    return [json.loads(line)["state"] for line in folder.states.read_text().splitlines()]


def test_a_container_has_something_to_prepare() -> None:
    made = config("engine=simulator", "cluster=slurm", "container=enroot", "container.image=/m.sqsh")
    assert staging.wanted(made)


@pytest.mark.parametrize("name", [None, "mine"])
async def test_an_engine_starts_from_the_root_that_was_made_before(
    tmp_path: Path,
    fakes: Fakes,
    name: str | None,
) -> None:
    one = engine(tmp_path, "enroot", container__name=name)
    await prepare(one)
    assert [len(fakes.calls(word)) for word in ("imported",)] == [1]
    assert len(fakes.calls("enroot", "create")) == len(roots(tmp_path)) == 1
    assert not fakes.calls("enroot", "start")
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert len(fakes.calls("enroot", "create")) == 1, "not once more"
    assert not fakes.calls("enroot", "remove")
    assert await one.stop() == []
    assert roots(tmp_path) == []
    assert states(one.folder)[:3] == ["unpacking", "staged", "loading"]


async def test_what_was_unpacked_for_nothing_is_removed(tmp_path: Path, fakes: Fakes) -> None:
    one = engine(tmp_path, "enroot")
    await prepare(one)
    assert roots(tmp_path)
    assert await one.stop() == []
    assert roots(tmp_path) == []


async def test_a_root_of_the_user_is_neither_used_nor_removed(tmp_path: Path, fakes: Fakes) -> None:
    (tmp_path / "node/enroot/data/mine").mkdir(parents=True)
    one = engine(tmp_path, "enroot", container__name="mine")
    with pytest.raises(RunError, match="there is a root of this name already"):
        await prepare(one)
    assert await one.stop() == []
    assert roots(tmp_path) == ["mine"]


@pytest.mark.parametrize("runtime", ["docker", "podman"])
async def test_docker_pulls_before_the_engine_starts(tmp_path: Path, fakes: Fakes, runtime: str) -> None:
    one = engine(tmp_path, runtime)
    await prepare(one)
    assert fakes.calls(runtime, "pull") == [[runtime, "pull", REFERENCE]]
    assert not fakes.calls(runtime, "run")
    await one.stop()
    again = engine(tmp_path, runtime)
    await prepare(again)
    assert len(fakes.calls("pulled")) == 1, "it is there"


async def test_pyxis_gets_one_import_for_all_nodes(tmp_path: Path, fakes: Fakes) -> None:
    one = engine(tmp_path, "pyxis")
    await prepare(one)
    assert len(fakes.calls("imported")) == 1
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    await one.stop()
    [step] = [call for call in fakes.calls("srun") if "--overlap" in call]
    assert f"--container-image={tmp_path}/images/{DIGEST.replace(':', '-')}+{os.uname().machine}.sqsh" in step


async def test_pyxis_alone_imports_by_itself(tmp_path: Path, fakes: Fakes) -> None:
    (fakes.folder / "enroot").unlink()
    one = engine(tmp_path, "pyxis", container__name="fixed")
    await prepare(one)
    assert not (tmp_path / "images").exists()
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert await one.stop() == ["container fixed: there is no enroot on PATH that could remove it"]


@pytest.mark.parametrize(
    ("runtime", "told", "key", "words"),
    [
        ("enroot", {"images": {}}, "container.image", "no such image or tag"),
        ("docker", {"images": {}}, "container.image", "ended with code 1: the registry has no such image or tag"),
        ("pyxis", {"pyxis": False}, "container.runtime", "no --container-image"),
        ("enroot", {"enroot_create": {"say": "FATAL ERROR: File system corruption detected"}}, "container.image",
         "damaged"),
    ],
    ids=["enroot", "docker", "pyxis", "create"],
)  # fmt: skip
async def test_what_fails_is_the_reason_of_this_rank(
    tmp_path: Path,
    fakes: Fakes,
    runtime: str,
    told: dict[str, object],
    key: str,
    words: str,
) -> None:
    fakes.tell(**({"node": "node1"} | told))
    one = engine(tmp_path, runtime)
    with pytest.raises(RunError) as caught:
        await prepare(one)
    assert caught.value.key == key
    assert words in caught.value.reason
    assert await one.stop() == []


async def test_a_runtime_that_is_not_there_ends_the_staging_of_the_weights(tmp_path: Path, fakes: Fakes) -> None:
    (fakes.folder / "enroot").unlink()
    model = tmp_path / "R1"
    model.mkdir()
    one = engine(
        tmp_path, "enroot", engine__checks_model_path=True, model__path=str(model), model__stage_to=f"{tmp_path}/to"
    )
    with pytest.raises(RunError, match="no enroot on PATH"):
        await prepare(one)
    assert mark_of(tmp_path) not in process.tags()


async def test_the_limit_has_its_own_reason(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(enroot_import={"hang": True})
    one = engine(tmp_path, "enroot", limits__image_s=2.0)
    with pytest.raises(RunError) as caught:
        await prepare(one)
    assert (caught.value.key, caught.value.value) == ("limits.image_s", 2.0)
    assert mark_of(tmp_path) not in process.tags()
    assert not list((tmp_path / "images").glob(".*.part"))


async def test_a_stop_ends_an_import(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(enroot_import={"hang": True})
    one = engine(tmp_path, "enroot")
    running = asyncio.create_task(prepare(one))
    end = time.monotonic() + 30
    while not fakes.calls("hangs"):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await one.stop() == []
    assert mark_of(tmp_path) not in process.tags()
    assert list((tmp_path / "node/enroot/temp").iterdir()) == []
