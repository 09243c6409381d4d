"""Network interfaces of this host: their addresses, and which one `hccl.socket_ifname` means."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ifaddr
import psutil

from jobs.core.errors import ConfigError

VIRTUAL = ("docker", "virbr", "veth", "br-", "cni", "flannel", "cali", "tunl", "kube", "podman", "lo")
"""Beginnings of names of interfaces that never lead to another node."""


@dataclass(frozen=True)
class Address:
    """One address of an interface. `prefix` is the length of its network prefix in bits."""

    ip: str
    prefix: int


def interface_addresses() -> dict[str, tuple[Address, ...]]:
    """Return the interfaces of this host with their addresses, IPv4 first; an interface may have none."""
    interfaces: dict[str, tuple[Address, ...]] = {}
    for adapter in ifaddr.get_adapters(include_unconfigured=True):
        ips = sorted(adapter.ips, key=lambda ip: not ip.is_IPv4)  # stable: the kernel's order otherwise
        interfaces[adapter.name] = tuple(
            Address(ip.ip if isinstance(ip.ip, str) else ip.ip[0], ip.network_prefix) for ip in ips
        )
    return interfaces


def interfaces_up() -> frozenset[str]:
    """Return the names of the interfaces of this host that are up."""
    return frozenset(name for name, stats in psutil.net_if_stats().items() if stats.isup)


def choose_interface(spec: str | None, names: Sequence[str]) -> tuple[str, ...]:
    """Return the interfaces that an HCCL_SOCKET_IFNAME setting means, best first (CANN, envref_07_0075).

    `eth,enp` means names that begin so, `=eth0,enp0` exactly these, `^eth` all but names that begin so, and
    `^=eth0` all but exactly this. A plain item prefers the interface of exactly that name: GLOO and TP take
    the same setting as an exact name. `^...` and None leave HCCL's own order: by name, then docker, then lo.

    Raises:
        ConfigError: an item is empty or has an operator of its own.
    """
    spec = spec or ""
    listed = spec.lstrip("^=")
    operator = spec.removesuffix(listed)
    items = listed.split(",") if spec else []
    if operator not in ("", "=", "^", "^=") or any(not item or item[0] in "^=" for item in items):
        remedy = "Write name,name; one =, ^ or ^= at the front holds for all names (exact, not, not exactly)"
        raise ConfigError("hccl.socket_ifname", spec, "it has an empty name or a misplaced operator", remedy)

    def matches(name: str, item: str) -> bool:
        return name == item if "=" in operator else name.startswith(item)

    if "^" in operator or not spec:
        kept = (name for name in names if not any(matches(name, item) for item in items))
        return tuple(sorted(kept, key=_hccl_order))
    chosen = (name for item in items for name in sorted(names) if matches(name, item))  # sorted: exact first
    return tuple(dict.fromkeys(chosen))


def _hccl_order(name: str) -> tuple[int, str]:
    return (2 if name == "lo" else 1 if name.startswith("docker") else 0, name)


def find_interface(spec: str | None, interfaces: Mapping[str, tuple[Address, ...]]) -> tuple[str, Address]:
    """Return name and IPv4 address of the first interface that `hccl.socket_ifname` means and that has one.

    Raises:
        ConfigError: there is none. The error lists the interfaces of this host and proposes the likeliest one:
            a wrong interface name is the usual cause of a failed HCCL start.
    """
    order = sorted(interfaces, key=_hccl_order)
    first = {name: next((a for a in interfaces[name] if ":" not in a.ip), None) for name in order}
    chosen = choose_interface(spec, tuple(interfaces))
    for name in chosen:
        if address := first[name]:
            return name, address
    reason = f"{', '.join(chosen)}: no IPv4 address" if chosen else "no interface of this host matches"
    shown = {name: f"{a.ip}/{a.prefix}" if a else "no IPv4 address" for name, a in first.items()}
    found = "; ".join(f"{name} ({what})" for name, what in shown.items())
    usable = [name for name, address in first.items() if address]
    close = difflib.get_close_matches((spec or "").lstrip("^="), usable, n=1) or usable
    advice = f"Set hccl.socket_ifname={close[0]}" if close else "Give the nodes' interface an IPv4 address"
    raise ConfigError("hccl.socket_ifname", spec, reason, f"{advice}. Interfaces of this host: {found or 'none'}")


def same_subnet(address: str, peer: str, prefix: int) -> bool:
    """Tell whether two addresses lie in one network of that prefix length (bits)."""
    return ipaddress.ip_address(peer) in ipaddress.ip_interface(f"{address}/{prefix}").network


def check_master(published: str, resolved: Sequence[str], own: str, prefix: int) -> str | None:
    """Compare the address that rank 0 published with what this rank derives; return a warning or None.

    It is a warning, not an error: a name may rightly belong to another interface than the HCCL interface.

    Args:
        published: that rank 0 bound.
        resolved: what the first host's name resolves to on this host.
        own: of this rank's interface; `prefix` is the length of its network prefix in bits.
    """
    doubts: list[str] = []
    if not same_subnet(own, published, prefix):
        doubts.append(f"is not in the network of this rank's own interface ({own}/{prefix}): the interfaces may differ")
    if published not in resolved:
        names = ", ".join(resolved) or "nothing"
        doubts.append(f"is not what the first host's name resolves to here ({names})")
    return f"The master address {published} of rank 0 {', and '.join(doubts)}." if doubts else None
