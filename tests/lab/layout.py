"""Names, addresses, ports and paths of the lab: the one place where they are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

SYSTEM_SLURM_CONF = Path("/etc/slurm/slurm.conf")
HOSTS = Path("/etc/hosts")


@dataclass(frozen=True)
class Node:
    """One node: a network namespace with a host name, an address and a network interface `eth0` of its own."""

    name: str
    address: str
    link: str
    """The bridge's end of the node's cable, in the root namespace."""


@dataclass(frozen=True)
class Layout:
    """Where one lab lives. Two labs run side by side if name, subnet, first_port and root all differ.

    Args:
        root: directory that holds all state and logs; made by `up`, removed by `down`.
        name: prefix of node names, bridge and cables (at most 8 characters: Linux allows 15 for a link).
        subnet: first three bytes of the private network of the bridge.
        first_port: slurmctld; slurmd and slurmdbd take the next two.
        system_conf: link /etc/slurm/slurm.conf to this lab, so that plain `sbatch` finds it.
    """

    root: Path = Path("/var/lib/serving-lab")
    name: str = "npu"
    subnet: str = "10.213.0"
    first_port: int = 26817
    system_conf: bool = True
    nodes: tuple[Node, ...] = field(init=False)

    def __post_init__(self) -> None:
        nodes = tuple(Node(f"{self.name}-node{n}", f"{self.subnet}.{10 + n}", f"{self.name}-cable{n}") for n in (1, 2))
        object.__setattr__(self, "nodes", nodes)

    def node(self, key: str) -> Node:
        """Return the node with this name or number; ValueError names the valid ones."""
        for number, node in enumerate(self.nodes, start=1):
            if key in (node.name, str(number)):
                return node
        raise ValueError(f"no node {key!r}. Valid: 1, 2, {', '.join(node.name for node in self.nodes)}")

    @property
    def bridge(self) -> str:
        return f"{self.name}-bridge"

    @property
    def address(self) -> str:
        """Address of the root namespace (login and controller host) on the bridge."""
        return f"{self.subnet}.1"

    @property
    def login(self) -> str:
        """Name of the root namespace in /etc/hosts."""
        return f"{self.name}-login"

    @property
    def slurmctld_port(self) -> int:
        return self.first_port

    @property
    def slurmd_port(self) -> int:
        return self.first_port + 1

    @property
    def slurmdbd_port(self) -> int:
        return self.first_port + 2

    @property
    def marker(self) -> Path:
        """File that says that `root` is a lab's: only then may it be removed."""
        return self.root / "this-is-a-lab"

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def slurm_conf(self) -> Path:
        return self.etc / "slurm.conf"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def run(self) -> Path:
        """Process records and namespace files."""
        return self.root / "run"

    @property
    def munge(self) -> Path:
        """munged's own directory: it insists on an owner and on modes."""
        return self.root / "munge"

    @property
    def munge_socket(self) -> Path:
        return self.munge / "munge.socket"

    @property
    def mariadb(self) -> Path:
        return self.root / "mariadb"

    @property
    def mariadb_socket(self) -> Path:
        return self.mariadb / "mariadb.socket"

    @property
    def controller_state(self) -> Path:
        return self.root / "slurmctld"

    def spool(self, node: Node) -> Path:
        """slurmd's spool directory; slurmd does not make it itself."""
        return self.root / f"slurmd-{node.name}"

    def namespace(self, node: Node, kind: str) -> Path:
        """File that keeps the node's namespace (`net` or `uts`) alive while no process is in it."""
        return self.run / f"{node.name}.{kind}"
