"""Judge interfaces, ports and paths between the nodes, and propose the right interface. Pure.

HCCL, GLOO and TP take the name of an interface. A wrong one is the usual cause of "HCCL init failed" (article, 5).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence

from jobs.allocation.preflight.facts import Facts, Interface, Reached
from jobs.allocation.preflight.findings import Finding, State, not_run, passed
from jobs.cluster.interfaces import VIRTUAL, Address, find_interface, same_subnet
from jobs.cluster.ports import Ports
from jobs.core.config import Config
from jobs.core.errors import ConfigError

Keys = Mapping[int, str]
"""Config key that sets a port, by the port."""


def keys_of(ports: Ports) -> dict[int, str]:
    """Return the config keys of the engine's ports."""
    return {ports.api: "engine.port", ports.dp_rpc: "engine.data_parallel_rpc_port"}


def propose(interfaces: Sequence[Mapping[str, Interface]]) -> tuple[str, ...] | None:
    """Return for each node the interface that would work: all are up and lie in one subnet. None: there is no such set.

    One name for all nodes is preferred to several, then the order of HCCL: by name.
    """
    first = sorted(_usable(interfaces[0]))
    choices = [choice for _, network in first if (choice := _in_network(interfaces, network))]
    choices.sort(key=lambda names: len(set(names)))
    return choices[0] if choices else None


def _usable(interfaces: Mapping[str, Interface]) -> Iterator[tuple[str, ipaddress.IPv4Network]]:
    for name, interface in interfaces.items():
        if interface.up and not name.startswith(VIRTUAL):
            for ip, prefix in interface.addresses:
                yield name, ipaddress.IPv4Interface(f"{ip}/{prefix}").network


def _in_network(
    interfaces: Sequence[Mapping[str, Interface]], network: ipaddress.IPv4Network
) -> tuple[str, ...] | None:
    names = [sorted(name for name, its in _usable(node) if its == network) for node in interfaces]
    if not all(names):
        return None
    common = set(names[0]).intersection(*names[1:])
    return (min(common),) * len(names) if common else tuple(each[0] for each in names)


def advice(interfaces: Sequence[Mapping[str, Interface]], nodes: Sequence[str]) -> str:
    """Return what to set `hccl.socket_ifname` to, as a sentence."""
    names = propose(interfaces)
    if not names:
        return "No interface of one subnet is up on all nodes: give the nodes' interfaces addresses of one network."
    if len(set(names)) == 1:
        return f"Set hccl.socket_ifname={names[0]}."
    each = ", ".join(f"{name} on {node}" for node, name in zip(nodes, names, strict=True))
    spec = "=" + ",".join(dict.fromkeys(names))
    if all(_means(spec, its) == name for its, name in zip(interfaces, names, strict=True)):
        return f"Set 'hccl.socket_ifname=\"{spec}\"' ({each})."
    return f"Use {each}: set hccl.socket_ifname=auto, and let the names of the nodes resolve to that network."


def _means(spec: str, interfaces: Mapping[str, Interface]) -> str | None:
    known = {
        name: tuple(Address(ip, prefix) for ip, prefix in interface.addresses) for name, interface in interfaces.items()
    }
    try:
        return find_interface(spec, known)[0]
    except ConfigError:
        return None


def interfaces(facts: Sequence[Facts], config: Config, *, on_loopback: bool) -> list[Finding]:
    """Return whether every rank's interface is there, up, and in one subnet with rank 0's."""
    if on_loopback:
        return not_run(("network.interface", "network.master"), facts[0].node, "all ranks are on loopback")
    remedy = advice([one.interfaces for one in facts], [one.node for one in facts])
    head = facts[0]
    found = []
    for one in facts:
        reason = _wrong_interface(one, head, config.hccl.if_ip)
        if reason:
            found.append(Finding("network.interface", "fail", one.node, reason, remedy, one.interface))
        else:
            found.append(passed("network.interface", one.node, f"{one.interface} {one.address}/{one.prefix}"))
    return [*found, _master(head, config.cluster.master_address)]


def _wrong_interface(one: Facts, head: Facts, if_ip: str | None) -> str | None:
    if one.interface_problem:
        return one.interface_problem
    interface = one.interfaces.get(one.interface)
    if interface and not interface.up:
        return f"interface {one.interface} is down"
    mine = [ip for its in one.interfaces.values() for ip, _ in its.addresses]
    if if_ip not in (None, "auto") and if_ip not in mine:
        return f"hccl.if_ip={if_ip} is no address of this node ({', '.join(mine)}); auto takes each node's own"
    if not same_subnet(one.address, head.address, one.prefix):
        return f"{one.interface} has {one.address}/{one.prefix}: not in the subnet of {head.address} on {head.node}"
    return None


def _master(head: Facts, master: str | None) -> Finding:
    mine = [ip for its in head.interfaces.values() for ip, _ in its.addresses]
    if master is None or master in mine:
        return passed("network.master", head.node, master or head.address)
    reason = f"cluster.master_address={master} is no address of the first node ({', '.join(mine)})"
    return Finding("network.master", "fail", head.node, reason, "Leave cluster.master_address null.")


def ports(facts: Sequence[Facts], keys: Keys) -> list[Finding]:
    """Return whether the engine's ports are free on every node."""
    found = []
    for one in facts:
        for port, holder in one.busy.items():
            key = keys.get(port, "engine.env.HCCL_IF_BASE_PORT")
            remedy = f"End what holds it, or set {key} to a free port."
            # A client's connection has one of HCCL's ports by chance, and soon gives it back.
            state: State = "fail" if holder.listens or port in keys else "warn"
            reason = f"it is taken by {holder.text}"
            found.append(Finding("network.ports", state, one.node, reason, remedy, f"port {port}"))
        if one.host.reserved_ports:
            first, last = one.host.reserved_ports[0], one.host.reserved_ports[-1]
            reason = f"the kernel may give HCCL's ports {first} to {last} to any client of this node (EJ0003)"
            remedy = f"sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}"
            found.append(Finding("network.ports", "warn", one.node, reason, remedy))
        if not one.busy and not one.host.reserved_ports:
            shown = ", ".join(str(port) for port in one.listening if port in keys) or "none of the engine's"
            found.append(passed("network.ports", one.node, f"{shown} on this node"))
    return found


def paths(facts: Sequence[Facts], reached: Sequence[Reached], keys: Keys, api_port: int) -> list[Finding]:
    """Return whether the nodes reached each other. A closed API port is a warning: only clients elsewhere need it."""
    node = {one.rank: one.node for one in facts}
    if not reached:
        return not_run(("network.path",), facts[0].node, "there is one node only")
    found = []
    for one in reached:
        if one.problem:
            state: State = "warn" if one.port == api_port else "fail"
            what = keys.get(one.port, "a port as vLLM and HCCL choose them")
            reason = f"{node[one.rank]} does not reach {node[one.peer]} on port {one.port} ({what}): {one.problem}"
            remedy = "Open the firewall between the nodes: vLLM uses random ports too, so all ports must be open."
            found.append(Finding("network.path", state, "", reason, remedy, f"port {one.port}"))
    for rank in sorted({one.rank for one in reached}):
        good = [one for one in reached if one.rank == rank and not one.problem]
        if good:
            text = f"reached {len(good)} ports of {', '.join(dict.fromkeys(node[one.peer] for one in good))}"
            found.append(passed("network.path", node[rank], text))
    return found
