"""The network interface that a rank uses on its host."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

from jobs.allocation.preflight.findings import named
from jobs.cluster.interfaces import VIRTUAL, find_interface, interface_addresses, interfaces_up
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.layout import LOOPBACK

Interface = tuple[str, str, int]
"""Name, IPv4 address and prefix length in bits."""

ON_LOOPBACK: Interface = (LOOPBACK, "127.0.0.1", 8)


def usable_interface(config: Config) -> tuple[Interface, str | None]:
    """Return this rank's interface, and why it is only a stand-in for the one of the config.

    With a wrong interface the ranks still meet, since they need the host names alone: then the preflight can tell for
    every node which interface would work. Without that check the error ends this rank at once.
    """
    try:
        return own_interface(config), None
    except ConfigError as error:
        checks = config.preflight
        if not checks.enabled or named("network.interface", (*checks.skip, *checks.warn_only)):
            raise
        auto = replace(config, hccl=replace(config.hccl, socket_ifname="auto"))
        return own_interface(auto), f"hccl.socket_ifname={error.value}: {error.reason}"


def own_interface(config: Config) -> Interface:
    """Return name, IPv4 address and prefix length of the interface that the ranks use on this host.

    `hccl.socket_ifname=auto` is the interface that holds the address of the host's own name; where the name
    resolves to loopback only, HCCL's own order decides among those that are up and may lead to another node: the
    bridge of a container runtime comes first by name, and leads nowhere.
    """
    interfaces = interface_addresses()
    spec = config.hccl.socket_ifname
    if spec == "auto":
        names = addresses_of(socket.gethostname())
        for name, addresses in interfaces.items():
            for address in addresses:
                if address.ip in names and name != LOOPBACK:
                    return name, address.ip, address.prefix
        spec, working = None, interfaces_up()
        up = {name: its for name, its in interfaces.items() if name in working}
        interfaces = {name: its for name, its in up.items() if not name.startswith(VIRTUAL)} or up
    name, found = find_interface(spec, interfaces)
    return name, found.ip, found.prefix


def addresses_of(host: str) -> list[str]:
    """Return the IPv4 addresses that a host name resolves to here; none where it does not."""
    with contextlib.suppress(OSError):
        return sorted({str(info[4][0]) for info in socket.getaddrinfo(host, None, socket.AF_INET)})
    return []
