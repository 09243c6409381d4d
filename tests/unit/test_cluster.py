from __future__ import annotations

import socket
from collections.abc import Sequence

import ifaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.cluster.interfaces import (
    Address,
    check_master,
    choose_interface,
    find_interface,
    interface_addresses,
    same_subnet,
)
from jobs.cluster.nodelist import Task, expand_nodelist, task_from_slurm
from jobs.cluster.ports import Ports, derive_ports
from jobs.core.errors import ConfigError, RunError
from jobs.core.layout import node_of, start_rank

# Recorded from `scontrol show hostnames` of Slurm 22.05.8.
GOLDEN = {
    "": "",
    "a": "a",
    "a,b,a": "a b a",
    ",a,,b,": "a b",
    " a, b\tc\nd ": "a b c d",
    "b,a": "b a",
    "a1-3": "a1-3",
    "007,8": "007 8",
    "10.0.0.[1-2]": "10.0.0.1 10.0.0.2",
    "a[001-003,012]b[1-2]": "a001b1 a001b2 a002b1 a002b2 a003b1 a003b2 a012b1 a012b2",
    "a[1-2]b[1-2]c[1-2]": "a1b1c1 a1b1c2 a2b1c1 a2b1c2 a1b2c1 a1b2c2 a2b2c1 a2b2c2",
    "a[1-2]b[1-2]c[1-2]d[1-2]": (
        "a1b1c1d1 a1b1c1d2 a2b1c1d1 a2b1c1d2 a1b2c1d1 a1b2c1d2 a2b2c1d1 a2b2c1d2 "
        "a1b1c2d1 a1b1c2d2 a2b1c2d1 a2b1c2d2 a1b2c2d1 a1b2c2d2 a2b2c2d1 a2b2c2d2"
    ),
    "a[1-2][3-4]x[5]": "a13x5 a23x5 a14x5 a24x5",
    "a[1][2]": "a12",
    "a[1]5b[1-2]": "a15b1 a15b2",
    "[1-3]": "1 2 3",
    "a [1-2]": "a 1 2",
    "a[1-2] b": "a1 a2 b",
    "a[09-11]": "a09 a10 a11",
    "a[9-011]": "a9 a10 a11",
    "a[99-101],b": "a99 a100 a101 b",
    "a[0001-2]": "a0001 a0002",
    "a[00]": "a00",
    "a[1-01]": "a1",
    "a[1-]": "a1",
    "a[1,1]": "a1 a1",
    "a[3,1]": "a3 a1",
    "a[1-3,2]": "a1 a2 a3 a2",
    "a[1-2],a[1-2]": "a1 a2 a1 a2",
    "a[5,1-2,09-10,3-]b[1]": "a5b1 a1b1 a2b1 a09b1 a10b1 a3b1",
    "a[1] b[2-3]x[4]": "a1 b2x4 b3x4",
}

# Refused by the same scontrol ("Invalid hostlist").
REFUSED = [
    "a[]", "a[1,]", "a[,1]", "a[1,,2]", "a[-1]", "a[-]", "a[1--2]", "a[1-2-3]", "a[x]", "a[1-x]", "a[1x2]",
    "a[0x1]", "a[1-3:2]", "a[2-1]", "a[10-9]", "a[2-1]b[1]", "a[ 1-2 ]", "a[b]c[1-2]", "a[[1-2]]", "a[1-2]]",
    "a[1]]b[2]", "a[0-65536]", "x,a[2-1],y",
]  # fmt: skip

# Here scontrol invents a host (`a[1-2` becomes `a]`) or a number (`a[1, 2]` becomes a1 and a02).
STRICTER = ["a[1-2", "x,a[1,2", "a1-2]", "a]", "[", "]b[", "a[[1]b[2]", "a[1, 2]", "a[+1]", "a[1-2],b["]


@pytest.mark.parametrize("text", GOLDEN)
def test_nodelist_means_what_scontrol_says(text: str) -> None:
    assert expand_nodelist(text) == tuple(GOLDEN[text].split())


@pytest.mark.parametrize("text", REFUSED + STRICTER)
def test_bad_nodelist_is_refused_with_the_list_and_a_remedy(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand_nodelist(text)
    assert caught.value.key == "nodelist"
    assert caught.value.value == text
    assert "scontrol show hostnames" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a[1-2", "brackets of 'a[1-2' are not in pairs"),
        ("a[4-2]", "'4-2' runs backwards"),
        ("a[1,x]", "'x' in [1,x] is neither a number nor a range"),
        ("a[0-65536]", "'0-65536' has more than 65,536 hosts"),
        ("a[0-999]b[0-999]", "'a[0-999]b[0-999]' stands for more than 65,536 hosts"),
    ],
)
def test_bad_nodelist_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand_nodelist(text)
    assert words in caught.value.reason


def test_suffix_behind_the_brackets_is_read() -> None:
    assert expand_nodelist("a[1-2]-ib,b[01]c[3-4].lan") == ("a1-ib", "a2-ib", "b01c3.lan", "b01c4.lan")


def test_the_largest_range_is_expanded_in_full() -> None:
    hosts = expand_nodelist("a[0-65535]")
    assert (len(hosts), hosts[0], hosts[-1]) == (65_536, "a0", "a65535")


def test_start_rank_is_the_sum_of_the_sizes_before() -> None:
    assert [start_rank((1, 1), node) for node in range(2)] == [0, 1]
    assert [start_rank((4, 2, 1, 3), node) for node in range(4)] == [0, 4, 6, 7]


@pytest.mark.parametrize("node", [-1, 2])
def test_start_rank_of_no_node_is_an_error(node: int) -> None:
    with pytest.raises(IndexError):
        start_rank((1, 1), node)


def test_the_node_of_a_data_parallel_rank() -> None:
    assert [node_of((1, 3), rank) for rank in range(4)] == [0, 1, 1, 1]
    assert node_of((1, 0), 0) == 0, "one rank over two nodes counts on the first"
    with pytest.raises(IndexError):
        node_of((1, 3), 4)


@given(st.integers(), st.integers(min_value=1, max_value=1_249))
def test_jobs_whose_ids_are_near_never_share_a_port(job_id: int, distance: int) -> None:
    mine, theirs = derive_ports(job_id), derive_ports(job_id + distance)
    blocks = [set(range(ports.api, ports.api + 10)) for ports in (mine, theirs)]
    assert blocks[0].isdisjoint(blocks[1])


@given(st.integers())
def test_ports_stay_in_their_block_and_out_of_the_ranges_of_others(job_id: int) -> None:
    ports = derive_ports(job_id)
    used = {ports.api, ports.dp_rpc, ports.control}
    assert len(used) == 3
    assert used <= set(range(ports.api, ports.api + 10))
    assert ports.api >= 17_000  # above HCCL's device ports from 16666
    assert ports.api + 9 < 29_500  # below torch's 29500, node ports from 30000, ephemeral ports from 32768


def test_ids_that_differ_by_the_number_of_blocks_share_ports() -> None:
    assert derive_ports(7) == derive_ports(7 + 1_250)


def test_configured_ports_replace_derived_ones_one_by_one() -> None:
    derived = derive_ports(42)
    assert derive_ports(42, api=8000, dp_rpc=13389) == Ports(8000, 13389, derived.control)
    assert derive_ports(42, control=9000) == Ports(derived.api, derived.dp_rpc, 9000)


def test_the_same_port_twice_is_an_error_that_names_both_keys() -> None:
    with pytest.raises(ConfigError) as caught:
        derive_ports(42, api=8000, control=8000)
    assert caught.value.key == "cluster.control_port"
    assert caught.value.value == 8000
    assert "engine.port" in caught.value.reason


INTERFACES = {
    "lo": (Address("127.0.0.1", 8),),
    "docker0": (Address("172.17.0.1", 16),),
    "enp61s0f0np0": (Address("10.226.73.51", 24),),
    "enp61s0f0": (Address("10.226.72.51", 24), Address("fe80::1", 64)),
    "enp61s0f1": (Address("fe80::2", 64),),
    "ib0": (),
}


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("enp61s0f0", ("enp61s0f0", "enp61s0f0np0")),
        ("enp", ("enp61s0f0", "enp61s0f0np0", "enp61s0f1")),
        ("=enp61s0f0", ("enp61s0f0",)),
        ("=enp", ()),
        ("ib,enp61s0f1", ("ib0", "enp61s0f1")),
        ("=lo,enp61s0f1", ("lo", "enp61s0f1")),
        ("enp61s0f1,enp", ("enp61s0f1", "enp61s0f0", "enp61s0f0np0")),
        ("^enp", ("ib0", "docker0", "lo")),
        ("^enp,docker", ("ib0", "lo")),
        ("^=enp61s0f0", ("enp61s0f0np0", "enp61s0f1", "ib0", "docker0", "lo")),
        ("eth0", ()),
        (None, ("enp61s0f0", "enp61s0f0np0", "enp61s0f1", "ib0", "docker0", "lo")),
    ],
)
def test_interface_setting_means_what_hccl_documents(spec: str | None, chosen: Sequence[str]) -> None:
    assert choose_interface(spec, tuple(INTERFACES)) == chosen


@pytest.mark.parametrize("spec", ["^", "=", "^=", "=^eth", "eth0,", ",eth0", "eth0,^ib0", "==eth0"])
def test_malformed_interface_setting_is_an_error(spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_interface(spec, tuple(INTERFACES))
    assert (caught.value.key, caught.value.value) == ("hccl.socket_ifname", spec)


def test_interface_is_the_first_match_with_an_ipv4_address() -> None:
    assert find_interface("enp61s0f0", INTERFACES) == ("enp61s0f0", Address("10.226.72.51", 24))
    assert find_interface("ib,enp61s0f1,lo", INTERFACES) == ("lo", Address("127.0.0.1", 8))
    assert find_interface(None, INTERFACES) == ("enp61s0f0", Address("10.226.72.51", 24))


def test_wrong_interface_name_proposes_the_nearest_and_lists_all() -> None:
    with pytest.raises(ConfigError) as caught:
        find_interface("=enp61s0f2", INTERFACES)
    error = caught.value
    assert (error.key, error.value) == ("hccl.socket_ifname", "=enp61s0f2")
    assert error.reason == "no interface of this host matches"
    assert error.remedy.startswith("Set hccl.socket_ifname=enp61s0f0.")
    assert "enp61s0f0np0 (10.226.73.51/24)" in error.remedy
    assert "ib0 (no IPv4 address)" in error.remedy


def test_interface_name_like_no_other_proposes_an_interface_of_the_network_and_not_lo() -> None:
    with pytest.raises(ConfigError, match=r"Set hccl\.socket_ifname=ib7\."):
        find_interface(
            "wlan", {"lo": INTERFACES["lo"], "docker0": INTERFACES["docker0"], "ib7": (Address("10.0.0.7", 24),)}
        )


def test_interface_without_ipv4_address_is_named_in_the_reason() -> None:
    with pytest.raises(ConfigError) as caught:
        find_interface("=ib0,enp61s0f1", INTERFACES)
    assert caught.value.reason == "ib0, enp61s0f1: no IPv4 address"


def test_host_without_any_address_gets_another_remedy() -> None:
    with pytest.raises(ConfigError, match=r"Give the nodes' interface an IPv4 address\. .*: ib0 \(no IPv4"):
        find_interface("eth0", {"ib0": ()})


def test_loopback_interface_of_this_host_has_its_address() -> None:
    assert Address("127.0.0.1", 8) in interface_addresses()["lo"]
    assert find_interface("=lo", interface_addresses())[1].ip == "127.0.0.1"


def test_ipv4_comes_first_whatever_the_kernel_lists_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ips = [ifaddr.IP(("fd00::1", 0, 0), 64, "eth0"), ifaddr.IP("10.0.0.1", 24, "eth0")]

    def get_adapters(include_unconfigured: bool) -> list[ifaddr.Adapter]:
        bare = [ifaddr.Adapter("ib0", "ib0", [])] if include_unconfigured else []
        return [ifaddr.Adapter("eth0", "eth0", ips), *bare]

    monkeypatch.setattr(ifaddr, "get_adapters", get_adapters)
    assert interface_addresses() == {"eth0": (Address("10.0.0.1", 24), Address("fd00::1", 64)), "ib0": ()}


def test_every_address_found_can_be_bound_here() -> None:
    found = [addresses[0] for addresses in interface_addresses().values() if addresses]
    for address in (address for address in found if ":" not in address.ip):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((address.ip, 0))


@pytest.mark.parametrize(
    ("address", "peer", "prefix", "same"),
    [
        ("10.226.72.51", "10.226.72.52", 24, True),
        ("10.226.72.51", "10.226.73.52", 24, False),
        ("10.226.72.51", "10.226.73.52", 23, True),
        ("127.0.0.1", "127.0.1.1", 8, True),
        ("10.0.0.1", "10.0.0.1", 32, True),
        ("10.0.0.1", "fd00::1", 24, False),
    ],
)
def test_same_subnet(address: str, peer: str, prefix: int, same: bool) -> None:
    assert same_subnet(address, peer, prefix) is same


def test_master_that_both_ways_agree_on_gives_no_warning() -> None:
    assert check_master("10.0.0.1", ["192.168.0.1", "10.0.0.1"], "10.0.0.2", 24) is None


def test_master_that_the_host_name_does_not_resolve_to_gives_a_warning() -> None:
    warning = check_master("10.0.0.1", ["192.168.0.1"], "10.0.0.2", 24)
    assert warning is not None
    assert "10.0.0.1" in warning
    assert "resolves to here (192.168.0.1)" in warning
    assert "network" not in warning


def test_master_behind_a_name_that_does_not_resolve_gives_a_warning() -> None:
    assert "(nothing)" in (check_master("10.0.0.1", [], "10.0.0.2", 24) or "")


def test_master_outside_the_network_of_the_own_interface_gives_a_warning() -> None:
    warning = check_master("172.17.0.1", ["172.17.0.1"], "10.0.0.2", 24)
    assert warning is not None
    assert "own interface (10.0.0.2/24)" in warning
    assert "resolves" not in warning


def test_master_that_fails_both_checks_gets_one_sentence_with_both() -> None:
    warning = check_master("127.0.0.1", ["10.0.0.1"], "10.0.0.2", 24)
    assert warning is not None
    assert "own interface" in warning
    assert "resolves" in warning
    assert warning.count("master address") == 1


STEP = {
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "npu[07,09,11]",
    "SLURM_STEP_NODELIST": "npu[09,11]",
    "SLURMD_NODENAME": "npu11",
}


def test_task_is_read_from_the_step() -> None:
    assert task_from_slurm(STEP) == Task(1, 2, 4711, ("npu09", "npu11"), "npu11")


def test_task_falls_back_to_the_nodelist_of_the_job_and_to_its_own_place_in_it() -> None:
    env = {
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": "3",
        "SLURM_JOB_NODELIST": "b,a",
    }
    assert task_from_slurm(env) == Task(0, 2, 3, ("b", "a"), "b")


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID"])
@pytest.mark.parametrize("value", [None, ""])
def test_missing_variable_says_how_to_start(name: str, value: str | None) -> None:
    env = {key: old for key, old in STEP.items() if key != name} | ({} if value is None else {name: value})
    with pytest.raises(RunError) as caught:
        task_from_slurm(env)
    assert caught.value.key == name
    assert caught.value.remedy == "Start it by srun inside an allocation, or use cluster=local"


def test_missing_nodelists_are_an_error() -> None:
    env = {key: value for key, value in STEP.items() if not key.endswith("_NODELIST")}
    with pytest.raises(RunError) as caught:
        task_from_slurm(env)
    assert caught.value.key == "SLURM_JOB_NODELIST"


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"SLURM_PROCID": "one"}, "SLURM_PROCID", "not a whole number"),
        ({"SLURM_PROCID": "2"}, "SLURM_PROCID", "ranks 0 to 1"),
        ({"SLURM_PROCID": "-1"}, "SLURM_PROCID", "ranks 0 to 1"),
        ({"SLURM_NTASKS": "16"}, "SLURM_NTASKS", "has 2 nodes"),
        ({"SLURM_STEP_NODELIST": "npu[09"}, "SLURM_STEP_NODELIST", "not in pairs"),
        ({"SLURMD_NODENAME": "npu09"}, "SLURMD_NODENAME", "rank 1 belongs on npu11"),
    ],
)
def test_environment_that_contradicts_itself_is_an_error(change: dict[str, str], key: str, words: str) -> None:
    with pytest.raises(RunError) as caught:
        task_from_slurm(STEP | change)
    assert caught.value.key == key
    assert words in caught.value.reason
