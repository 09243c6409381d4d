"""The real enroot, where this machine has one (Debian has none), with images of a registry here that docker made."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_runtimes import (
    HTPASSWD,
    OS,
    Real,
    check_row,
    docker,
    need,
    need_program,
    registry,
    silent_registry,
    sweep_words,
)
from test_container_by_digest import headless_rank, prepared
from test_container_one_image import is_engine, prepare
from test_real_runtimes import LAUNCHER, up
from test_real_runtimes import refused as refusal
from test_rehearsal import the_sweep
from test_runtimes import engine, failed, mark_of
from users import two_users

from containers import enroot
from jobs.allocation.node import image
from jobs.allocation.node.engine import Engine
from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.files import read_json
from jobs.core.rundir import RankDir

pytestmark = pytest.mark.skipif(not shutil.which("enroot"), reason="there is no enroot")


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """What makes images."""
    need("docker")
    need_program("unsquashfs")
    with docker(tmp_path_factory.mktemp("docker")) as (one, _):
        yield one


@pytest.fixture(autouse=True)
def plain_http(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENROOT_ALLOW_HTTP", "yes")
    monkeypatch.setenv("ENROOT_CONFIG_PATH", str(tmp_path / "conf"))


@pytest.fixture
def hub(maker: Real, tmp_path: Path) -> Iterator[str]:
    """A registry with team/sim:v1, whose ENTRYPOINT ends at once and whose USER is not root."""
    with registry(tmp_path / "registry") as address:
        push(maker, f"{address}/team/sim:v1")
        yield address


def push(maker: Real, tag: str, name: str = OS, **more: Any) -> None:
    changes = ('ENTRYPOINT ["/bin/false"]', "USER 1000:1000", "ENV PATH=/opt/tool/bin:/usr/bin")
    maker.make(tag, name, *changes, programs={"usr/bin/sh": b""}, **more)  # where the node's /usr will be
    maker.push(tag)


def boxed(tmp_path: Path, image: str, rank: int = 0, **more: Any) -> Engine:
    given = {"container__image": image, "container__registry": None} | more
    own = engine(tmp_path, "enroot", **given).config.container.mounts
    mounts = ("/usr:/usr:ro", *own, "tmpfs:/mnt/small:size=8m+mode=1777")
    one = engine(tmp_path, "enroot", **({"container__mounts": mounts} | given))
    if rank:
        one.place = replace(one.place, rank=rank)
        one.folder, one.tag = RankDir(tmp_path / f"rank{rank}"), mark_of(tmp_path)[:-1] + str(rank)
    return one


def roots(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "node/enroot/data").iterdir() if path.is_dir())


async def refused(one: Engine) -> RunError:
    error = await refusal(one)
    assert list((one.folder.path.parent / "node/enroot/temp").iterdir()) == [], "no layers"
    return error


@pytest.mark.parametrize("writable", [True, False])
async def test_a_real_root_starts_is_reached_joined_and_removed(hub: str, tmp_path: Path, writable: bool) -> None:
    one = await up(boxed(tmp_path, f"{hub}/team/sim:v1", container__writable=writable))
    assert one.inspect() == ()
    record = read_json(one.folder.effective)
    assert record["container"]["proof"]["os"] == OS
    assert record["container"]["image_names"]["digest"].startswith("sha256:")
    assert one.container is not None
    _, env = one.container.read_process()
    assert env["PATH"] == "/opt/tool/bin:/usr/bin", "the image's own"
    script = "readlink /proc/self/ns/mnt; id -u; touch /usr/x /opt/x; df -k --output=size /mnt/small"
    start = one.container.inside.join(["bash", "-c", script])
    done = subprocess.run(
        start.commands[-1], env={**os.environ, **start.env}, capture_output=True, text=True, check=True
    )
    said = done.stdout.split()
    assert (said[0], said[1], said[-1]) == (record["container"]["proof"]["namespace"], "0", str(8 << 10))
    assert "'/usr/x': Read-only" in done.stderr
    assert ("'/opt/x': Read-only" in done.stderr) is not writable
    assert await one.stop() == []
    assert "ends itself" in one.folder.log.read_text(), "SIGTERM reached the engine itself"
    assert roots(tmp_path) == []
    assert mark_of(tmp_path) not in process.tags()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"), "killed by SIGSEGV"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "exited with code 3"),
        (("/opt/plain",), "exited with code 126 (the program cannot be executed)"),
        (("/opt/nothing",), "exited with code 127 (there is no such program)"),
    ],
    ids=["crash", "3", "126", "127"],
)
async def test_how_an_engine_in_a_real_root_ended(
    hub: str, tmp_path: Path, command: tuple[str, ...], reason: str
) -> None:
    assert f"engine {reason}" in await failed(boxed(tmp_path, f"{hub}/team/sim:v1", engine__command=command))
    assert roots(tmp_path) == []


async def test_what_a_killed_rank_left_of_a_real_root_is_removed_by_the_next(hub: str, tmp_path: Path) -> None:
    one = await up(boxed(tmp_path, f"{hub}/team/sim:v1"))
    [inner] = [found for found in psutil.process_iter() if is_engine(found, tmp_path)]
    inner.kill()
    assert (await asyncio.wait_for(one.ended(), 60)).startswith("engine killed by SIGKILL")
    [left] = roots(tmp_path)
    two = await up(boxed(tmp_path, f"{hub}/team/sim:v1", rank=1))
    assert left not in roots(tmp_path)
    assert await two.stop() == []
    assert roots(tmp_path) == []


async def test_real_images_by_tag_and_digest_and_a_tag_that_moves_or_goes(
    maker: Real, hub: str, tmp_path: Path
) -> None:
    tag = f"{hub}/team/sim:v1"
    first = await prepare(boxed(tmp_path, tag))
    digest = first["image digest"]
    if not image.of_registry(first):  # before 4.0
        assert "knows no digests" in (await refused(boxed(tmp_path, f"{hub}/team/sim@sha256:{'ab' * 32}"))).reason
        return
    assert await prepare(boxed(tmp_path, f"{hub}/team/sim@{digest}")) == first, "one file"
    assert len(list((tmp_path / "images").glob("*.sqsh"))) == 1
    push(maker, tag, "another one")
    other = str(tmp_path / "node 2's images")
    wanted = {"digest": digest, "content": first["image content"]}
    for gone in (False, True):
        one = boxed(tmp_path, tag, rank=1, container__images_path=f"{other} {gone}")
        if gone:
            shutil.rmtree(tmp_path / "registry/files/docker/registry/v2/repositories/team/sim/_manifests/tags/v1")
        async with headless_rank(one) as line:
            parts = await prepared(line)
            assert parts["image none" if gone else "image digest"] not in (digest, "")
            assert (await prepared(line, **wanted))["image digest"] == digest
    missing = await refused(boxed(tmp_path, tag, container__images_path=f"{other} anew"))
    assert "the registry has no such image or tag" in missing.reason
    assert "Connection refused" not in missing.reason


async def test_a_login_that_the_real_one_lacks_is_named(maker: Real, tmp_path: Path) -> None:
    with registry(tmp_path / "registry", HTPASSWD) as address:
        tag = f"{address}/team/private:v1"
        maker.run("login", "--username", "bob", "--password", "secret", address)
        push(maker, tag)
        (tmp_path / "conf").mkdir()
        for password in (None, "wrong"):
            if password:
                line = f"machine {address.partition(':')[0]} login bob password {password}\n"
                (tmp_path / "conf/.credentials").write_text(line)
            assert "the registry refuse" in (await refused(boxed(tmp_path, tag))).reason
        (tmp_path / "conf/.credentials").write_text(line.replace("wrong", "secret"))
        assert (await prepare(boxed(tmp_path, tag)))["image digest"].startswith("sha256:")


async def test_a_cancel_ends_a_real_import(tmp_path: Path) -> None:
    with silent_registry() as (address, asked):
        running = asyncio.create_task(prepare(boxed(tmp_path, f"{address}/team/slow:v1")))
        assert await asyncio.to_thread(asked.wait, 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert mark_of(tmp_path) not in process.tags()


@pytest.mark.parametrize("full", ["temp", "cache", "data"])
async def test_a_disk_that_the_real_one_fills_is_named(maker: Real, tmp_path: Path, full: str) -> None:
    with registry(tmp_path / "registry") as address, contextlib.ExitStack() as stack:
        push(maker, f"{address}/team/large:v1", extra_bytes=6 << 20)
        place = tmp_path / "node/enroot" / full
        enroot.Local(tmp_path / "node").make()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", place], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", place], check=True)
        one = boxed(tmp_path, f"{address}/team/large:v1")
        reason = await failed(one) if full == "data" else (await refused(one)).reason
        assert "the disk is full" in reason
        assert full == "cache" or roots(tmp_path) == []


@pytest.mark.parametrize("more", [(), ("container.writable=false", "container.remap_root=false")], ids=["root", "user"])
def test_the_real_one_of_an_ordinary_user_needs_no_root(hub: str, more: tuple[str, ...]) -> None:
    with two_users() as host:
        user, runs, node = host.victim, host.victim.home / "runs", host.victim.home / "node"
        user.need_namespaces()
        words = sweep_words("enroot", f"{hub}/team/sim:v1")
        said = user.ask(*LAUNCHER, f"results.root={runs}", f"container.local_dir={node}", *words, *more)
        if "lack their capabilities" in said.stdout + said.stderr:
            pytest.skip("this enroot has no capabilities (its package +caps): only root unpacks layers with it")
        assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-1000:]
        row, inside = check_row(the_sweep(runs), "enroot")
        assert row["image_digest"].startswith("sha256:")
        assert [one["proof"]["os"] for one in inside] == [OS] * 2
        assert the_sweep(runs).path.stat().st_uid == user.uid
        assert [path for path in (node / "enroot/data").iterdir() if path.is_dir()] == []
