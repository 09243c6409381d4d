"""The conformance suite of container runtimes: one rank's engine in each that is registered, behind strict stand-ins.

It starts, is what was asked for, ends itself, and nothing is left. What one runtime alone has stands at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from container_fakes import DIGEST, PROGRAMS, REGISTRY, URI, Fakes, need_containers
from core_help import change, config

from containers import ascend, enroot
from jobs.allocation.node import fingerprint
from jobs.allocation.node.engine import Engine
from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.files import read_json
from jobs.core.layout import Placement
from jobs.core.registry import RUNTIMES
from jobs.core.rundir import RankDir

ENGINE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("ends itself", flush=True), sys.exit(0)))
print("up", flush=True)
time.sleep(600)
"""

EVERY = tuple(RUNTIMES.own)

PLACE = Placement(0, 1, "127.0.0.1", "lo", "127.0.0.1", "9", "1", api_key="secret")
HARD = 'two\nlines "x" $HOME'
INHERITED = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "node1", "PMIX_RANK": "1",
             "LD_LIBRARY_PATH": "/host/lib", "VLLM_STRAY": "1", "PYTHONPATH": "/host"}  # fmt: skip


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    need_containers()
    made = Fakes(tmp_path / "bin", PROGRAMS)
    made.tell(node="node1")
    monkeypatch.setenv("PATH", made.path)
    return made


def mark_of(tmp_path: Path) -> str:
    """Return a mark that no other test has: whatever carries it is ended with the engine."""
    return f"7/{tmp_path.name}.{os.getpid()}/0"


def engine(tmp_path: Path, runtime: str, **more: Any) -> Engine:
    """An engine with everything that its container needs mounted."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site/engine.py").write_text(ENGINE)
    python = [path for path in (sys.prefix, sys.base_prefix) if not path.startswith("/usr")]
    usual = {
        "engine__name": "vllm_cpu",
        "engine__command": (sys.executable, "-SE", str(tmp_path / "site/engine.py")),
        "engine__source": (),
        "engine__env": {"VLLM_WORDS": HARD, "HCCL_DFS_CONFIG": '"ring"'},
        "engine__checks_model_path": False,
        "hccl__buffsize": 200,
        "limits__stop_s": 10.0,
        "container__runtime": runtime,
        "container__image": "test/image:v1",
        "container__registry": REGISTRY,
        "container__mounts": (f"{tmp_path}/site:{tmp_path}/site:ro", *sorted(set(python))),
        "container__shm_size": None,
        "container__images_path": str(tmp_path / "images"),
        "container__local_dir": f"{tmp_path}/node",
    }
    return Engine(
        change(config("cluster=slurm"), **(usual | more)), PLACE, RankDir(tmp_path / "rank0"), mark_of(tmp_path)
    )


LIMIT_S = 200.0
"""Of waiting for what must come: on a busy machine a daemon may take a minute for an answer."""


async def until_says(one: Engine, words: str) -> None:
    end = time.monotonic() + LIMIT_S
    while words not in (one.folder.log.read_text() if one.folder.log.exists() else ""):
        assert time.monotonic() < end, one.folder.log.read_text()
        assert one._process is None or one._process.ended is None, one.folder.log.read_text()
        await asyncio.sleep(0.02)


async def failed(one: Engine) -> str:
    """Wait for the engine's end and return why, as the row of its points would have it."""
    await one.start(dict(os.environ) | INHERITED)
    reason = await asyncio.wait_for(one.ended(), LIMIT_S)
    assert await one.stop(1) == []
    return reason


@pytest.mark.parametrize("runtime", EVERY)
async def test_an_engine_lives_and_dies_in_its_container(tmp_path: Path, fakes: Fakes, runtime: str) -> None:
    one = engine(tmp_path, runtime)
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    found = one.inspect()
    left = {"VLLM_FROM_IMAGE"} if runtime == "pyxis" else set()  # what an image sets by itself is named
    assert {difference.key for difference in found} == left
    effective = read_json(one.folder.effective)
    assert effective["env"]["VLLM_WORDS"] == HARD
    assert effective["env"]["HCCL_DFS_CONFIG"] == '"ring"'
    assert effective["env"]["HCCL_BUFFSIZE"] == "200"
    assert effective["env"]["VLLM_API_KEY"] == "***"
    assert "VLLM_STRAY" not in effective["env"]
    inside = effective["container"]
    assert (inside["runtime"], inside["image"]) == (runtime, URI)
    assert inside["proof"]["os"] == f"fake {URI}"
    assert inside["missing"] == []
    _, env = one.container.read_process() if one.container else ([], {})
    assert not [name for name in env if name.startswith(("SLURM_", "PMI"))]
    assert env.get("LD_LIBRARY_PATH") is None
    assert env.get("PYTHONPATH") is None
    if runtime in ("enroot", "pyxis", "apptainer"):
        assert env["PATH"].startswith("/image/bin:"), "the image's own, which its /etc/profile would replace"
    scratch = Path(str(one._scratch))
    assert env["TMPDIR"] == str(scratch)
    for path in (scratch / "task.json", scratch / "enter.sh"):
        assert path.stat().st_mode & 0o77 == 0, "the API key is in it"
    assert "secret" not in json.dumps(fakes.calls())
    assert "secret" not in one.folder.command.read_text()

    assert await one.stop() == []
    assert "ends itself" in one.folder.log.read_text(), "SIGTERM reached the engine itself"
    assert not scratch.exists()
    if runtime == "enroot":
        assert [path.name for path in (tmp_path / "node/enroot/data").iterdir()] == [".serving-sweep.lock"]
    assert all(json.loads(state.read_text()) == {} for state in fakes.folder.glob("daemon/state.json"))
    assert mark_of(tmp_path) not in process.tags()


async def test_the_image_of_the_store_serves_pyxis_too_and_its_digest_is_known(tmp_path: Path, fakes: Fakes) -> None:
    first = engine(tmp_path, "enroot")
    assert fingerprint.of_this_host(first.config).image_digest is None
    await first.start(dict(os.environ) | INHERITED)
    await until_says(first, "up")
    await first.stop()
    assert fingerprint.of_this_host(first.config).image_digest == DIGEST
    second = engine(tmp_path, "pyxis")
    await second.start(dict(os.environ) | INHERITED)
    await until_says(second, "up")
    assert await second.stop() == []
    [step] = [call for call in fakes.calls("srun") if "--overlap" in call]
    [image] = [word for word in step if word.startswith("--container-image=")]
    assert image.startswith(f"--container-image={tmp_path}/images/sha256-")


@pytest.mark.parametrize(
    ("runtime", "told", "words"),
    [
        ("enroot", {"enroot_import": {"say": "[ERROR] URL https://r/v2/x returned error code: 404 Not Found"}},
         "no such image or tag"),
        ("enroot", {"enroot_import": {"exit0": True}}, "ended without an error, but"),
        ("enroot", {"enroot_create": {"say": "FATAL ERROR: File system corruption detected"}}, "damaged"),
        ("enroot", {"enroot_start": {"say": "[ERROR] Could not acquire rootfs lock"}}, "Could not acquire rootfs lock"),
        ("enroot", {"enroot_start": {"exit0": True}}, "exited with code 0"),
        ("pyxis", {"pyxis": False}, "no --container-image"),
        ("docker", {"images": {}}, "has no such image or tag"),
        ("podman", {"images": {}}, "has no such image or tag"),
        ("docker", {"docker_run": {"say": "docker: Error response from daemon: no space left on device", "code": 125}},
         "`docker run` on HOST ended with code 125: the disk of its images is full"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
async def test_what_fails_in_the_runtime_is_the_reason(
    tmp_path: Path, fakes: Fakes, runtime: str, told: dict[str, Any], words: str
) -> None:
    fakes.tell(**({"node": "node1"} | told))
    one = engine(tmp_path, runtime)
    if RUNTIMES.get(runtime).of_slurm:
        with pytest.raises(RunError, match="no --container-image"):
            await one.start(dict(os.environ) | INHERITED)
        return
    assert words.replace("HOST", socket.gethostname()) in await failed(one)


async def test_a_root_that_an_earlier_job_left_is_removed(tmp_path: Path, fakes: Fakes) -> None:
    old = tmp_path / "node/enroot/data/serving-sweep.6.dead.0"
    (old / "usr").mkdir(parents=True)
    other = tmp_path / "node/enroot/data/somebodys"
    other.mkdir()
    one = engine(tmp_path, "enroot")
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert not old.exists()
    assert other.exists()
    await one.stop()


def elsewhere(fakes: Fakes, runtime: str, tmp_path: Path, name: str) -> Path:
    """Let somebody else have a container of this name. Returns a file of theirs in it."""
    reference = URI.removeprefix("docker://")
    if runtime in ("docker", "podman"):
        argv = [runtime, "run", "--name", name, "--net=host", "--detach", "-it", reference.replace("#", "/"), "bash"]
        subprocess.run(argv, check=True)
        root = fakes.folder / "daemon" / name
    elif runtime == "enroot":
        root = tmp_path / "node/enroot/data" / name
        root.mkdir(parents=True)
    else:
        argv = ["srun", "--jobid=7", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist=node1"]
        argv += ["--container-writable", "--container-remap-root"]
        subprocess.run([*argv, f"--container-name={name}", f"--container-image={reference}", "true"], check=True)
        root = tmp_path / "site/DATA" / f"pyxis_{name}"
    (root / "work.txt").write_text("a week of work")
    return root / "work.txt"


def conf(tmp_path: Path) -> dict[str, str]:
    """Return the site's enroot.conf, which alone counts for pyxis."""
    return {name: str(tmp_path / "site" / name) for name in ("DATA", "CACHE", "RUNTIME")}


@pytest.mark.parametrize(
    ("runtime", "remedy"),
    [
        ("enroot", "ENROOT_DATA_PATH={tmp_path}/node/enroot/data enroot remove deepseek-node0"),
        ("pyxis", "`enroot remove pyxis_deepseek-node0`"),
        ("docker", "`docker rm --force deepseek-node0`"),
        ("podman", "`podman rm --force deepseek-node0`"),
    ],
)
async def test_somebody_elses_container_of_the_same_name_survives(
    tmp_path: Path, fakes: Fakes, runtime: str, remedy: str
) -> None:
    fakes.tell(node="node1", conf=conf(tmp_path))
    theirs = elsewhere(fakes, runtime, tmp_path, "deepseek-node0")
    reason = await failed(engine(tmp_path, runtime, container__name="deepseek-node{rank}"))
    assert "container.name = deepseek-node0" in reason
    assert remedy.format(tmp_path=tmp_path) in reason
    assert theirs.exists()
    assert not fakes.calls("docker", "rm") + fakes.calls("podman", "rm")


@pytest.mark.parametrize("runtime", [name for name in EVERY if name != "apptainer"])
async def test_a_container_with_a_name_of_its_own_is_removed_after_use(
    tmp_path: Path, fakes: Fakes, runtime: str
) -> None:
    fakes.tell(node="node1", conf=conf(tmp_path))
    for _ in range(2):
        one = engine(tmp_path, runtime, container__name="mine-{job}-{host}")
        await one.start(dict(os.environ) | INHERITED)
        await until_says(one, "up")
        name = f"mine-7-{socket.gethostname()}"
        roots = {
            tmp_path / "node/enroot/data" / name: ("enroot",),
            tmp_path / "site/DATA" / f"pyxis_{name}": ("pyxis",),
            fakes.folder / "daemon" / name: ("docker", "podman"),
        }
        assert [path.exists() for path in roots] == [runtime in its for its in roots.values()]
        assert await one.stop() == []
        assert not any(path.exists() for path in roots)
        one.folder.log.unlink()


async def test_a_named_root_of_a_dead_job_is_removed_and_that_of_a_living_one_is_refused(
    tmp_path: Path, fakes: Fakes
) -> None:
    root = tmp_path / "node/enroot/data/mine"
    root.mkdir(parents=True)
    (root / enroot.MARKER).write_text(f"6/dead/0\n{enroot.identity(root)}\n")
    one = engine(tmp_path, "enroot", container__name="mine")
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert enroot.owner(root) == mark_of(tmp_path)
    assert await one.stop() == []
    root.mkdir()
    (root / enroot.MARKER).write_text(f"6/living/0\n{enroot.identity(root)}\n")
    with subprocess.Popen(["sleep", "600"], env=dict(os.environ) | {process.TAG: "6/living/0"}) as holder:
        reason = await failed(engine(tmp_path, "enroot", container__name="mine"))
        holder.kill()
    assert "of the rank 6/living/0" in reason
    assert root.exists()


async def test_pyxis_itself_refuses_a_name_that_nobody_could_look_up(tmp_path: Path, fakes: Fakes) -> None:
    """A name alone would take the root that is there, whatever its image was."""
    fakes.tell(node="node1", conf=conf(tmp_path))
    theirs = elsewhere(fakes, "pyxis", tmp_path, "mine")
    (fakes.folder / "enroot").unlink()
    reason = await failed(engine(tmp_path, "pyxis", container__name="mine"))
    assert "the container already exists" in reason
    assert theirs.exists()


@pytest.mark.parametrize("runtime", EVERY)
async def test_an_engine_lives_in_a_container_that_cannot_be_written(
    tmp_path: Path, fakes: Fakes, runtime: str
) -> None:
    one = engine(tmp_path, runtime, container__writable=False)
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert {difference.key for difference in one.inspect()} <= {"VLLM_FROM_IMAGE"}
    assert one.container is not None
    assert str(one._scratch) in one.container.inside.proof().mounts
    assert await one.stop() == []
    assert "ends itself" in one.folder.log.read_text()
    assert not Path(str(one._scratch)).exists()


@pytest.mark.parametrize("runtime", EVERY)
async def test_the_npus_that_a_prolog_gave_to_the_job_are_those_of_the_engine_inside(
    tmp_path: Path, fakes: Fakes, runtime: str
) -> None:
    prolog = {"ASCEND_RT_VISIBLE_DEVICES": "4,5,6,7"}
    for settings, seen in (({}, "4,5,6,7"), ({"engine__env": {"ASCEND_RT_VISIBLE_DEVICES": "4,5"}}, "4,5")):
        one = engine(tmp_path, runtime, **settings)
        await one.start(dict(os.environ) | INHERITED | prolog)
        await until_says(one, "up")
        assert one.container is not None
        assert one.container.read_process()[1]["ASCEND_RT_VISIBLE_DEVICES"] == seen
        assert await one.stop() == []
        one.folder.log.unlink()


async def test_docker_is_lent_the_npus_that_the_job_may_open(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ascend, "_NPU", re.compile("/dev/(null|zero|full)"))  # this host has no others
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "/dev/zero")
    devices = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
    for prolog, lent in (({}, ["/dev/null", "/dev/full", "/dev/random"]), ({"ASCEND_RT_VISIBLE_DEVICES": "0,2"}, None)):
        one = engine(tmp_path, "docker", container__devices=devices)
        await one.start(dict(os.environ) | INHERITED | prolog)
        await until_says(one, "up")
        run = [call for call in fakes.calls("docker") if call[1] == "run"][-1]
        found = [run[at + 1] for at, word in enumerate(run) if word == "--device"]
        assert found == (lent or list(devices))
        assert await one.stop() == []
        one.folder.log.unlink()


async def test_docker_is_asked_what_image_the_container_was_made_of(tmp_path: Path, fakes: Fakes) -> None:
    one = engine(tmp_path, "docker")
    assert fingerprint.of_this_host(one.config).image_digest is None
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert fingerprint.of_this_host(one.config).image_digest == DIGEST
    assert one.inspect() == ()
    made = read_json(one.folder.effective)["container"]["image_id"]
    assert made.startswith("sha256:")
    assert made != DIGEST
    fakes.tell(node="node1", images={URI: None})  # the tag has moved to an image that was built here
    assert fingerprint.of_this_host(one.config).image_digest not in (DIGEST, made, None)
    [difference] = one.inspect()
    assert (difference.key, difference.effective, difference.error) == ("container.image", made, True)
    assert await one.stop() == []


async def test_an_import_that_hangs_ends_with_its_rank(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(enroot_import={"hang": True})
    one = engine(tmp_path, "enroot")
    await one.start(dict(os.environ) | INHERITED)
    end = time.monotonic() + 30
    while not fakes.calls("hangs"):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    assert await one.stop(5) == []
    assert mark_of(tmp_path) not in process.tags()
    assert not list((tmp_path / "images").glob(".*.part"))


async def test_what_this_node_lacks_is_said_before_the_container(tmp_path: Path, fakes: Fakes) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"container__mounts": ("/no/such:/x",)}, "container.mounts", "/no/such"),
        ({"model__path": "/no/model", "engine__checks_model_path": True}, "model.path", "/no/model"),
        ({"container__shm_size": "900000g"}, "container.shm_size", "GiB"),
        ({"container__image": "/no/such.sqsh"}, "container.image", "/no/such.sqsh"),
    ]
    for settings, key, words in cases:
        one = engine(tmp_path, "enroot", **settings)
        with pytest.raises(RunError) as caught:
            await one.start(dict(os.environ) | INHERITED)
        assert not Path(str(one._scratch)).exists(), "the key of the API may be in it"
        assert caught.value.key == key
        assert words in str(caught.value)
    own = (*engine(tmp_path, "enroot").config.container.mounts, "tmpfs:/dev/shm:size=64m+mode=1777")
    one = engine(tmp_path, "enroot", container__shm_size="900000g", container__mounts=own)
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert await one.stop() == []


async def test_a_stray_option_does_not_reach_a_step_of_ours(tmp_path: Path, fakes: Fakes) -> None:
    one = engine(tmp_path, "pyxis")
    await one.start(dict(os.environ) | INHERITED | {"PYXIS_CONTAINER_MOUNTS": "/etc:/stray"})
    await until_says(one, "up")
    assert one.container is not None
    assert "/stray" not in one.container.inside.proof().mounts
    _, env = one.container.read_process()
    assert not [name for name in env if name.startswith("PYXIS_")]
    await one.stop()
