"""The two nodes: namespaces, the bridge between them and the cables. Each function is safe to call twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from layout import Layout, Node
from processes import run


def enter(lab: Layout, node: Node) -> list[str]:
    """Return the words to put before a command that shall run on the node.

    `ip netns exec` would not do: it mounts /sys anew, and slurmd then finds no cgroups.
    """
    return ["nsenter", f"--net={lab.namespace(node, 'net')}", f"--uts={lab.namespace(node, 'uts')}", "--"]


def make(lab: Layout) -> None:
    """Make what is missing of the bridge, the namespaces and the cables; bring every link up."""
    if not _link_exists(lab.bridge):
        run(["ip", "link", "add", lab.bridge, "type", "bridge"])
    run(["ip", "address", "replace", f"{lab.address}/24", "dev", lab.bridge])
    run(["ip", "link", "set", lab.bridge, "up"])
    for node in lab.nodes:
        _make_node(lab, node)


def _make_node(lab: Layout, node: Node) -> None:
    net, uts = lab.namespace(node, "net"), lab.namespace(node, "uts")
    if not (_is_mounted(net) and _is_mounted(uts)):
        _remove_node(lab, node)
        net.touch()
        uts.touch()
        run(["unshare", f"--net={net}", f"--uts={uts}", "true"])
    if not _link_exists(node.link):
        cable = ["ip", "link", "add", node.link, "master", lab.bridge, "type", "veth"]
        run([*cable, "peer", "name", "eth0", "netns", net])
    # Set every time: the `up` before may have been ended halfway.
    for words in (
        ["hostname", node.name],
        ["ip", "link", "set", "lo", "up"],
        ["ip", "address", "replace", f"{node.address}/24", "dev", "eth0"],
        ["ip", "link", "set", "eth0", "up"],
    ):
        run([*enter(lab, node), *words])
    run(["ip", "link", "set", node.link, "master", lab.bridge, "up"])


def remove(lab: Layout) -> None:
    """Remove namespaces, cables and bridge, whichever of them exist."""
    for node in lab.nodes:
        _remove_node(lab, node)
    if _link_exists(lab.bridge):
        run(["ip", "link", "delete", lab.bridge])


def _remove_node(lab: Layout, node: Node) -> None:
    if _link_exists(node.link):
        run(["ip", "link", "delete", node.link])
    for kind in ("net", "uts"):
        file = lab.namespace(node, kind)
        while _is_mounted(file):
            run(["umount", file])
        file.unlink(missing_ok=True)


def set_cable(node: Node, *, up: bool) -> None:
    """Plug or pull the node's cable: its eth0 loses the carrier, as with a real switch."""
    run(["ip", "link", "set", node.link, "up" if up else "down"])


def cable_is_in(node: Node) -> bool:
    """True if the node's cable is there and plugged in."""
    flags = Path(f"/sys/class/net/{node.link}/flags")
    return flags.exists() and bool(int(flags.read_text(), 16) & 1)  # IFF_UP


def holder(lab: Layout) -> str | None:
    """Return the name of another link of this machine that holds the lab's address, or None."""
    if shutil.which("ip") is None:  # not installed yet: no lab was here
        return None
    shown = json.loads(run(["ip", "-json", "address", "show", "to", f"{lab.address}/24"]).stdout)
    names = [str(link["ifname"]) for link in shown if link.get("ifname")]
    return next((name for name in names if name != lab.bridge), None)


def _link_exists(name: str) -> bool:
    return Path(f"/sys/class/net/{name}").exists()


def _is_mounted(file: Path) -> bool:
    # Path.is_mount() knows directories only.
    return file.is_file() and file.stat().st_dev != file.parent.stat().st_dev
