"""How a node is tuned: settings of its kernel that figures depend on, read, compared, and held against the guide.

The guide is vllm-ascend's (0.30.0rc2, developer_guide/performance_and_debug/optimization_and_tuning.md, 1 and 4). For
transparent huge pages and the clock source it says nothing: they are compared between the nodes alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jobs.allocation.node.audit import allocator
from jobs.allocation.preflight.facts import Facts
from jobs.allocation.preflight.findings import Finding, not_run, passed

FILES = {
    "numa_balancing": ("/proc/sys/kernel/numa_balancing",),
    "swappiness": ("/proc/sys/vm/swappiness",),
    "sched_migration_cost_ns": (
        "/proc/sys/kernel/sched_migration_cost_ns",
        "/sys/kernel/debug/sched/migration_cost_ns",  # since Linux 5.13, for root alone
    ),
    "transparent_hugepages": ("/sys/kernel/mm/transparent_hugepage/enabled",),
    "clock_source": ("/sys/devices/system/clocksource/clocksource0/current_clocksource",),
}

GOVERNORS = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"

GUIDE = {
    "governor": ("performance", f"echo performance | tee {GOVERNORS}"),
    "numa_balancing": ("0", "sysctl -w kernel.numa_balancing=0"),
    "swappiness": ("0", "sysctl -w vm.swappiness=0"),
    "sched_migration_cost_ns": ("50000", "sysctl -w kernel.sched_migration_cost_ns=50000"),
}
"""What the guide sets, and the command (of root) that does."""


def read(engine_env: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """Return the settings of this node as text; what it does not tell is left out.

    `engine_env` is the engine's whole environment: its allocator comes with LD_PRELOAD.
    """
    found = {"allocator": allocator(engine_env.get("LD_PRELOAD", "")), "cpus": _ranges(os.sched_getaffinity(0))}
    governors = Counter(text for path in root.glob(GOVERNORS.lstrip("/")) if (text := content_of(path)))
    if governors:
        alone = len(governors) == 1
        found["governor"] = ", ".join(name if alone else f"{name} x {n}" for name, n in sorted(governors.items()))
    for name, paths in FILES.items():
        texts = (content_of(root / path.lstrip("/")) for path in paths)
        if text := next((text for text in texts if text), ""):
            chosen = re.search(r"\[(\w+)\]", text)
            found[name] = chosen[1] if chosen else text
    return found


def judge(facts: Sequence[Facts], *, npus: bool, on_loopback: bool) -> list[Finding]:
    """Return where a node differs from the guide, with the command that mends it, and where nodes differ.

    The guide is for NPUs. `facts` are of all ranks, rank 0 first; on loopback all are on one host.
    """
    found: list[Finding] = []
    nodes = facts[:1] if on_loopback else facts
    for one in nodes:
        if not one.host.tuning:
            found += not_run(("host.tuning",), one.node, "nothing of it is to be seen")
            continue
        wrong = [
            _warning(one.node, f"{name} is {one.host.tuning[name]}, the guide sets {value}", f"As root: {command}")
            for name, (value, command) in GUIDE.items()
            if npus and one.host.tuning.get(name, value) != value
        ]
        shown = ", ".join(f"{name} {value}" for name, value in sorted(one.host.tuning.items()))
        found += wrong or [passed("host.tuning", one.node, shown)]
    return found + [each for one in nodes[1:] for each in _differences(facts[0], one)]


def _differences(first: Facts, other: Facts) -> list[Finding]:
    here, there, found = first.host.tuning, other.host.tuning, []
    for name in sorted(here.keys() & there.keys()):
        if here[name] != there[name]:
            reason = f"{name} is {here[name]} on {first.node} and {there[name]} on {other.node}"
            remedy = f"Make them alike; as root: {GUIDE[name][1]}" if name in GUIDE else "Make them alike."
            found.append(_warning("", reason, remedy))
    return found


def _warning(node: str, reason: str, remedy: str) -> Finding:
    return Finding("host.tuning", "warn", node, reason, remedy)


def states(facts: Iterable[Facts]) -> dict[str, dict[str, str]]:
    """Return the settings by node, of the nodes that told any."""
    return {one.node: one.host.tuning for one in facts if one.host.tuning}


def digest(found: Mapping[str, Mapping[str, str]]) -> str | None:
    """Return a short digest of the settings of some nodes, whatever their names; None: nothing is known."""
    if not found:
        return None
    values = sorted(json.dumps(dict(one), sort_keys=True) for one in found.values())
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def content_of(path: Path) -> str:
    """Return what a file of the kernel says; empty: nothing."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _ranges(cpus: Iterable[int]) -> str:
    """Return CPUs as the kernel writes them: 0-3,8."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{low}-{high}" if high > low else str(low) for low, high in runs)
