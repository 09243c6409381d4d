"""What one rank knows of its node."""

from __future__ import annotations

from dataclasses import dataclass, field

from jobs.cluster.ports import Holder
from jobs.engines.ascend.npu_smi import Npu

GIB = 2**30

UNKNOWN = "unknown"
"""Version of something that is used and cannot be seen from its node."""


@dataclass(frozen=True)
class Problem:
    """Why something is not known.

    Attributes:
        reason: the tool's own words, or which tool is missing.
        broken: the tool is there and did not answer: that is a fault. Else it could not run (no tool, no right).
    """

    reason: str
    broken: bool = False


@dataclass(frozen=True)
class Interface:
    """A network interface: whether it is up, and its IPv4 addresses with their prefix lengths in bits."""

    up: bool
    addresses: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Space:
    """A file system or memory, in GiB."""

    total_gib: float
    free_gib: float


@dataclass(frozen=True)
class Need:
    """Free space of one file system against what a container's image needs there, GiB.

    `where`: the keys and paths. `guessed`: the size of the image is preflight.thresholds.image_gib, not its own.
    """

    where: str
    free_gib: float
    need_gib: float
    guessed: bool = False


@dataclass(frozen=True)
class Runtime:
    """The container runtime of a node.

    Attributes:
        name: enroot, pyxis or docker; "none": engines run on the node itself.
        version: what it says of itself.
        problem, remedy: why it cannot start a container; None: it can.
        removed: what dead ranks of ours had left, and what was removed before anything else was looked at.
        needs: space for the image.
    """

    name: str
    version: str = ""
    problem: str | None = None
    remedy: str = ""
    removed: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True)
class Host:
    """The node without its NPUs.

    Attributes:
        versions: by name: tool, python, kernel, engine packages, digests of image and model.
        shm, memory: size and what is free or available.
        disks: free space by what the directory is for ("results.root /data/runs").
        hugepages_gib: memory that is set aside for static huge pages, and used or not.
        leftovers: names in /dev/shm that engines leave behind.
        proxies: proxy variables that reach the engine, and do not spare the peers.
        shell_proxies: those of this task's own environment, which are taken out for the engine.
        reserved_ports: HCCL ports that the kernel may give to any client (`ip_local_reserved_ports` lacks them).
        tuning: settings of the kernel by name (tuning.py).
        runtime: of containers; None: it was not looked at.
    """

    versions: dict[str, str] = field(default_factory=dict)
    shm: Space = Space(0, 0)
    memory: Space = Space(0, 0)
    disks: dict[str, Space] = field(default_factory=dict)
    hugepages_gib: float = 0.0
    leftovers: tuple[str, ...] = ()
    proxies: dict[str, str] = field(default_factory=dict)
    shell_proxies: tuple[str, ...] = ()
    reserved_ports: tuple[int, ...] = ()
    tuning: dict[str, str] = field(default_factory=dict)
    runtime: Runtime | None = None


@dataclass(frozen=True)
class NpuPort:
    """The network port of one NPU as hccn_tool shows it; None: it does not say."""

    index: int
    link: str | None = None
    health: str | None = None
    tls: bool | None = None
    address: str | None = None
    netmask: str | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class Npus:
    """The NPUs of a node.

    Attributes:
        npus: from `npu-smi info`; empty with a problem.
        problem: why they are not known.
        closed: device files that are missing or may not be opened, with the reason.
        driver, firmware, cann: versions; None where they are not known.
        ports: network ports from hccn_tool; empty with `ports_problem`.
    """

    npus: tuple[Npu, ...] = ()
    problem: Problem | None = None
    closed: dict[str, str] = field(default_factory=dict)
    driver: str | None = None
    firmware: str | None = None
    cann: str | None = None
    ports: tuple[NpuPort, ...] = ()
    ports_problem: Problem | None = None


@dataclass(frozen=True)
class Facts:
    """What one rank found on its node.

    Attributes:
        node: host name.
        interface, address, prefix: the interface that this rank uses.
        interface_problem: why the interface of the config cannot be used; the one above is then only a stand-in.
        interfaces: all interfaces by name.
        busy: ports of the engine that cannot be bound here, with who holds them.
        listening: ports that were opened for the peers to reach.
        npus: None: they are not looked at.
        clock_s: how far this clock is ahead of the first node's, s; rank 0 measures it.
    """

    rank: int
    node: str
    interface: str
    address: str
    prefix: int
    host: Host
    interfaces: dict[str, Interface] = field(default_factory=dict)
    interface_problem: str | None = None
    busy: dict[int, Holder] = field(default_factory=dict)
    listening: tuple[int, ...] = ()
    npus: Npus | None = None
    clock_s: float | None = None


@dataclass(frozen=True)
class Reached:
    """Whether one rank reached a port of another; `problem` is None if it did."""

    rank: int
    peer: int
    port: int
    problem: str | None


@dataclass(frozen=True)
class Ping:
    """A ping from an NPU of one rank to an NPU of another. `why` is set where it was not made."""

    rank: int
    device: int
    peer: int
    peer_device: int
    sent: int = 0
    received: int = 0
    why: str | None = None
