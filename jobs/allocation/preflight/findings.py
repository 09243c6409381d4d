"""What a check is and what it found. A check that could not run has its own state: it is never a pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jobs.core.errors import ConfigError, nearest

State = Literal["pass", "fail", "warn", "not-run"]

SEVERITY: tuple[State, ...] = ("fail", "warn", "not-run", "pass")
"""Worst first."""

NO_NPUS = "engine has no NPUs"
NO_TIME = "limits.preflight_s came first"


@dataclass(frozen=True)
class Check:
    """One check of the catalogue.

    Attributes:
        text: what it asks.
        node_fault: a failure is a fault of the node, so that the next submission may leave the node out. A wrong
            setting or another user's port is none.
    """

    text: str
    node_fault: bool = False


CHECKS: dict[str, Check] = {
    "host.versions": Check("tool, engine, image, model and kernel are the same on all nodes"),
    "host.clock": Check("the clocks agree", node_fault=True),
    "host.shm": Check("/dev/shm is large enough and free", node_fault=True),
    "host.memory": Check("memory is free", node_fault=True),
    "host.disk": Check("results.root, TMPDIR and the directories of the image have space", node_fault=True),
    "host.container": Check("the container runtime is there and answers"),
    "host.hugepages": Check("static huge pages hold no memory back"),
    "host.tuning": Check("governor, NUMA balancing and the like are as the tuning guide sets them, and alike"),
    "host.proxies": Check("no proxy stands between the nodes"),
    "network.interface": Check("the interface of hccl.socket_ifname is there, up, and in one subnet with its peers"),
    "network.master": Check("the master address is one of the first node's own"),
    "network.ports": Check("the ports of the engine are free"),
    "network.path": Check("the nodes reach each other on these ports, both ways"),
    "npu.files": Check("the device files are there and may be opened", node_fault=True),
    "npu.devices": Check("npu-smi shows all NPUs", node_fault=True),
    "npu.health": Check("all NPUs are healthy", node_fault=True),
    "npu.chip": Check("all NPUs are of the right chip", node_fault=True),
    "npu.memory": Check("NPU memory has its size and is idle", node_fault=True),
    "npu.processes": Check("no foreign process runs on an NPU", node_fault=True),
    "npu.driver": Check("the driver suits the release and is the same on all nodes", node_fault=True),
    "npu.firmware": Check("the firmware is the same on all nodes"),
    "npu.cann": Check("CANN is the release's own and the same on all nodes"),
    "fabric.link": Check("the network port of every NPU is up", node_fault=True),
    "fabric.health": Check("the network health of every NPU is Success", node_fault=True),
    "fabric.address": Check("every NPU has an address of its own", node_fault=True),
    "fabric.tls": Check("the TLS switch is the same on all NPUs"),
    "fabric.ping": Check("the NPUs of the nodes reach each other", node_fault=True),
}
"""All checks by their id, in the order in which they are shown."""


@dataclass(frozen=True)
class Finding:
    """What one check found on one node, or on one device of it.

    Attributes:
        check: id in CHECKS.
        node: host name; empty: it is about the nodes together, and no single one is to blame.
        device: for example `NPU 3`, `port 13389`; empty: the node as a whole.
        reason: for a pass the value that was seen, else what is wrong, or why it could not run.
        remedy: what to do.
    """

    check: str
    state: State
    node: str
    reason: str
    remedy: str = ""
    device: str = ""

    def __str__(self) -> str:
        where = " ".join(word for word in (self.node or "between the nodes", self.device) if word)
        ending = f". {self.remedy}" if self.remedy else ""
        return f"{where}: {self.check}: {self.reason.rstrip('.')}{ending}"


def passed(check: str, node: str, value: str) -> Finding:
    """Return a pass with the value that was seen."""
    return Finding(check, "pass", node, value)


def not_run(checks: Iterable[str], node: str, why: str) -> list[Finding]:
    """Return that these checks could not run on a node, and why."""
    return [Finding(check, "not-run", node, why) for check in checks]


def of_group(*groups: str) -> list[str]:
    """Return the ids of all checks of some groups (`npu`, `fabric`, ...)."""
    return [check for check in CHECKS if check.partition(".")[0] in groups]


def named(check: str, names: Sequence[str]) -> bool:
    """Return whether a list of ids and groups names this check."""
    return check in names or check.partition(".")[0] in names


def check_names(key: str, names: Sequence[str]) -> None:
    """Raise ConfigError where `preflight.skip` or `preflight.warn_only` names no check and no group of checks."""
    valid = [*CHECKS, *dict.fromkeys(check.partition(".")[0] for check in CHECKS)]
    for name in names:
        if name not in valid:
            raise ConfigError(key, name, "there is no such check", nearest(name, valid))


def settle(found: Iterable[Finding], skip: Sequence[str], warn_only: Sequence[str]) -> list[Finding]:
    """Apply the settings to what was found, and put it in the order of the catalogue.

    A skipped check becomes "not-run" once for each node; a failure that shall only warn becomes a warning.
    """
    result: dict[Finding, None] = {}
    order = {check: index for index, check in enumerate(CHECKS)}
    for one in sorted(found, key=lambda item: order[item.check]):
        if named(one.check, skip):
            one = Finding(one.check, "not-run", one.node, "preflight.skip names it")
        elif one.state == "fail" and named(one.check, warn_only):
            one = replace(one, state="warn")
        result[one] = None
    return list(result)


def failures(found: Iterable[Finding]) -> list[Finding]:
    """Return the failures, in their order."""
    return [one for one in found if one.state == "fail"]


def worst(found: Iterable[Finding]) -> State:
    """Return the worst state of some findings; "not-run" where there are none."""
    states = {one.state for one in found}
    return next((state for state in SEVERITY if state in states), "not-run")
