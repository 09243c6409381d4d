"""Judge the network ports of the NPUs and the pings between them. Pure."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence

from jobs.allocation.preflight.facts import Facts, NpuPort, Ping
from jobs.allocation.preflight.findings import NO_NPUS, NO_TIME, Finding, State, not_run, of_group, passed

WITHOUT_DETECTION = ("Init", "Detect ip set")
"""Network health where no detection address is set: it says nothing, and the pings decide."""


def judge(facts: Sequence[Facts], pings: Sequence[Ping], *, on_loopback: bool) -> list[Finding]:
    """Return what is right and wrong with the fabric of all nodes."""
    found: list[Finding] = []
    for one in facts:
        if one.npus is None:
            found += not_run(of_group("fabric"), one.node, NO_NPUS)
        elif one.npus.ports_problem:
            found += not_run(of_group("fabric"), one.node, one.npus.ports_problem.reason)
        else:
            found += _node(one.node, one.npus.ports)
    known = {one.rank: one for one in facts if one.npus and one.npus.ports}
    if not known:
        return found
    found += _addresses(list(known.values()), on_loopback=on_loopback) + _tls(list(known.values()))
    return found + _pings(known, pings)


def pairs(facts: Sequence[Facts]) -> dict[int, list[tuple[int, str, int, int]]]:
    """Return which pings each rank makes: own device, address, rank and device of the peer.

    Of two NPUs one pings the other, since the answer comes the same way back: the ranks share the work evenly.
    Equal indices come first, since HCCL's rings use them most: what the time does not suffice for is the rest.
    """
    ports = {
        one.rank: {port.index: port.address for port in one.npus.ports if port.address}
        for one in facts
        if one.npus and one.npus.ports
    }
    work: dict[int, list[tuple[int, int, str, int, int]]] = {rank: [] for rank in ports}
    for rank in ports:
        for peer in (other for other in ports if other > rank):
            for device, address in ports[rank].items():
                for peer_device, peer_address in ports[peer].items():
                    distance = abs(peer_device - device)
                    if (device + peer_device) // 2 % 2 == 0:
                        work[rank].append((distance, device, peer_address, peer, peer_device))
                    else:
                        work[peer].append((distance, peer_device, address, rank, device))
    return {rank: [item[1:] for item in sorted(items)] for rank, items in work.items()}


def _node(node: str, ports: Sequence[NpuPort]) -> list[Finding]:
    found: list[Finding] = []
    for port in ports:
        device = f"NPU {port.index}"
        if port.problem:
            remedy = "The tool fails on an NPU that is dead: restart the node, or choose another one."
            found.append(Finding("fabric.link", "fail", node, port.problem.reason, remedy, device))
            continue
        for check, value in (("fabric.link", port.link), ("fabric.health", port.health)):
            if value is None:
                found.append(Finding(check, "not-run", node, "hccn_tool does not say it", device=device))
        if port.link not in ("UP", None):
            remedy = f"Check cable and switch; hccn_tool -i {port.index} -link -g must say UP. Or choose another node."
            found.append(Finding("fabric.link", "fail", node, f"its link is {port.link}", remedy, device))
        if port.health not in ("Success", None):
            state: State = "warn" if port.health in WITHOUT_DETECTION else "fail"
            remedy = f"See hccn_tool -i {port.index} -netdetect -g and -gateway -g; Init means that none is set."
            reason = f"its network health is {port.health}"
            found.append(Finding("fabric.health", state, node, reason, remedy, device))
        if not port.address:
            remedy = f"hccn_tool -i {port.index} -ip -s address A netmask M (as root), or choose another node."
            found.append(Finding("fabric.address", "fail", node, "it has no address", remedy, device))
    bad = {one.check for one in found}
    values = {"fabric.link": f"{len(ports)} x UP", "fabric.health": f"{len(ports)} x Success"}
    return found + [passed(check, node, value) for check, value in values.items() if check not in bad]


def _addresses(facts: Sequence[Facts], *, on_loopback: bool) -> list[Finding]:
    holders: dict[str, list[tuple[Facts, NpuPort]]] = {}
    for one in facts:
        for port in one.npus.ports if one.npus else ():
            if port.address:
                holders.setdefault(port.address, []).append((one, port))
    found = []
    for address, held in holders.items():
        # The ranks of a local run share one host, and so its NPUs.
        if len(held) > 1 and not on_loopback:
            where = ", ".join(f"{one.node} NPU {port.index}" for one, port in held)
            reason, remedy = f"{address} is given to {where}", "Give every NPU an address of its own (/etc/hccn.conf)."
            found.append(Finding("fabric.address", "fail", "", reason, remedy))
    for one in facts:
        ports = [port for port in (one.npus.ports if one.npus else ()) if port.address]
        networks = sorted({str(ipaddress.IPv4Interface(f"{port.address}/{port.netmask}").network) for port in ports})
        if len(ports) == len(one.npus.ports if one.npus else ()):
            found.append(passed("fabric.address", one.node, f"{len(ports)} addresses in {', '.join(networks)}"))
    return found


def _tls(facts: Sequence[Facts]) -> list[Finding]:
    """TLS must be the same everywhere. The smaller side is named; with as many on as off no node is to blame."""
    sides: dict[bool, list[str]] = {True: [], False: []}
    found: list[Finding] = []
    for one in facts:
        for port in one.npus.ports if one.npus else ():
            if port.tls is None and not port.problem:
                reason = "hccn_tool does not say whether TLS is on"
                found.append(Finding("fabric.tls", "not-run", one.node, reason, device=f"NPU {port.index}"))
            elif port.tls is not None:
                sides[port.tls].append(f"{one.node} NPU {port.index}")
    if sides[True] and sides[False]:
        on, off = (
            f"{len(side)} NPUs ({', '.join(side[:3])}{', ...' if len(side) > 3 else ''})" for side in sides.values()
        )
        reason = f"TLS is on at {on} and off at {off}"
        remedy = "Make it the same on all, as root: hccn_tool -i N -tls -s enable 0"
        return [*found, Finding("fabric.tls", "fail", "", reason, remedy)]
    word = "on" if sides[True] else "off"
    return found + [passed("fabric.tls", one.node, f"{word} on all NPUs") for one in facts if not found]


def _pings(known: dict[int, Facts], pings: Sequence[Ping]) -> list[Finding]:
    first = known[min(known)].node
    if len(known) < 2:
        return not_run(("fabric.ping",), first, "there is one node only")
    if not pings:
        return not_run(("fabric.ping",), first, "no two NPUs of different nodes have addresses")
    bad = [ping for ping in pings if ping.why != NO_TIME and not ping.received]
    lossy = [ping for ping in pings if 0 < ping.received < ping.sent]
    late = [ping for ping in pings if ping.why == NO_TIME]
    found = _lost(known, bad, pings)
    for ping in lossy:
        reason = f"{_name(known, ping)}: {ping.received} of {ping.sent} answers came"
        found.append(Finding("fabric.ping", "warn", "", reason, "Check cable, optics and switch of the two."))
    if late:
        reason = f"{len(late)} of {len(pings)} pings were not made: {NO_TIME}"
        found.append(Finding("fabric.ping", "not-run", "", reason, "Raise limits.preflight_s."))
    good = len(pings) - len(bad) - len(lossy) - len(late)
    if good and not bad:
        found += [
            passed("fabric.ping", one.node, f"{good} of {len(pings)} pairs reach each other") for one in known.values()
        ]
    return found


def _lost(known: dict[int, Facts], bad: Sequence[Ping], pings: Sequence[Ping]) -> list[Finding]:
    """Name the NPU that is common to the lost pings, if there is one: all its own pings are lost."""
    tried: Counter[tuple[int, int]] = Counter()
    lost: Counter[tuple[int, int]] = Counter()
    for ping in pings:
        for end in ((ping.rank, ping.device), (ping.peer, ping.peer_device)):
            tried[end] += ping.why != NO_TIME
            lost[end] += ping in bad
    guilty = [end for end in lost if lost[end] == tried[end] and lost[end] > 1]
    remedy = "Check its cable, VLAN and gateway (hccn_tool -lldp, -route, -gateway), or choose another node."
    if guilty and len({rank for rank, _ in guilty}) == 1:
        found = []
        for rank, device in sorted(guilty):
            reason = f"none of {tried[rank, device]} pings to or from NPUs of other nodes was answered"
            found.append(Finding("fabric.ping", "fail", known[rank].node, reason, remedy, f"NPU {device}"))
        return found
    shown = [f"{_name(known, ping)}{f': {ping.why}' if ping.why else ''}" for ping in bad[:3]]
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    reason = f"{len(bad)} of {len(pings)} pings were lost: {'; '.join(shown)}{more}"
    return [Finding("fabric.ping", "fail", "", reason, remedy)] if bad else []


def _name(known: dict[int, Facts], ping: Ping) -> str:
    return f"{known[ping.rank].node} NPU {ping.device} to {known[ping.peer].node} NPU {ping.peer_device}"
