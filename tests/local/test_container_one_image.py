# ruff: noqa: F811
"""One image for all ranks, ends of containers that are read right, and questions whose answer failed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from container_fakes import DIGEST, URI, Fakes
from test_runtimes import INHERITED, conf, engine, failed, fakes, mark_of, until_says  # noqa: F401

from jobs.allocation.node import image, staging
from jobs.allocation.node.engine import Engine
from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.files import read_json
from jobs.core.registry import RUNTIMES

EVERY = tuple(RUNTIMES.own)
OTHER = "sha256:" + "cd" * 32
HOST = socket.gethostname()


async def prepare(one: Engine) -> staging.Parts:
    return await staging.prepare(one, dict(os.environ) | INHERITED)


@pytest.mark.parametrize("runtime", EVERY)
async def test_each_rank_says_which_image_it_has(tmp_path: Path, fakes: Fakes, runtime: str) -> None:
    fakes.tell(node="node1")
    first = await prepare(engine(tmp_path, runtime))
    known = runtime != "apptainer"  # it asks no registry: the file's content is its digest
    assert first["image digest"] == (DIGEST if known else first["image content"].replace("", "sha256:", 1))
    assert staging.difference({0: first, 1: await prepare(engine(tmp_path, runtime))}) is None
    # Node 2 has nothing yet, and the tag has moved.
    fakes.tell(node="node1", images={URI: OTHER})
    (fakes.folder / "daemon/images.json").unlink(missing_ok=True)
    second = await prepare(engine(tmp_path, runtime, container__images_path=str(tmp_path / "other images")))
    found = staging.difference({0: first, 1: second})
    assert found is not None
    assert found[0] == 1
    assert "its container image is not that of rank 0" in found[1]
    assert f"digest {second['image digest']} ({first['image digest']} there)" in found[1]
    assert second["image digest"] == OTHER or not known
    assert "container.image=NAME@sha256:" in found[1]


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ({"id": "a", "digest": "x"}, {"id": "b", "digest": "x"}, True),  # two ways of one daemon to keep images
        ({"id": "a", "digest": "x"}, {"id": "a"}, True),  # loaded from a file there
        ({"digest": "x", "content": "1"}, {"digest": "x", "content": "2"}, True),  # each has made its own file
        ({"id": "a", "digest": "x"}, {"id": "b", "digest": "y"}, False),
        ({"content": "1"}, {"content": "2"}, False),
        ({"id": "a"}, {}, True),  # not to be told: a warning
    ],
)
def test_images_are_one_where_they_agree_in_one_name(one: dict[str, str], two: dict[str, str], same: bool) -> None:
    first, other = ({image.PART + name: value for name, value in names.items()} for names in (one, two))
    assert (image.difference(first, other | {"sizes": "7"}) is None) is same


async def test_two_image_files_of_one_name_on_two_nodes_are_told_apart_without_reading_them(
    tmp_path: Path, fakes: Fakes
) -> None:
    parts = []
    for node, name in (("one", "a"), ("copy", "a"), ("two", "b")):
        (tmp_path / node).mkdir()
        file = fakes.image(tmp_path / node / "m.sqsh", name)
        parts.append(await prepare(engine(tmp_path, "pyxis", container__image=str(file))))
    assert staging.difference({0: parts[0], 1: parts[1]}) is None, "another place is no other image"
    assert staging.difference({0: parts[0], 1: parts[2]}) is not None


async def test_a_runtime_that_brings_its_image_itself_is_a_warning(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(node="node1")
    (fakes.folder / "unsquashfs").unlink()
    one = engine(tmp_path, "pyxis")
    parts = await prepare(one)
    assert staging.difference({0: parts, 1: parts}) is None
    assert [line[:7] for line in staging.unknown_images(one.config, {0: parts, 1: parts})] == ["rank 0:", "rank 1:"]
    assert staging.unknown_images(one.config, {0: parts}) == []


@pytest.mark.parametrize("runtime", ["docker", "podman"])
async def test_a_tag_that_moves_before_the_start_ends_the_rank_before_its_engine(
    tmp_path: Path, fakes: Fakes, runtime: str
) -> None:
    one = engine(tmp_path, runtime)
    await prepare(one)
    fakes.tell(node="node1", images={URI: OTHER})
    reason = await failed(one)
    assert "container.image" in reason
    assert f"on {HOST} it was" in reason
    assert "when this service was prepared" in reason
    assert "up" not in one.folder.log.read_text().split()


async def test_pyxis_starts_the_file_that_was_prepared_whatever_the_store_has_by_then(
    tmp_path: Path, fakes: Fakes
) -> None:
    one = engine(tmp_path, "pyxis")
    await prepare(one)
    for record in (tmp_path / "images").glob("*.json"):
        record.unlink()  # as after `image import --refresh` of another image
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    one.inspect()
    assert DIGEST in read_json(one.folder.effective)["container"]["image_names"].values()
    assert DIGEST.replace(":", "-") in read_json(one.folder.effective)["container"]["image"]
    assert await one.stop() == []


@pytest.mark.parametrize("runtime", EVERY)
async def test_an_image_with_an_entrypoint_is_started_without_it(tmp_path: Path, fakes: Fakes, runtime: str) -> None:
    fakes.tell(node="node1", entrypoint=["/bin/false"])
    one = engine(tmp_path, runtime)
    await prepare(one)
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    if runtime in ("docker", "podman"):
        [run] = fakes.calls(runtime, "run")
        assert run[-4:-1] == ["--entrypoint", "bash", "-it"]
        shown = read_json(one.folder.command)["container"][0]
        assert shown == run, "what is recorded is what was run"
    assert await one.stop() == []


async def test_a_container_that_ends_at_once_says_why(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(node="node1", entrypoint=["/bin/false"])
    reason = await failed(engine(tmp_path, "docker", container__args={"entrypoint": "/bin/false"}))
    assert f"on {HOST} its shell ended at once" in reason
    assert "/bin/false: it said no" in reason
    assert not fakes.calls("docker", "cp")


@pytest.mark.parametrize("runtime", EVERY)
async def test_an_engine_that_is_killed_is_said_to_be_killed_behind_every_starter(
    tmp_path: Path, fakes: Fakes, runtime: str
) -> None:
    fakes.tell(node="node1")
    one = engine(tmp_path, runtime)
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    [inner] = [p for p in psutil.process_iter() if is_engine(p, tmp_path)]
    inner.kill()
    reason = await asyncio.wait_for(one.ended(), 60)
    assert reason.startswith("engine killed by SIGKILL")
    assert await one.stop(1) == []


def is_engine(one: psutil.Process, tmp_path: Path) -> bool:
    try:
        return one.status() != psutil.STATUS_ZOMBIE and one.cmdline()[1:3] == ["-SE", str(tmp_path / "site/engine.py")]
    except psutil.Error:
        return False


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("enroot", "engine exited with code 127 (there is no such program)"),
        ("podman", "executable file not found"),
        ("docker", "the image has no such program"),
        ("pyxis", "execve(): bash"),
        ("apptainer", "executable file not found"),
    ],
)
async def test_an_image_without_a_shell_says_so(tmp_path: Path, fakes: Fakes, runtime: str, words: str) -> None:
    fakes.tell(node="node1", lacks=["bash"])
    assert words in await failed(engine(tmp_path, runtime))


@pytest.mark.parametrize(
    ("runtime", "told", "words"),
    [
        ("docker", {"docker_ps": {"say": "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."}},
         "its daemon does not answer"),
        ("docker", {"docker_inspect": {"say": "Error response from daemon: odd"}}, "Error response from daemon: odd"),
        ("podman", {"podman_ps": {"say": "Error: database is locked", "code": 125}}, "database is locked"),
        ("pyxis", {"enroot_list": {"say": "ls: cannot access '/nfs': Stale file handle"}}, "Stale file handle"),
        ("enroot", {"private": True}, "the registry refused the login, or wants one"),
        ("apptainer", {"apptainer_pull": {"say": "FATAL:   While pulling: unauthorized: authentication required"}},
         "the registry wants a login"),
        ("apptainer", {"apptainer_pull": {"cut": 100}}, "bytes of"),
    ],
    ids=["docker ps", "docker inspect", "podman ps", "pyxis list", "enroot login", "apptainer login", "a cut .sif"],
)  # fmt: skip
async def test_a_question_that_failed_is_an_error_and_no_answer(
    tmp_path: Path, fakes: Fakes, runtime: str, told: dict[str, Any], words: str
) -> None:
    fakes.tell(node="node1", conf=conf(tmp_path), **told)
    with pytest.raises(RunError) as caught:
        await prepare(engine(tmp_path, runtime, container__name="fixed" if runtime == "pyxis" else None))
    assert words in caught.value.reason
    assert f"on {HOST}" in caught.value.reason or "cut" in str(told), "the node is named"


async def test_what_is_left_of_a_container_is_not_nothing_where_the_daemon_does_not_say(
    tmp_path: Path, fakes: Fakes
) -> None:
    one = engine(tmp_path, "docker")
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    fakes.tell(node="node1", docker_ps={"say": "Cannot connect to the Docker daemon"})
    assert any("its daemon does not answer" in left for left in await one.stop(1))
    fakes.tell(node="node1")
    subprocess.run(["docker", "rm", "--force", str(one.container and one.container.order.name)], check=True)


async def test_a_name_is_taken_before_any_engine_starts(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(node="node1", conf=conf(tmp_path))
    (tmp_path / "site/DATA/pyxis_fixed").mkdir(parents=True)
    one = engine(tmp_path, "pyxis", container__name="fixed")
    with pytest.raises(RunError, match="there is a container of this name already"):
        await prepare(one)
    assert await one.stop() == []
    assert not fakes.calls("enroot", "start"), "nothing is run in what is somebody else's"
    assert (tmp_path / "site/DATA/pyxis_fixed").is_dir()


async def test_a_named_root_of_pyxis_whose_rank_was_killed_is_removed_by_the_next(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(node="node1", conf=conf(tmp_path))
    one = engine(tmp_path, "pyxis", container__name="fixed")
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert one._process is not None
    while strays := one._process.strays():  # as the guard of a rank that is gone ends them
        for stray in strays:
            stray.kill()
        await asyncio.sleep(0.05)
    root = tmp_path / "site/DATA/pyxis_fixed"
    assert root.is_dir()
    claimed = [path.name for path in (tmp_path / "node/claims").iterdir()]
    assert claimed == ["node1.fixed"], "another node that shares the directory keeps its own"
    two = engine(tmp_path, "pyxis", container__name="fixed")
    two.tag = mark_of(tmp_path) + "1"
    await prepare(two)
    assert not root.exists()
    await two.start(dict(os.environ) | INHERITED)
    await until_says(two, "up")
    assert await two.stop() == []
    assert not root.exists()
    assert two.tag not in process.tags()


async def test_a_root_that_another_made_under_the_same_name_since_is_left_alone(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(node="node1", conf=conf(tmp_path))
    one = engine(tmp_path, "pyxis", container__name="fixed")
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert await one.stop() == []
    claims = tmp_path / "node/claims"
    assert list(claims.iterdir()) == []
    (claims / "node1.fixed").write_text("6/dead/0\n")
    file = fakes.image(tmp_path / "x.sqsh")
    env = dict(os.environ) | {f"ENROOT_{name}_PATH": path for name, path in conf(tmp_path).items()}
    subprocess.run(["enroot", "create", "-n", "pyxis_fixed", str(file)], env=env, check=True)
    with pytest.raises(RunError, match="there is a container of this name already"):
        await prepare(engine(tmp_path, "pyxis", container__name="fixed"))
    assert (tmp_path / "site/DATA/pyxis_fixed/usr").is_dir()


@pytest.mark.parametrize("runtime", EVERY)
async def test_the_time_before_an_engine_is_inside_is_told_apart_from_its_load(
    tmp_path: Path, fakes: Fakes, runtime: str
) -> None:
    fakes.tell(node="node1", srun={"slow_s": 1.0})
    one = engine(tmp_path, runtime)
    await prepare(one)
    assert one.container_s() == 0.0, "it was not started"
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    took = one.container_s()
    assert took > (1.0 if runtime == "pyxis" else 0.0)
    assert await one.stop() == []


def test_a_node_that_reads_at_less_than_half_of_the_others_rate_is_named() -> None:
    parts = {0: {staging.RATE: "1.2"}, 1: {staging.RATE: "0.5"}, 2: {"sizes": "7"}, 3: {staging.RATE: "0.7"}}
    rates = staging.rates(parts)
    assert rates == {0: 1.2, 1: 0.5, 3: 0.7}
    [warning] = staging.slow("staging", rates)
    assert warning.startswith("rank 1: its node has read the checkpoint for staging at 0.50 GB/s, another one at 1.20")
    assert staging.slow("the load", {}) == []
    assert staging.difference({0: parts[0], 1: parts[1]}) is None, "a rate is no part that has to agree"


def test_the_numbers_of_wrappers_are_signals() -> None:
    shown = {code: str(process.Ended(code)) for code in (-9, 137, 143, 126, 127, 1, 125, 255)}
    assert shown[-9] == "killed by SIGKILL"
    assert shown[137] == "killed by SIGKILL (exit code 137)"
    assert shown[143].startswith("killed by SIGTERM")
    assert (shown[1], shown[125]) == ("exited with code 1", "exited with code 125")
    assert "cannot be executed" in shown[126]
    assert "there is no such program" in shown[127]
    assert shown[255] == "exited with code 255"
    assert signal.SIGKILL == 9
