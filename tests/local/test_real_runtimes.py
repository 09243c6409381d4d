"""The conformance suite of container runtimes on the real programs: a docker and a podman with stores of their own.

Images are made here and have nothing but links to the node's /usr, so that no network is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_runtimes import (
    GROUP,
    HTPASSWD,
    OS,
    Real,
    check_row,
    clear,
    docker,
    image_file,
    need,
    podman,
    registry,
    silent_registry,
    started,
    sweep_words,
)
from test_container_one_image import is_engine, prepare
from test_rehearsal import ROOT, finish, the_sweep
from test_rehearsal import start as launch
from test_runtimes import INHERITED, LIMIT_S, engine, failed, mark_of, until_says
from users import lacking, two_users, working_in

from containers.docker import KILL
from jobs.allocation.node import staging
from jobs.allocation.node.engine import Engine
from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.files import read_json
from jobs.core.rundir import RankDir

IMAGE = "localhost/rehearsal:v1"
HOST = socket.gethostname()
OTHER = "sha256:" + "cd" * 32
REAL = ("docker", "podman")
LAUNCHER = (sys.executable, str(ROOT / "launch.py"), "-m", "engine=simulator")


@pytest.fixture(scope="module", params=REAL)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with started(request.param, IMAGE, tmp_path_factory) as one:
        yield one


@pytest.fixture
def real(runtime: Real, monkeypatch: pytest.MonkeyPatch) -> Iterator[Real]:
    for name, value in runtime.env.items():
        monkeypatch.setenv(name, value)
    yield runtime
    runtime.clear()


def boxed(
    real: Real, tmp_path: Path, image: str = IMAGE, rank: int = 0, further: tuple[str, ...] = (), **more: Any
) -> Engine:
    """An engine in a container of an image, with what it needs mounted."""
    limits = {"ulimit": "host"} if real.program == "podman" else {}
    given = {"container__image": image, "container__registry": None, "container__args": limits} | more
    one = engine(tmp_path, real.program, **given)
    mounts = ("/usr:/usr:ro", *one.config.container.mounts, *further) if "container__mounts" not in more else ()
    one = engine(tmp_path, real.program, **(given | ({"container__mounts": mounts} if mounts else {})))
    if rank:
        one.folder, one.tag = RankDir(tmp_path / f"rank{rank}"), mark_of(tmp_path)[:-1] + str(rank)
    return one


async def up(one: Engine) -> Engine:
    await prepare(one)
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    return one


async def refused(one: Engine) -> RunError:
    with pytest.raises(RunError) as caught:
        await prepare(one)
    assert await one.stop() == []
    return caught.value


@pytest.mark.parametrize("writable", [True, False])
async def test_an_engine_starts_is_reached_joined_and_removed(real: Real, tmp_path: Path, writable: bool) -> None:
    mounts = ("tmpfs:/mnt/small:size=8m+mode=1777", f"{tmp_path}/site:/mnt/site:ro+rprivate")
    one = await up(
        boxed(real, tmp_path, further=mounts, container__shm_size="64m", container__writable=writable),
    )
    assert one.inspect() == ()
    record = read_json(one.folder.effective)["container"]
    assert (record["runtime"], record["proof"]["os"]) == (real.program, OS)
    assert record["proof"]["namespace"] != str(Path("/proc/self/ns/mnt").readlink())
    assert record["image_names"]["id"] == record["image_id"]
    assert one.container is not None
    argv, env = one.container.read_process()
    assert str(tmp_path / "site/engine.py") in argv
    assert not [name for name in env if name.startswith(("SLURM_", "PMI"))]
    inside = one.container.inside
    script = (
        "readlink /proc/self/ns/mnt; id -u; touch /usr/x /opt/x /mnt/site/x; df -k --output=size /mnt/small /dev/shm"
    )
    joined = inside.join(["bash", "-c", script]).commands[-1]
    done = subprocess.run(joined, check=True, capture_output=True, text=True)
    said = done.stdout.split()
    assert (said[0], said[1], *said[-2:]) == (record["proof"]["namespace"], "0", str(8 << 10), str(64 << 10))
    assert "'/mnt/site/x': Read-only" in done.stderr
    assert "'/usr/x': Read-only" in done.stderr
    assert ("'/opt/x': Read-only" in done.stderr) is not writable
    assert await one.stop() == []
    assert "ends itself" in one.folder.log.read_text(), "SIGTERM reached the engine itself"
    assert real.containers() == []
    assert mark_of(tmp_path) not in process.tags()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"), "killed by SIGSEGV"),
        ((sys.executable, "-c", ""), "exited with code 0"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "exited with code 3"),
        (("/opt/plain",), "exited with code 126 (the program cannot be executed)"),
        (("/opt/nothing",), "exited with code 127 (there is no such program)"),
    ],
    ids=["crash", "0", "3", "126", "127"],
)
async def test_how_an_engine_ended_comes_through(
    real: Real, tmp_path: Path, command: tuple[str, ...], reason: str
) -> None:
    assert f"engine {reason}" in await failed(boxed(real, tmp_path, engine__command=command))
    assert real.containers() == []


async def test_an_engine_that_is_killed_and_a_container_that_is_killed(real: Real, tmp_path: Path) -> None:
    one = await up(boxed(real, tmp_path))
    [inner] = [found for found in psutil.process_iter() if is_engine(found, tmp_path)]
    inner.kill()
    assert (await asyncio.wait_for(one.ended(), LIMIT_S)).startswith("engine killed by SIGKILL")
    assert await one.stop(1) == []
    two = await up(boxed(real, tmp_path, rank=1))
    real.run("kill", *real.containers())
    assert "killed by SIGKILL" in await asyncio.wait_for(two.ended(), LIMIT_S)
    assert await two.stop(1) == []
    assert real.containers() == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("rm", "--force"), "its container was removed from outside"),
        (("stop", "--time", "1"), "its container has ended: exited with code"),
    ],
)
async def test_a_container_that_somebody_ends_is_named(
    real: Real, tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    one = await up(boxed(real, tmp_path))
    real.run(*words, *real.containers())
    assert f"({why}" in await asyncio.wait_for(one.ended(), LIMIT_S)
    assert await one.stop(1) == []
    assert real.containers() == []


GREEDY = "all = [bytearray(b'x' * (1 << 20)) for _ in range(500)]"
WORKER = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode and 1)"


@pytest.mark.parametrize(
    ("command", "how"),
    [((GREEDY,), "killed by SIGKILL (exit code 137)"), ((WORKER, GREEDY), "exited with code 1")],
    ids=["engine", "worker"],
)
async def test_memory_that_ran_out_is_named(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], how: str
) -> None:
    if not Path("/sys/fs/cgroup/memory").exists() and not Path("/sys/fs/cgroup/memory.events").exists():
        pytest.skip("nothing limits memory here")
    limits = {"memory": "100m"} | ({"ulimit": "host"} if real.program == "podman" else {})
    one = boxed(real, tmp_path, container__args=limits, engine__command=(sys.executable, "-c", *command))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert (await failed(one)).startswith(f"engine {how} (memory cgroup out of memory: the kernel killed 1 meanwhile)")
    assert real.containers() == []
    assert not (tmp_path / "here/oom").exists(), "the tool's working directory is the user's"


async def test_a_client_is_killed_inside_with_what_it_left_in_other_sessions(real: Real, tmp_path: Path) -> None:
    one = await up(boxed(real, tmp_path))
    [name] = real.containers()
    mark = f"{process.TAG}=a-client"
    script = f"export {mark}; setsid sleep 600 & echo $$; exec sleep 600"
    argv = [real.program, "exec", name, "bash", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        leader = client.stdout.readline().strip()
        assert real.run("exec", name, "bash", "-c", KILL, "bash", leader, mark) == ""
    assert "sleep" not in real.run("exec", name, "bash", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert one._process is not None
    assert one._process.ended is None, "the engine is another one"
    assert await one.stop() == []


async def test_what_a_killed_rank_left_is_removed_by_the_next(real: Real, tmp_path: Path) -> None:
    one = await up(boxed(real, tmp_path))
    assert one._process is not None
    for stray in one._process.strays():  # as the guard of a rank that is gone ends them
        with contextlib.suppress(psutil.Error):
            stray.kill()
    await asyncio.wait_for(one.ended(), 30)
    [left] = real.containers()
    two = await up(boxed(real, tmp_path, rank=1))
    assert left not in real.containers(), "its rank is dead, and its shell waits on"
    assert await two.stop() == []
    assert real.containers() == []


async def test_a_name_that_is_taken_is_refused_and_left_alone(real: Real, tmp_path: Path) -> None:
    limits = ["--ulimit", "host"] if real.program == "podman" else []
    taken = ["run", "--name", "theirs", "--net=host", *limits, "-v", "/usr:/usr:ro", "--detach", "-it", IMAGE, "bash"]
    real.run(*taken)
    reason = await failed(boxed(real, tmp_path, container__name="theirs"))
    assert f"{real.program} has a container of this name already, running, of {IMAGE}" in reason
    assert "that this tool did not make" in reason
    assert real.containers() == ["theirs"]


async def test_an_image_with_an_entrypoint_and_another_user_is_started_without_them(real: Real, tmp_path: Path) -> None:
    changes = ('ENTRYPOINT ["/bin/false"]', "USER 1000:1000", "WORKDIR /opt", "VOLUME /data", "ENV HCCL_BUFFSIZE=999")
    real.make("localhost/entry:v1", OS, *changes)
    one = await up(boxed(real, tmp_path, "localhost/entry:v1"))
    assert one.inspect() == ()
    line = read_json(one.folder.command)["container"][0]
    assert line[-4:] == ["--entrypoint", "bash", "-it", "localhost/entry:v1"]
    assert line[line.index("--user") + 1] == "0:0"
    assert len(real.run("volume", "ls", "--quiet").split()) == 1
    assert await one.stop() == []
    assert real.run("volume", "ls", "--quiet") == ""


async def test_a_container_that_somebody_paused_is_ended_too(real: Real, tmp_path: Path) -> None:
    one = await up(boxed(real, tmp_path))
    for _ in range(20):  # the kernel freezes no container while one of its processes is being started (EBUSY)
        real.run("pause", *real.containers(), check=False)
        if "paused" in real.run("container", "inspect", "--format", "{{.State.Status}}", *real.containers()):
            break
    else:
        pytest.fail("it is not paused")
    assert await one.stop() == []
    assert "ends itself" in one.folder.log.read_text()
    assert real.containers() == []


async def test_an_image_for_another_processor_is_named(real: Real, tmp_path: Path) -> None:
    program = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xf7\0" + bytes(100)  # of BPF: no machine is one
    real.make("localhost/other:v1", OS, "ENV PATH=/opt", programs={"opt/bash": program})
    site = (f"{tmp_path}/site:{tmp_path}/site:ro",)
    reason = await failed(boxed(real, tmp_path, "localhost/other:v1", container__mounts=site))
    assert "exec format error" in reason
    assert f"Take the image for {platform.machine()}." in reason
    assert real.containers() == []


async def test_an_image_without_a_shell_is_named(real: Real, tmp_path: Path) -> None:
    site = (f"{tmp_path}/site:{tmp_path}/site:ro",)
    reason = await failed(boxed(real, tmp_path, container__mounts=site))
    assert f"`{real.program} run` on {HOST} ended with code 127: the image has no such program" in reason
    assert real.containers() == [], "one that was made and not started is removed too"


async def test_images_by_tag_and_digest_and_a_tag_that_moves(real: Real, tmp_path: Path) -> None:
    with registry(tmp_path / "registry") as address:
        real.trust(address)
        tag = f"{address}/team/sim:v1"
        real.make(tag)
        real.push(tag)
        real.run("rmi", tag)
        first = await prepare(boxed(real, tmp_path, tag))  # it pulls
        digest = first["image digest"]
        named = await prepare(boxed(real, tmp_path, f"{address}/team/sim@{digest}"))
        assert staging.difference({0: first, 1: named}) is None
        # The tag moves; node 2 has the image not yet.
        real.make(tag, "another one")
        real.push(tag)
        real.run("rmi", "--force", tag)
        one = boxed(real, tmp_path, tag)
        second = await prepare(one)
        found = staging.difference({0: first, 1: second})
        assert found is not None
        assert f"digest {second['image digest']} ({digest} there)" in found[1]
        other = boxed(real, tmp_path, tag, rank=1)
        assert await prepare(other) == second
        taken = await other.unpack_that_of_rank_0(first, dict(os.environ) | INHERITED)
        assert staging.difference({0: first, 1: taken}) is None
        await other.start(dict(os.environ) | INHERITED)
        await until_says(other, "up")
        assert other.inspect() == ()
        assert read_json(other.folder.effective)["container"]["image_id"] == first["image id"]
        assert await other.stop() == []
        with pytest.raises(RunError, match=rf"digest {digest} \({OTHER} there\), and that one does not come"):
            await other.unpack_that_of_rank_0({"image digest": OTHER}, dict(os.environ) | INHERITED)
        # It goes, before the node of rank 1 has pulled anything.
        real.run("rmi", "--force", second["image id"])
        shutil.rmtree(tmp_path / "registry/files/docker/registry/v2/repositories/team/sim/_manifests/tags/v1")
        late = boxed(real, tmp_path, tag, rank=1)
        late.place = replace(late.place, rank=1)
        assert "no such image or tag" in (await prepare(late))["image none"]
        again = await late.unpack_that_of_rank_0(second, dict(os.environ) | INHERITED)
        assert staging.difference({0: second, 1: again}) is None
        # And once more, between the preparation and the start.
        real.make(tag, "a third one")
        reason = await failed(one)
        assert f"on {HOST} it was {second['image id']} when this service was prepared" in reason
        assert real.containers() == []
        missing = await refused(boxed(real, tmp_path, f"{address}/team/none:v1"))
        assert "the registry has no such image or tag" in missing.reason
    gone = await refused(boxed(real, tmp_path, f"{address}/team/sim:v9"))
    assert "nothing answers at the registry's address" in gone.reason


async def test_a_login_that_is_missing_is_named(real: Real, tmp_path: Path) -> None:
    with registry(tmp_path / "registry", HTPASSWD) as address:
        real.trust(address)
        tag = f"{address}/team/private:v1"
        error = await refused(boxed(real, tmp_path, tag))
        assert "the registry wants a login" in error.reason
        assert f"`{real.program} login REGISTRY`" in error.remedy
        words = ["login", *(["--tls-verify=false"] if real.program == "podman" else [])]
        real.run(*words, "--username", "bob", "--password", "secret", address)
        real.make(tag)
        real.push(tag)
        real.run("rmi", tag)
        assert (await prepare(boxed(real, tmp_path, tag)))["image digest"].startswith("sha256:")


async def test_a_cancel_ends_a_pull(real: Real, tmp_path: Path) -> None:
    with silent_registry() as (address, asked):
        real.trust(address)
        one = boxed(real, tmp_path, f"{address}/team/slow:v1")
        running = asyncio.create_task(prepare(one))
        assert await asyncio.to_thread(asked.wait, 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await one.stop() == []
        assert mark_of(tmp_path) not in process.tags()
        assert process.with_arguments([real.program, "pull", f"{address}/team/slow:v1"]) == []


async def test_a_full_disk_is_named(real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(registry(tmp_path / "registry"))
        real.trust(address)
        tag = f"{address}/team/large:v1"
        real.make(tag, extra_bytes=24 << 20)
        real.push(tag)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", small], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", small], check=True)
        where = (tmp_path / "other", small)
        if real.program == "docker":
            other = stack.enter_context(docker(*where))[0]
        else:
            other = stack.enter_context(podman(*where))
            other.trust(address)
        for name, value in other.env.items():
            monkeypatch.setenv(name, value)
        error = await refused(boxed(other, tmp_path, tag))
        assert f"`{real.program} pull` on {HOST}" in error.reason
        assert "the disk of its images is full" in error.reason


async def test_a_daemon_that_is_killed_is_named_and_what_is_left_is_not_called_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("docker")
    with docker(tmp_path / "docker") as (one, daemon):
        for name, value in one.env.items():
            monkeypatch.setenv(name, value)
        one.make(IMAGE)
        running = await up(boxed(one, tmp_path))
        daemon.send_signal(signal.SIGKILL)
        reason = await asyncio.wait_for(running.ended(), LIMIT_S)
        assert "engine" in reason
        left = await running.stop(1)
        assert any("its daemon does not answer" in words for words in left)
        error = await refused(boxed(one, tmp_path, rank=1))
        assert "its daemon does not answer" in error.reason
        assert error.remedy.startswith("Start the daemon")


def test_a_valid_row_comes_out_of_podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("podman")
    if not lacking():
        pytest.skip("the podman of an ordinary user has one")
    with podman(tmp_path / "podman") as one:
        for name, value in one.env.items():
            monkeypatch.setenv(name, value)
        one.make(IMAGE)
        finish(launch(tmp_path / "runs", *sweep_words("podman", IMAGE)), 0)
        check_row(the_sweep(tmp_path / "runs"), "podman")
        assert one.containers() == []


def test_the_podman_of_an_ordinary_user_needs_no_root() -> None:
    need("podman")
    with two_users() as host, podman(host.victim.home / "podman") as one:
        user, runs, archive = host.victim, host.victim.home / "runs", image_file(host.victim.home / "image.tar")
        for path in (user.home, *user.home.rglob("*")):
            os.chown(path, user.uid, user.uid)
        user.need_namespaces()
        env = {**one.env, "XDG_RUNTIME_DIR": str(user.home / "tmp")}
        user.run("podman", "import", str(archive), IMAGE, **env)
        user.run(*LAUNCHER, f"results.root={runs}", *sweep_words("podman", IMAGE), **env)
        check_row(the_sweep(runs), "podman")
        assert the_sweep(runs).path.stat().st_uid == user.uid
        assert user.run("podman", "ps", "--all", "--quiet", **env) == ""
    assert working_in(user.home) == [], "and nothing that holds its namespaces is left"


def test_nothing_is_left_where_the_tests_are_interrupted(tmp_path: Path) -> None:
    need("docker")
    code = (
        "import sys, time; sys.path[:0] = sys.argv[2:]; from pathlib import Path; import real_runtimes\n"
        "with real_runtimes.docker(Path(sys.argv[1])) as (one, _):\n"
        "    one.make('localhost/x:v1')\n"
        "    words = '--name xx --detach --net=host -v /usr:/usr:ro -it localhost/x:v1 bash'.split()\n"
        "    one.run('run', *words)\n"
        "    print(one.env['DOCKER_HOST'], flush=True)\n"
        "    time.sleep(600)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "docker"), *filter(os.path.isdir, sys.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        place = Path(tests.stdout.readline().strip().removeprefix("unix://")).parent
        inside = [one for one in psutil.process_iter() if str(place) in " ".join(_words(one))]
        tests.kill()
    assert psutil.wait_procs(inside, timeout=60)[1] == []
    assert len(inside) >= 3, "the daemon, containerd, and the container's shim"
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    shutil.rmtree(tmp_path / "docker")
    clear()  # as the next run does
    assert not place.is_symlink()
    assert not [found for found in Path("/sys/fs/cgroup").glob(f"*/{GROUP}{tests.pid}-*")]


def _words(one: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(one.cmdline())
    return []
