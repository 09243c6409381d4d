"""The container runtime of a node, as the checks see it: there, answering, with space, and without dead engines."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from container_fakes import PROGRAMS, REGISTRY, URI, Fakes
from core_help import change, config
from preflight_help import fake_node, node
from test_preflight_run import WITH_NPUS, free_ports, station

from jobs.__main__ import main
from jobs.allocation.node.container import RankContainer
from jobs.allocation.preflight import host, runtime
from jobs.allocation.preflight.facts import Need, Runtime
from jobs.allocation.preflight.findings import Finding
from jobs.allocation.preflight.questions import AskFacts, FactsFound
from jobs.allocation.preflight.tools import Tools
from jobs.cluster.ports import Ports
from jobs.core.config import Config

DOCKERS = ("docker", "podman")
REFERENCE = URI.removeprefix("docker://").replace("#", "/")
ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes(tmp_path / "bin", PROGRAMS)
    monkeypatch.setenv("PATH", made.path)
    return made


def boxed(tmp_path: Path, kind: str, **more: Any) -> Config:
    settings = {
        "container__runtime": kind,
        "container__image": "test/image:v1",
        "container__registry": REGISTRY,
        "container__images_path": f"{tmp_path}/images",
        "container__local_dir": f"{tmp_path}/node",
    }
    return change(config("engine=simulator"), **(settings | more))


def look(made: Config) -> Runtime:
    return runtime.look(made, "7", 0, dict(os.environ))


def judged(found: Runtime, *, npus: bool = True) -> list[Finding]:
    facts = node(0)
    facts = change(facts, host__runtime=found)  # type: ignore[type-var]
    all_of = host.judge([facts], config("cluster=slurm").preflight, npus=npus, on_loopback=False)
    return [one for one in all_of if one.check == "host.container" or "container." in one.reason]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("enroot", "enroot 4.1.2"),
        ("docker", "docker 24.0.9"),
        ("podman", "podman 4.3.1"),
        ("pyxis", "pyxis slurm 22.05.8"),
    ],
)
def test_a_runtime_says_its_version(tmp_path: Path, fakes: Fakes, kind: str, said: str) -> None:
    found = look(boxed(tmp_path, kind))
    assert found.problem is None
    [one] = [one for one in judged(found) if one.check == "host.container"]
    assert (one.state, one.reason) == ("pass", said)


@pytest.mark.parametrize(
    ("kind", "told", "missing", "words"),
    [
        ("enroot", {}, "enroot", "there is no enroot on PATH"),
        ("docker", {}, "docker", "there is no docker on PATH"),
        ("docker", {"docker_daemon": {"say": "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."}},
         None, "Cannot connect to the Docker daemon"),
        ("pyxis", {"pyxis": False}, None, "the plugin is not loaded"),
    ],
)  # fmt: skip
def test_a_runtime_that_cannot_start_anything_fails_its_check(
    tmp_path: Path, fakes: Fakes, kind: str, told: dict[str, Any], missing: str | None, words: str
) -> None:
    fakes.tell(**told)
    if missing:
        (fakes.folder / missing).unlink()
    [one] = judged(look(boxed(tmp_path, kind)), npus=False)
    assert (one.check, one.state) == ("host.container", "fail")
    assert words in one.reason
    assert one.remedy


def test_directories_that_cannot_be_made_are_a_failure(tmp_path: Path, fakes: Fakes) -> None:
    (tmp_path / "file").write_text("")
    [one] = judged(look(boxed(tmp_path, "enroot", container__local_dir=f"{tmp_path}/file/data")))
    assert one.state == "fail"
    assert one.reason.startswith("container.local_dir = ")


def test_the_verb_names_the_missing_runtime_of_this_host(
    tmp_path: Path, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    (fakes.folder / "enroot").unlink()
    words = ["engine=simulator", f"results.root={tmp_path}/runs", "container=enroot", "container.image=/x.sqsh"]
    assert main(["preflight", "--json", *words]) == 1
    record = json.loads(capsys.readouterr().out)
    assert "host.container: there is no enroot on PATH" in record["reason"]


def test_without_containers_nothing_is_said() -> None:
    assert judged(Runtime("none")) == []


# --- space


def needs(made: Config) -> list[tuple[str, str, float, float]]:
    """What the image needs: key, directory below the test's, GiB during an import and after."""
    order = RankContainer(made, 0, "7//0", {}).order()
    found, _ = runtime.needs(made, order, ENV | {"PATH": os.environ["PATH"]})
    return [(key, str(path).partition("/test_")[2].partition("/")[2], *folds) for key, path, *folds in found]


def test_an_import_needs_more_than_a_start(tmp_path: Path, fakes: Fakes) -> None:
    made = boxed(tmp_path, "enroot")
    size = made.preflight.thresholds.image_gib
    assert needs(made) == [
        ("container.local_dir", "node/enroot/temp", 3 * size, 0.0),
        ("container.local_dir", "node/enroot/cache", size, size),
        ("container.images_path", "images", size, size),
        ("container.local_dir", "node/enroot/data", 0.0, size),
    ]
    [need] = look(made).needs
    assert need.guessed
    assert need.need_gib == 5 * size, "all on one file system: while it is imported"
    assert need.where.startswith(f"container.local_dir {tmp_path}/node/enroot/temp, container.local_dir {tmp_path}/")
    assert need.free_gib > 0


def test_a_file_that_is_there_says_its_size(tmp_path: Path, fakes: Fakes) -> None:
    file = fakes.image(tmp_path / "m.sqsh")
    made = boxed(tmp_path, "enroot", container__image=str(file))
    [packed] = needs(made)
    assert packed[:3] == ("container.local_dir", "node/enroot/data", 0.0)
    content = bytearray(file.read_bytes())
    content[24:26] = (2).to_bytes(2, "little")
    file.write_bytes(content)
    [plain] = needs(made)
    assert packed[3] == pytest.approx(3 * plain[3])
    assert plain[3] == pytest.approx(file.stat().st_size / 2**30)


@pytest.mark.parametrize("kind", DOCKERS)
def test_docker_needs_space_for_an_image_that_it_lacks(tmp_path: Path, fakes: Fakes, kind: str) -> None:
    made = boxed(tmp_path, kind)
    size = made.preflight.thresholds.image_gib
    assert needs(made) == [(kind, "bin/daemon", size, size)]
    subprocess.run([kind, "pull", REFERENCE], check=True)
    assert needs(made) == []


@pytest.mark.parametrize(("npus", "state"), [(True, "fail"), (False, "warn")])
def test_too_little_space_is_named_with_the_key(npus: bool, state: str) -> None:
    short = Runtime("enroot", "4.1.2", needs=(Need("container.local_dir /tmp", 20.0, 45.0),))
    runtime_is_there, disk = judged(short, npus=npus)
    assert runtime_is_there.state == "pass"
    assert (disk.check, disk.state) == ("host.disk", state)
    assert disk.reason == "container.local_dir /tmp: 20.0 GiB are free, the image needs 45.0"


def test_a_size_that_is_only_assumed_ends_no_allocation(tmp_path: Path, fakes: Fakes) -> None:
    made = change(boxed(tmp_path, "enroot"), preflight__thresholds__image_gib=1e9)
    [_, disk] = judged(look(made), npus=True)
    assert (disk.check, disk.state) == ("host.disk", "warn")
    assert "the image needs about " in disk.reason
    file = fakes.image(tmp_path / "m.sqsh")
    [_, known] = judged(look(change(made, container__image=str(file))), npus=True)
    assert known.state == "pass"


# --- what dead ranks left


def test_a_dead_engine_in_docker_is_gone_before_the_npus_are_looked_at(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.getuid()
    for name, owner in (("dead", f"{me}:6/gone.{os.getpid()}/0"), ("other", f"{me + 1}:6/gone/0")):
        label = f"serving-sweep={owner}"
        subprocess.run(
            ["docker", "run", "--detach", "--label", label, "--name", name, "-it", REFERENCE, "bash"], check=True
        )
    seen: list[list[str]] = []
    real = Tools.npus

    def npus(self: Tools, *args: Any, **kwargs: Any) -> Any:
        seen.append(list(json.loads((fakes.folder / "daemon/state.json").read_text())))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Tools, "npus", npus)
    folder = fake_node(tmp_path / "node0", {}, count=2)
    one = station(WITH_NPUS, 1, Ports(*free_ports(3)), folder)
    answer = asyncio.run(one.answer(AskFacts(1, 60.0)))
    assert seen == [["other"]]
    assert isinstance(answer, FactsFound)
    assert answer.facts.host.runtime is not None
    assert answer.facts.host.runtime.removed == ("dead",)
    [one_of] = judged(Runtime("none", removed=("dead",)))
    assert (one_of.state, one_of.reason) == ("pass", "none; removed what a dead job left: dead")


def test_dead_roots_go_as_well(tmp_path: Path, fakes: Fakes) -> None:
    made = boxed(tmp_path, "enroot")
    for name in ("serving-sweep.6.gone.0", "mine"):
        (tmp_path / "node/enroot/data" / name).mkdir(parents=True)
    assert runtime.sweep(made, "7", 0, dict(os.environ), npus=False) == ("serving-sweep.6.gone.0",)
    assert [path.name for path in (tmp_path / "node/enroot/data").iterdir()] == ["mine"]
    assert not fakes.calls("docker"), "without NPUs docker is nobody's business here"
