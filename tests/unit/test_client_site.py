"""Where an external client runs, and the command that brings it there, in each runtime."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from core_help import change, check_golden, checked, config, executable

from containers.base import Inside, Local, Order
from containers.entry import Files
from containers.spec import Image, Mount, Spec
from jobs.allocation.node import container
from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.core.layout import planned
from jobs.core.registry import RUNTIMES
from jobs.engines.vllm.environment import of_client, variables
from jobs.measure.checks import check_client
from jobs.measure.clients import ais_bench, base
from jobs.measure.clients.ais_bench import AisBench
from jobs.measure.clients.vllm_bench import VllmBench


def point(*overrides: str, **values: Any) -> Config:
    words = ("cluster=slurm", "container=enroot", "container.image=/m.sqsh", "bench.concurrency=8")
    return change(config(*words, *overrides), **values)


def site(tmp_path: Path, runtime: str, name: str | None, pid: str | None, proof: str) -> Inside:
    """The container of an engine that has said where it is."""
    files = Files(tmp_path)
    if pid:
        files.pid.write_text(pid)
    files.proof.write_text(proof)
    spec = Spec(runtime, Image(path="/m.sqsh"), name=name, mounts=(Mount("/a", "/a"),))
    order = Order(spec, "7/s/0", Local(tmp_path), tmp_path, "node1", tmp_path)
    return RUNTIMES.get(runtime).reach(order, {})


def test_the_command_that_joins_each_runtime(tmp_path: Path) -> None:
    command = ["bash", "/tmp/sv-x/client-y/enter.sh", "vllm", "bench", "serve"]
    proof = "namespace mnt:[1]\nstep 7.3\n"
    cases = {
        "enroot": site(tmp_path, "enroot", "serving-sweep.7.a.0", "4711", proof),
        "pyxis": site(tmp_path, "pyxis", None, "4711", proof),
        "pyxis, container.name=site": site(tmp_path, "pyxis", "site", "4711", proof),
        "docker": site(tmp_path, "docker", "serving-sweep.7.a.0", None, proof),
    }
    text = "".join(f"# {name}\n{shlex.join(one.join(command).commands[-1])}\n" for name, one in cases.items())
    check_golden("client_inside.txt", text, tmp_path)


@pytest.mark.parametrize(("runtime", "words"), [("enroot", "process id"), ("pyxis", "step")])
def test_an_engine_that_never_said_where_it_is_cannot_be_joined(tmp_path: Path, runtime: str, words: str) -> None:
    with pytest.raises(RunError, match=words) as caught:
        site(tmp_path, runtime, None, None, "step .\n").join(["true"])
    assert caught.value.key == "bench.where"


@pytest.mark.parametrize(
    ("client", "where", "inside"),
    [
        ("vllm_bench", "auto", True),
        ("vllm_bench", "node", False),
        ("ais_bench", "auto", False),
        ("ais_bench", "container", True),
        ("window", "container", False),
    ],
)
def test_who_runs_where(client: str, where: str, inside: bool) -> None:
    one = point(bench__client=client, bench__where=where)
    assert base.runs_inside(one) is inside
    assert not base.runs_inside(change(one, container__runtime="none"))


def test_a_container_that_is_none_is_refused() -> None:
    words = ("cluster=local", "engine=vllm_cpu", "bench.concurrency=1")
    with pytest.raises(ConfigError, match="runs in no container") as caught:
        checked(config(*words, "bench.client=vllm_bench", "bench.where=container"))
    assert caught.value.key == "bench.where"
    check_client(config(*words, "bench.where=container"))  # the window client is where it is


def test_the_program_is_looked_for_where_the_client_runs(tmp_path: Path) -> None:
    ours = executable(tmp_path / "bin/vllm", "#!/bin/sh\n").parent
    base.check_node(point("bench.client=vllm_bench"), None)
    base.check_node(point(), None)
    assert AisBench().program(point("bench.client=ais_bench", "bench.where=container")) == "ais_bench"
    assert AisBench().program(point("bench.client=ais_bench")).endswith(ais_bench.DEFAULT_PROGRAM)
    for words, remedy in (
        (("bench.client=ais_bench", "bench.program=no_such"), "tools/engines.py ais_bench"),
        (("bench.client=vllm_bench", "bench.where=node", "engine.source=[]"), "Leave bench.where out"),
        (("bench.client=vllm_bench", "container=none", "engine.source=[]"), "Install the engine here"),
    ):
        with pytest.raises(RunError) as caught:
            base.check_node(point(*words), str(tmp_path))
        assert caught.value.key == "bench.program"
        assert "on the node" in caught.value.reason
        assert remedy in caught.value.remedy
        if "vllm_bench" in words[0]:
            base.check_node(point(*words), str(ours))
            assert VllmBench().program(point(*words)) == "vllm"


def data_sets(one: Config, rank: int = 0, points: tuple[Config, ...] = ()) -> list[str]:
    mounts = [str(mount) for mount in container.wanted(one, rank, points).mounts]
    return [text for text in mounts if "/d/" in text or "/data" in text]


def test_the_data_sets_of_all_points_are_mounted_for_rank_0() -> None:
    one = point(bench__client="vllm_bench", bench__workload="sharegpt", bench__dataset="/d/a.json")
    two = change(one, bench__dataset="/d/b.json")
    window, node = (change(two, bench__client=name, bench__dataset="/d/c.json") for name in ("window", "ais_bench"))
    assert data_sets(one) == ["/d/a.json:/d/a.json:ro"]
    assert data_sets(window, 0, (window, one, two, node)) == ["/d/a.json:/d/a.json:ro", "/d/b.json:/d/b.json:ro"]
    assert data_sets(one, 1) == []
    with pytest.raises(ConfigError) as caught:
        container.check(change(one, bench__dataset="/d/a,b.json"))
    assert caught.value.key == "bench.dataset"


def test_a_data_set_behind_a_mount_needs_no_other() -> None:
    one = point(bench__client="vllm_bench", bench__workload="sharegpt", bench__dataset="/data/a.json")
    one = change(one, container__mounts=("/fast:/data:ro",))
    assert data_sets(one) == ["/fast:/data:ro"]
    assert container.dataset(one) == "/fast/a.json"
    assert container.dataset(change(one, bench__client="window")) == "/data/a.json", "a path of the node"


def test_a_client_gets_the_paths_of_the_engine_and_nothing_of_its_network() -> None:
    one = change(config("cluster=slurm"), engine__env={"PATH": "/opt/bin", "VLLM_USE_V1": 1, "OMP_NUM_THREADS": 10})
    assert of_client(variables(one, planned(one)[0])) == {"PATH": "/opt/bin", "OMP_NUM_THREADS": "10"}
