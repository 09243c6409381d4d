"""Facts of two healthy nodes, and nodes with the stand-ins of npu-smi and hccn_tool."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core_help import ROOT, config

from jobs.allocation.preflight import fabric, host, network, npu, tuning
from jobs.allocation.preflight.facts import Facts, Host, Interface, NpuPort, Npus, Ping, Reached, Runtime, Space
from jobs.allocation.preflight.findings import Finding
from jobs.cluster.ports import Ports
from jobs.core.config import Config
from jobs.engines.ascend.npu_smi import Npu

ONE, TWO = "npu-node1", "npu-node2"
PORTS = Ports(api=8000, dp_rpc=13389, control=17002)
CONFIG = config("cluster=slurm")
HEALTHY = Host(
    versions={"tool": "0.1.0 abc", "python": "3.11.9", "vllm": "0.9.1"},
    shm=Space(64.0, 64.0),
    memory=Space(1024.0, 1000.0),
    disks={"results.root /runs": Space(1000.0, 900.0)},
    tuning={
        "governor": "performance",
        "numa_balancing": "0",
        "swappiness": "0",
        "sched_migration_cost_ns": "50000",
        "transparent_hugepages": "madvise",
        "clock_source": "arch_sys_counter",
        "cpus": "0-191",
        "allocator": "jemalloc",
    },
    runtime=Runtime("enroot", "4.1.2"),
)


def node(rank: int, **changes: Any) -> Facts:
    """Return the facts of a healthy node with 8 NPUs, some of them changed."""
    healthy = Facts(
        rank=rank,
        node=(ONE, TWO)[rank],
        interface="enp61s0f0",
        address=f"10.0.0.{rank + 1}",
        prefix=24,
        host=HEALTHY,
        interfaces={
            "lo": Interface(True, (("127.0.0.1", 8),)),
            "enp61s0f0": Interface(True, ((f"10.0.0.{rank + 1}", 24),)),
            "docker0": Interface(True, (("172.17.0.1", 16),)),
        },
        listening=(8000, 13389, 40000) if rank == 0 else (40001,),
        npus=Npus(
            npus=tuple(Npu(index, "910B2", "OK", 3382, 65536, ()) for index in range(8)),
            driver="25.5.0",
            firmware="7.8.0.2.212",
            cann="8.2.RC1",
            ports=tuple(
                NpuPort(index, "UP", "Success", False, f"10.20.{rank}.{20 + index}", "255.255.0.0")
                for index in range(8)
            ),
        ),
        clock_s=0.0 if rank == 0 else 0.001,
    )
    return replace(healthy, **changes)


def nodes(**changes: Any) -> list[Facts]:
    """Return two nodes; the changes are of the second one."""
    return [node(0), node(1, **changes)]


def npu_change(index: int, **changes: Any) -> dict[str, Any]:
    """Return the change of one NPU of a node."""
    whole = node(1).npus
    assert whole is not None
    changed = tuple(replace(npu, **changes) if npu.index == index else npu for npu in whole.npus)
    return {"npus": replace(whole, npus=changed)}


def port_change(index: int, **changes: Any) -> dict[str, Any]:
    """Return the change of the network port of one NPU of a node."""
    whole = node(1).npus
    assert whole is not None
    changed = tuple(replace(port, **changes) if port.index == index else port for port in whole.ports)
    return {"npus": replace(whole, ports=changed)}


def all_pings(facts: list[Facts], lost: tuple[tuple[int, int], ...] = ()) -> list[Ping]:
    """Return the pings of all pairs; those of an NPU (rank, device) in `lost` get no answer."""
    return [
        Ping(rank, device, peer, other, 3, 0 if {(rank, device), (peer, other)} & set(lost) else 3)
        for rank, wanted in fabric.pairs(facts).items()
        for device, _, peer, other in wanted
    ]


def judge(
    facts: list[Facts],
    settings: Config = CONFIG,
    reached: tuple[Reached, ...] = (Reached(0, 1, 40001, None), Reached(1, 0, 13389, None)),
    pings: list[Ping] | None = None,
) -> list[Finding]:
    """Return the findings of all judges."""
    keys = network.keys_of(PORTS)
    return [
        *host.judge(facts, settings.preflight, npus=facts[0].npus is not None, on_loopback=False),
        *tuning.judge(facts, npus=facts[0].npus is not None, on_loopback=False),
        *network.interfaces(facts, settings, on_loopback=False),
        *network.ports(facts, keys),
        *network.paths(facts, reached, keys, PORTS.api),
        *npu.judge(facts, settings),
        *fabric.judge(facts, all_pings(facts) if pings is None else pings, on_loopback=False),
    ]


def wrong(findings: list[Finding]) -> list[tuple[str, str, str, str]]:
    """Return what is not a pass: state, node, device, check."""
    return [(one.state, one.node, one.device, one.check) for one in findings if one.state != "pass"]


def fake_node(folder: Path, state: Mapping[str, Any], count: int = 8) -> Path:
    """Make the programs and device files of a node in a directory. Returns its PATH; files are in `<it>/dev`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("npu_smi", "hccn_tool"):
        shutil.copy(ROOT / "tests/fakes" / name, folder / name.replace("npu_smi", "npu-smi"))
    (folder / "npus.json").write_text(json.dumps({"count": count} | dict(state)))
    (folder / "dev").mkdir(exist_ok=True)
    for file in (*(f"davinci{index}" for index in range(count)), "davinci_manager", "devmm_svm", "hisi_hdc"):
        (folder / "dev" / file).touch()
    return folder
