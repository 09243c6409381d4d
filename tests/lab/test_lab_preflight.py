"""The checks of the nodes on two real hosts of a real Slurm: a closed port and a wrong interface end the allocation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lab import Lab
from launching import python

from jobs.core.files import read_json
from jobs.core.rundir import SweepDir

ROOT = Path(__file__).resolve().parents[2]
ONE, TWO = "npu-node1", "npu-node2"
RPC_PORT = 13389
REHEARSAL = (
    "engine=simulator",
    "bench.repeats=1",
    "cluster=slurm",
    "cluster.time_limit=5",
    f"engine.data_parallel_rpc_port={RPC_PORT}",
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), pytest.mark.usefixtures("warm")]


def sweep(lab: Lab, root: Path, *words: str) -> tuple[list[str], dict[str, Any]]:
    """Run two points that must fail. Returns the reasons of their rows, and the record of the checks."""
    points = ("parallel.max_model_len=8192,16384", f"results.root={root}")
    done = python(lab, "launch.py", "-m", *REHEARSAL, *points, *words, timeout_s=240)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    found = SweepDir((root / "latest").resolve())
    [allocation] = found.allocations()
    assert not (found.path / "services").exists(), "no engine was started"
    table = pd.read_parquet(found.table("parquet"))
    assert len(table) == 2
    return table["invalid_reason"].tolist(), read_json(allocation.preflight)


@pytest.fixture
def closed_port(quiet: Lab) -> Iterator[Lab]:
    """As behind a firewall: what the first node sends from the port is dropped, so nobody gets an answer from it."""
    rule = ["ipproto", "tcp", "sport", str(RPC_PORT), "blackhole", "pref", "5"]
    quiet.node_exec(ONE, ["ip", "rule", "add", *rule])
    yield quiet
    quiet.node_exec(ONE, ["ip", "rule", "del", *rule])


@pytest.fixture
def other_interface(quiet: Lab) -> Iterator[Lab]:
    """An interface that only the first node has."""
    quiet.node_exec(ONE, ["ip", "link", "add", "name", "bond7", "type", "veth", "peer", "name", "bond8"])
    quiet.node_exec(ONE, ["ip", "addr", "add", "192.168.77.1/24", "dev", "bond7"])
    for name in ("bond7", "bond8"):
        quiet.node_exec(ONE, ["ip", "link", "set", name, "up"])
    yield quiet
    quiet.node_exec(ONE, ["ip", "link", "del", "bond7"])


def test_a_closed_port_is_named_with_both_nodes_and_the_remedy(closed_port: Lab, tmp_path: Path) -> None:
    reasons, record = sweep(closed_port, tmp_path)
    for reason in reasons:
        assert reason.startswith(f"not run: preflight: between the nodes port {RPC_PORT}: network.path: {TWO} does not")
        assert f"reach {ONE} on port {RPC_PORT} (engine.data_parallel_rpc_port)" in reason
        assert "Open the firewall" in reason
    assert [one["check"] for one in record["findings"] if one["state"] == "fail"] == ["network.path"]


def test_an_interface_that_one_node_lacks_is_named_and_the_right_one_proposed(
    other_interface: Lab, tmp_path: Path
) -> None:
    reasons, _ = sweep(other_interface, tmp_path, "hccl.socket_ifname=bond7")
    for reason in reasons:
        assert reason.startswith(
            f"not run: preflight: {TWO} eth0: network.interface: hccl.socket_ifname=bond7: no interface"
        )
        assert "Set hccl.socket_ifname=eth0." in reason


def test_the_verb_checks_two_nodes_through_slurm(quiet: Lab, tmp_path: Path) -> None:
    done = python(quiet, "-m", "jobs", "preflight", "--json", *REHEARSAL, f"results.root={tmp_path}", timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(done.stdout)
    assert [one["node"] for one in record["facts"]] == [ONE, TWO]
    states = {one["check"]: one["state"] for one in record["findings"]}
    assert {states[check] for check in ("host.clock", "network.interface", "network.path")} == {"pass"}
    assert states["npu.health"] == "not-run"
    assert record["reason"] is None
