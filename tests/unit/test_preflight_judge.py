"""Each sickness of a node is named with node, device, check and remedy; healthy nodes pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from core_help import change, config
from preflight_help import (
    CONFIG,
    HEALTHY,
    ONE,
    TWO,
    all_pings,
    judge,
    node,
    nodes,
    npu_change,
    port_change,
    wrong,
)

from jobs.allocation.preflight import fabric, network
from jobs.allocation.preflight.facts import (
    UNKNOWN,
    Holder,
    Interface,
    NpuPort,
    Npus,
    Ping,
    Problem,
    Reached,
    Runtime,
    Space,
)
from jobs.allocation.preflight.findings import CHECKS, NO_NPUS, NO_TIME, Finding, check_names, settle, worst
from jobs.core.errors import ConfigError
from jobs.core.sweep_settings import Thresholds
from jobs.engines.ascend.npu_smi import NpuProcess

Wrong = tuple[str, str, str, str]


def test_two_healthy_nodes_pass_every_check() -> None:
    found = judge(nodes())
    assert wrong(found) == []
    assert {one.check for one in found} == set(CHECKS)


def test_another_image_under_one_tag_ends_nothing_since_a_rank_takes_that_of_rank_0() -> None:
    one, two = nodes()
    both = [
        replace(each, host=replace(each.host, versions=HEALTHY.versions | {"image": digest}))
        for each, digest in ((one, "sha256:01"), (two, "sha256:02"))
    ]
    [(state, _, _, check)] = wrong(judge(both))
    assert (state, check) == ("warn", "host.versions")


def test_container_runtimes_of_two_versions_are_told() -> None:
    one, two = nodes()
    both = [
        replace(each, host=replace(each.host, runtime=Runtime("docker", version)))
        for each, version in ((one, "20.10.24"), (two, "28.2.2"))
    ]
    [found] = [found for found in judge(both) if found.state == "warn"]
    assert found.reason.startswith("container runtime is docker 20.10.24 on")


def host(**changes: Any) -> dict[str, Any]:
    return {"host": replace(HEALTHY, **changes)}


def npus(**changes: Any) -> dict[str, Any]:
    whole = node(1).npus
    assert whole is not None
    return {"npus": replace(whole, **changes)}


SICK: dict[str, tuple[dict[str, Any], Wrong, str]] = {
    "dead NPU": (npu_change(3, health="Alarm"), ("fail", TWO, "NPU 3", "npu.health"), "Alarm"),
    "warm NPU": (npu_change(3, health="Warning"), ("warn", TWO, "NPU 3", "npu.health"), "Warning"),
    "wrong chip": (npu_change(5, name="Ascend910"), ("fail", TWO, "NPU 5", "npu.chip"), "910B"),
    "small NPU": (npu_change(5, total_mb=32768), ("fail", TWO, "NPU 5", "npu.memory"), "32768"),
    "memory in use": (npu_change(0, used_mb=9000), ("fail", TWO, "NPU 0", "npu.memory"), "9000 MB are in use"),
    "foreign process": (
        npu_change(7, processes=(NpuProcess(4711, "python3", 37709),)),
        ("fail", TWO, "NPU 7", "npu.processes"),
        "process 4711 python3",
    ),
    "lost NPU": (npus(npus=node(1).npus.npus[:7]), ("fail", TWO, "NPU 7", "npu.devices"), "does not show"),  # type: ignore[union-attr]
    "no right to a device": (
        npus(closed={"davinci2": "this user may not open it"}),
        ("fail", TWO, "/dev/davinci2", "npu.files"),
        "HwHiAiUser",
    ),
    "driver differs": (npus(driver="25.3.rc1"), ("fail", TWO, "", "npu.driver"), "25.3.rc1 differs from 25.5.0"),
    "firmware differs": (npus(firmware="7.7"), ("fail", "", "", "npu.firmware"), f"7.7 on {TWO}"),
    "CANN differs": (npus(cann="8.3.RC2"), ("fail", "", "", "npu.cann"), "8.3.RC2"),
    "link down": (port_change(2, link="DOWN"), ("fail", TWO, "NPU 2", "fabric.link"), "DOWN"),
    "bad health": (port_change(2, health="Fault"), ("fail", TWO, "NPU 2", "fabric.health"), "Fault"),
    "no detection": (port_change(2, health="Init"), ("warn", TWO, "NPU 2", "fabric.health"), "Init"),
    "TLS differs": (port_change(4, tls=True), ("fail", "", "", "fabric.tls"), f"1 NPUs ({TWO} NPU 4)"),
    "address given twice": (port_change(1, address="10.20.0.21"), ("fail", "", "", "fabric.address"), f"{ONE} NPU 1"),
    "mute link": (port_change(2, link=None), ("not-run", TWO, "NPU 2", "fabric.link"), "does not say"),
    "dead port": (
        port_change(6, link=None, problem=Problem("exit code 1", broken=True)),
        ("fail", TWO, "NPU 6", "fabric.link"),
        "exit code 1",
    ),
    "clock skew": ({"clock_s": -42.5}, ("fail", TWO, "", "host.clock"), "42.500 s behind"),
    "clock a little off": ({"clock_s": 0.8}, ("warn", TWO, "", "host.clock"), "0.800 s ahead"),
    "small shm": (host(shm=Space(0.0625, 0.06)), ("fail", TWO, "", "host.shm"), "0.06 GiB"),
    "full shm": (
        host(shm=Space(64, 0.2), leftovers=("psm_1a",)),
        ("fail", TWO, "", "host.shm"),
        "psm_1a",
    ),
    "no memory": (host(memory=Space(1024, 1.5)), ("fail", TWO, "", "host.memory"), "1.5 of 1024"),
    "no disk": (host(disks={"TMPDIR /tmp": Space(100, 0.1)}), ("fail", TWO, "", "host.disk"), "TMPDIR /tmp"),
    "huge pages": (host(hugepages_gib=512.0), ("warn", TWO, "", "host.hugepages"), "512.0"),
    "proxy set": (host(proxies={"http_proxy": "http://p:1"}), ("fail", TWO, "", "host.proxies"), "http://p:1"),
    "other tool": (
        host(versions=HEALTHY.versions | {"tool": "0.1.0 def"}),
        ("fail", "", "", "host.versions"),
        "tool is 0.1.0 abc",
    ),
    "other image": (
        host(versions=HEALTHY.versions | {"image": "sha256:02"}),
        ("fail", "", "", "host.versions"),
        "image is not there",
    ),
    "image that nobody can name": (
        host(versions=HEALTHY.versions | {"image": UNKNOWN}),
        ("not-run", TWO, "", "host.versions"),
        "image unknown",
    ),
    "busy port": (
        {"busy": {60000: Holder("process 99 python3 of bob")}},
        ("fail", TWO, "port 60000", "network.ports"),
        "process 99",
    ),
    "port of a client": (
        {"busy": {60000: Holder("process 98 ssh of bob", listens=False)}},
        ("warn", TWO, "port 60000", "network.ports"),
        "process 98",
    ),
    "unreserved ports": (
        host(reserved_ports=tuple(range(60000, 60016))),
        ("warn", TWO, "", "network.ports"),
        "60000-60015",
    ),
    "wrong interface": (
        {"interface_problem": "hccl.socket_ifname=enp61s0f0: no interface of this host matches"},
        ("fail", TWO, "enp61s0f0", "network.interface"),
        "no interface of this host",
    ),
}


@pytest.mark.parametrize("name", SICK)
def test_a_sick_node_is_named(name: str) -> None:
    changes, expected, words = SICK[name]
    found = judge(nodes(**changes))
    [one] = [one for one in found if one.state != "pass" and one.check == expected[3]]
    assert (one.state, one.node, one.device, one.check) == expected
    assert words in f"{one.reason} {one.remedy}"
    assert one.remedy or one.state == "not-run"
    assert str(one).count(one.check) == 1
    # A lost NPU and a dead port take their pings along; nothing else is blamed for them.
    others = {row[3] for row in wrong(found)} - {expected[3]}
    assert others <= ({"fabric.address"} if name == "dead port" else set()), others


def test_a_busy_port_of_the_config_names_its_key() -> None:
    facts = [node(0, busy={13389: Holder("process 7 vllm of eve", listens=False)}), node(1)]
    [one] = [f for f in judge(facts) if f.state == "fail"]
    assert (one.node, one.device) == (ONE, "port 13389")
    assert "engine.data_parallel_rpc_port" in one.remedy


def test_a_path_that_is_closed_is_nobodys_fault_but_fails() -> None:
    closed = (Reached(0, 1, 40001, None), Reached(1, 0, 13389, "no answer within 5 s: a firewall drops it"))
    [one] = [f for f in judge(nodes(), reached=closed) if f.state != "pass"]
    assert (one.state, one.node, one.device, one.check) == ("fail", "", "port 13389", "network.path")
    assert f"{TWO} does not reach {ONE} on port 13389 (engine.data_parallel_rpc_port)" in one.reason
    api = (Reached(0, 1, 40001, None), Reached(1, 0, 8000, "Connection refused"))
    assert wrong(judge(nodes(), reached=api)) == [("warn", "", "port 8000", "network.path")]


# -- the interface ------------------------------------------------------------------------------------------------


def interfaces(**addresses: str) -> dict[str, Interface]:
    return {name: Interface(True, ((ip, 24),) if ip else ()) for name, ip in addresses.items()}


def test_the_interface_that_works_on_all_nodes_is_proposed() -> None:
    one, two = interfaces(bond0="10.0.0.1", eth0="192.168.1.1"), interfaces(bond0="10.0.0.2", eth0="192.168.9.2")
    assert network.propose([one, two]) == ("bond0", "bond0")
    assert network.advice([one, two], [ONE, TWO]) == "Set hccl.socket_ifname=bond0."


def test_nodes_whose_interface_have_other_names_get_a_list() -> None:
    one, two = interfaces(enp1="10.0.0.1"), interfaces(enp9="10.0.0.2", lo="127.0.0.1")
    assert network.propose([one, two]) == ("enp1", "enp9")
    assert f"'hccl.socket_ifname=\"=enp1,enp9\"' (enp1 on {ONE}, enp9 on {TWO})" in network.advice(
        [one, two], [ONE, TWO]
    )


def test_a_list_that_would_mean_another_interface_is_not_proposed() -> None:
    one, two = interfaces(enp1="10.0.0.1"), interfaces(enp1="172.30.0.9", enp9="10.0.0.2")
    assert network.propose([one, two]) == ("enp1", "enp9")
    assert "hccl.socket_ifname=auto" in network.advice([one, two], [ONE, TWO])


def test_interface_that_lead_nowhere_are_not_proposed() -> None:
    one = interfaces(docker0="172.17.0.1", lo="127.0.0.1", veth1="10.5.0.1") | {
        "eth1": Interface(False, (("10.0.0.1", 24),))
    }
    assert network.propose([one, one]) is None
    assert "give the nodes' interfaces addresses" in network.advice([one, one], [ONE, TWO])


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"interfaces": {"enp61s0f0": Interface(False, (("10.0.0.2", 24),))}}, {}, "enp61s0f0 is down"),
        ({"address": "10.9.0.2"}, {}, "not in the subnet of 10.0.0.1"),
        ({}, {"hccl__if_ip": "10.0.0.1"}, "hccl.if_ip=10.0.0.1 is no address of this node"),
    ],
)
def test_an_interface_that_cannot_reach_its_peers(
    changes: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    found = network.interfaces(nodes(**changes), change(CONFIG, **settings), on_loopback=False)
    [one] = [one for one in found if one.state == "fail"]
    assert one.node == TWO
    assert words in one.reason


def test_a_master_address_of_another_host_is_found() -> None:
    settings = change(CONFIG, cluster__master_address="10.226.72.51")
    [one] = [one for one in judge(nodes(), settings) if one.state == "fail"]
    assert (one.check, one.node) == ("network.master", ONE)


# -- what cannot be known ------------------------------------------------------------------------------------


def test_without_npus_their_checks_are_not_passes() -> None:
    found = judge([node(0, npus=None), node(1, npus=None)])
    states = {(one.check.partition(".")[0], one.state) for one in found}
    assert {("npu", "not-run"), ("fabric", "not-run")} <= states
    assert {("npu", "pass"), ("fabric", "pass")}.isdisjoint(states)
    assert {one.reason for one in found if one.check.startswith("npu")} == {NO_NPUS}


def test_tiny_models_run_where_little_is_free() -> None:
    poor = replace(HEALTHY, shm=Space(0.06, 0.06), memory=Space(4, 1), disks={"TMPDIR /tmp": Space(1, 0.1)})
    found = judge([node(rank, npus=None, host=poor) for rank in (0, 1)])
    assert {one.state for one in found if one.check in ("host.shm", "host.memory", "host.disk")} == {"warn"}


@pytest.mark.parametrize("reason", ["npu-smi is not on this node", "no right to ask npu-smi: ret is -8005"])
def test_a_tool_that_cannot_run_is_no_pass_and_no_failure(reason: str) -> None:
    blind = Npus(problem=Problem(reason), ports_problem=Problem("hccn_tool is not on this node"))
    found = [one for one in judge(nodes(npus=blind)) if one.node == TWO and one.check[:3] in ("npu", "fab")]
    assert {one.state for one in found if one.check != "npu.files"} == {"not-run"}
    assert {one.check for one in found} >= {"npu.health", "npu.driver", "fabric.link", "fabric.ping"}


def test_a_tool_that_hangs_is_a_failure() -> None:
    hung = Npus(problem=Problem("npu-smi info: no answer within 15 s", broken=True), ports=node(1).npus.ports)  # type: ignore[union-attr]
    found = judge(nodes(npus=hung))
    assert ("fail", TWO, "", "npu.devices") in wrong(found)
    assert ("not-run", TWO, "", "npu.health") in wrong(found)


# -- pings ---------------------------------------------------------------------------------------------------


def test_the_ranks_share_the_pings_and_leave_no_pair_out() -> None:
    work = fabric.pairs(nodes())
    assert {rank: len(items) for rank, items in work.items()} == {0: 32, 1: 32}
    made = {(0, device, other) for device, _, _, other in work[0]} | {
        (0, other, device) for device, _, _, other in work[1]
    }
    assert len(made) == 64
    assert {abs(item[0] - item[3]) for item in work[0][:4]} == {0}, "equal indices first"
    assert work[0][0][1] == "10.20.1.20"


def test_an_npu_that_nobody_reaches_is_named() -> None:
    facts = nodes()
    [one] = [f for f in judge(facts, pings=all_pings(facts, lost=((1, 6),))) if f.state != "pass"]
    assert (one.state, one.node, one.device, one.check) == ("fail", TWO, "NPU 6", "fabric.ping")


def test_a_dead_switch_is_nobodys_npu() -> None:
    facts = nodes()
    lost = tuple((0, index) for index in range(8))
    [one] = [f for f in judge(facts, pings=all_pings(facts, lost)) if f.state != "pass"]
    assert (one.state, one.node, one.device) == ("fail", "", "")
    assert "64 of 64 pings were lost" in one.reason


def test_a_single_lost_pair_is_named_by_both_ends() -> None:
    facts = nodes()
    pings = [replace(p, received=0) if (p.device, p.peer_device) == (0, 0) else p for p in all_pings(facts)]
    [one] = [f for f in judge(facts, pings=pings) if f.state != "pass"]
    assert one.node == ""
    assert f"{ONE} NPU 0 to {TWO} NPU 0" in one.reason


def test_lost_packets_warn_and_missing_time_is_said() -> None:
    facts = nodes()
    pings = all_pings(facts)
    pings[0] = replace(pings[0], received=2)
    pings[1] = replace(pings[1], sent=0, received=0, why=NO_TIME)
    assert [(one.state, one.node) for one in judge(facts, pings=pings) if one.state != "pass"] == [
        ("warn", ""),
        ("not-run", ""),
    ]


def test_a_ping_that_the_tool_refuses_is_lost() -> None:
    facts = nodes()
    refused = [Ping(0, 0, 1, 0, why="hccn_tool -i 0 -ping: exit code 1")]
    [one] = [f for f in judge(facts, pings=refused) if f.state != "pass"]
    assert "exit code 1" in one.reason


def test_tls_off_by_a_missing_certificate_agrees_with_off() -> None:
    assert wrong(fabric.judge(nodes(**port_change(0, tls=False)), [], on_loopback=True))[0][3] == "fabric.ping"


def test_ports_without_an_answer_about_tls_are_not_passes() -> None:
    mute = tuple(NpuPort(i, "UP", "Success", None, f"10.20.1.{i}", "255.255.0.0") for i in range(8))
    found = [one for one in judge(nodes(**npus(ports=mute))) if one.check == "fabric.tls"]
    assert {one.state for one in found} == {"not-run"}


# -- settings ------------------------------------------------------------------------------------------------


def test_skip_and_warn_only_take_checks_and_groups() -> None:
    found = judge(nodes(**npu_change(3, health="Alarm")))
    skipped = settle(found, ["npu"], [])
    assert {one.state for one in skipped if one.check.startswith("npu")} == {"not-run"}
    assert len([one for one in skipped if one.check == "npu.health"]) == 2, "once a node"
    softened = settle(found, [], ["npu.health"])
    assert worst(softened) == "warn"
    assert [one.check for one in softened] == sorted((one.check for one in softened), key=list(CHECKS).index)


def test_names_of_checks_are_checked_before_the_submission() -> None:
    check_names("preflight.skip", ["npu", "host.shm"])
    with pytest.raises(ConfigError, match=r"Did you mean 'fabric.ping'"):
        check_names("preflight.skip", ["fabric.pin"])
    assert config("preflight.skip=[fabric.ping]").preflight.skip == ("fabric.ping",)


def test_the_limits_are_settings() -> None:
    loose = change(
        CONFIG,
        preflight__thresholds=Thresholds(npu_idle_mb=10000, clock_s=60.0, chip="Ascend"),
    )
    found = judge(nodes(**npu_change(0, used_mb=9000)), loose)
    assert {one.check for one in found if one.state == "fail"} == {"npu.chip"}
    late = judge(nodes(clock_s=42.0), loose)
    assert [one.state for one in late if one.check == "host.clock" and one.node == TWO] == ["warn"]


def test_a_finding_reads_as_a_sentence() -> None:
    one = Finding("npu.health", "fail", TWO, "its health is Alarm", "Reset the NPU.", "NPU 3")
    assert str(one) == f"{TWO} NPU 3: npu.health: its health is Alarm. Reset the NPU."
