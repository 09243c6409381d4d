"""A real docker on each node of a real Slurm, and a registry between them that wants a login."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import Lab
from launching import python
from real_runtimes import HTPASSWD, ON_NODE, Real, check_row, docker, need, registry, sweep_words

from jobs.core.files import read_json
from jobs.core.rundir import SweepDir

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), pytest.mark.usefixtures("warm")]


@pytest.fixture
def nodes(quiet: Lab, tmp_path: Path) -> Iterator[tuple[str, Real, Real]]:
    """A registry on the bridge, and the daemons of both nodes, which have a login there."""
    need("docker")
    with ExitStack() as stack:
        address = stack.enter_context(registry(tmp_path / "registry", HTPASSWD, quiet.layout.address))
        made = []
        for node in quiet.layout.nodes:
            enter = quiet.enter(node.name)
            one, _ = stack.enter_context(docker(tmp_path / node.name, enter=enter, trusts=[address]))
            one.run("login", "--username", "bob", "--password", "secret", address)
            made.append(one)
        yield address, made[0], made[1]


def test_a_tag_that_moves_between_two_nodes_is_one_image_on_both(
    nodes: tuple[str, Real, Real], quiet: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, first, second = nodes
    tag = f"{address}/team/sim:v1"
    old = first.make(tag, "the first node's")
    first.push(tag)
    new = second.make(tag, "another one")
    second.push(tag)  # and keeps it: its own tag is what the registry has, and is not what the first node has
    monkeypatch.setenv("DOCKER_HOST", ON_NODE)
    monkeypatch.setenv("DOCKER_CONFIG", first.env["DOCKER_CONFIG"])
    words = ["engine=simulator", "cluster=slurm", "cluster.time_limit=5", f"results.root={tmp_path}/runs"]
    done = python(quiet, "launch.py", "-m", *words, *sweep_words("docker", tag), timeout_s=240)
    sweep = SweepDir((tmp_path / "runs/latest").resolve())
    row, inside = check_row(sweep, "docker")
    assert done.returncode == 0
    digest = first.run("image", "inspect", "--format", "{{index .RepoDigests 0}}", tag).partition("@")[2]
    assert row["image_digest"] == digest
    assert [one["image_id"] for one in inside] == [old, old] != [new, new]
    assert [one["proof"]["os"] for one in inside] == ["the first node's"] * 2
    assert inside[0]["image"].endswith("team/sim:v1"), "as it was asked for"
    assert inside[1]["image"].endswith(f"team/sim@{digest}")
    warnings = " ".join(read_json(sweep.service(row["service"], 1).record)["warnings"])
    assert "rank 1: its container image is not that of rank 0" in warnings
    assert first.containers() == second.containers() == []
