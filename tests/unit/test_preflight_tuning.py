"""How nodes are tuned: what is read, where it differs from the guide or between nodes, and the digest of a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from preflight_help import HEALTHY, ONE, TWO, node, nodes

from jobs.allocation.node.audit import allocator, allocator_difference
from jobs.allocation.preflight import tuning
from jobs.allocation.preflight.facts import Facts


def tuned(**changes: str) -> Facts:
    return node(1, host=replace(HEALTHY, tuning=HEALTHY.tuning | changes))


@pytest.mark.parametrize(
    ("name", "value", "command"),
    [
        ("governor", "performance x 190, powersave x 2", "echo performance | tee"),
        ("numa_balancing", "1", "sysctl -w kernel.numa_balancing=0"),
        ("swappiness", "60", "sysctl -w vm.swappiness=0"),
        ("sched_migration_cost_ns", "500000", "sysctl -w kernel.sched_migration_cost_ns=50000"),
    ],
)
def test_what_is_not_as_the_guide_says_is_a_warning_with_its_command(name: str, value: str, command: str) -> None:
    facts = [node(0), tuned(**{name: value})]
    found = [one for one in tuning.judge(facts, npus=True, on_loopback=False) if one.state != "pass"]
    assert [(one.state, one.node) for one in found] == [("warn", TWO), ("warn", "")]
    assert all(value in one.reason and command in one.remedy for one in found)
    differs = [one for one in tuning.judge(facts, npus=False, on_loopback=False) if one.state != "pass"]
    assert [one.node for one in differs] == [""], "the guide is for NPUs; two nodes are to be alike in any case"


def test_what_the_guide_leaves_open_is_compared_alone() -> None:
    facts = [node(0), tuned(clock_source="tsc")]
    [found] = [one for one in tuning.judge(facts, npus=True, on_loopback=False) if one.state != "pass"]
    assert found.reason == f"clock_source is arch_sys_counter on {ONE} and tsc on {TWO}"
    blind = [node(0), node(1, host=replace(HEALTHY, tuning={}))]
    assert [one.state for one in tuning.judge(blind, npus=True, on_loopback=False)] == ["pass", "not-run"]


def test_reading_a_node(tmp_path: Path) -> None:
    for path, text in {
        "proc/sys/vm/swappiness": "60\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n",
        "sys/kernel/debug/sched/migration_cost_ns": "500000\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = tuning.read({"LD_PRELOAD": "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2"}, tmp_path)
    assert found.pop("cpus")
    assert found == {
        "allocator": "jemalloc",
        "governor": "performance x 1, powersave x 1",
        "sched_migration_cost_ns": "500000",
        "swappiness": "60",
        "transparent_hugepages": "madvise",
    }


def test_the_digest_knows_settings_and_no_names() -> None:
    first, other = (tuning.digest(tuning.states(facts)) for facts in (nodes(), nodes(node="elsewhere")))
    assert first == other and first
    assert tuning.digest(tuning.states([node(0), tuned(swappiness="60")])) != first
    assert tuning.digest({}) is None


def test_an_allocator_that_was_not_loaded() -> None:
    wanted = {"LD_PRELOAD": "/usr/lib/libtcmalloc_minimal.so.4"}
    assert allocator("7f 00:00 /usr/lib/x86_64-linux-gnu/libjemalloc.so.2") == "jemalloc"
    [found] = allocator_difference(wanted, "libc")
    assert str(found) == "allocator: intended 'tcmalloc', effective 'libc'" and not found.error
    for env, real in ((wanted, "tcmalloc"), (wanted, None), ({}, "jemalloc"), ({}, "libc")):
        assert not allocator_difference(env, real)
