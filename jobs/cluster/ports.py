"""TCP ports of a job: derived from its id, or, on one host, free ones that are held."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.core.errors import ConfigError, RunError
from jobs.core.listening import stranger
from jobs.core.process import name_of

FIRST_PORT = 17_000

PORTS_PER_JOB = 10

PORT_SLOTS = 1_250

PROC_NET = Path("/proc/net")

_LISTENS = "0A"
"""State of a socket that listens (Linux, include/net/tcp_states.h)."""


@dataclass(frozen=True)
class Ports:
    """TCP ports of one job: API server, data-parallel RPC, and the channel between the ranks."""

    api: int
    dp_rpc: int
    control: int


@dataclass(frozen=True)
class Holder:
    """Who holds a port. A client's own end of a connection soon passes; a listening program stays."""

    text: str
    listens: bool = True


def derive_ports(
    job_id: int, *, api: int | None = None, dp_rpc: int | None = None, control: int | None = None
) -> Ports:
    """Return the ports of a job: a block of ten at 17000 + 10 * (job_id % 1250), unless configured.

    The blocks end at 29499. That is clear of HCCL (device 16666, host 60000-60015), of the article's 13389,
    of torch's and vLLM's defaults (29500, 29550), of Kubernetes node ports (30000) and of the ephemeral
    range (32768), from which vLLM draws its further ZMQ sockets. Jobs with consecutive ids never meet. Two
    jobs share a block only if their ids differ by a multiple of 1,250; both would have to run on the same
    node at once, and then the second fails and names who holds the port, which a configured value cures.
    Runs on one host do meet: they take free ports (`hold_ports`).

    Raises:
        ConfigError: two of the three are the same port.
    """
    block = FIRST_PORT + PORTS_PER_JOB * (job_id % PORT_SLOTS)
    ports = Ports(
        api=block if api is None else api,
        dp_rpc=block + 1 if dp_rpc is None else dp_rpc,
        control=block + 2 if control is None else control,
    )
    keys = ("engine.port", "engine.data_parallel_rpc_port", "cluster.control_port")
    used = zip(keys, (ports.api, ports.dp_rpc, ports.control), strict=True)
    for (one, first), (other, second) in itertools.combinations(used, 2):
        if first == second:
            remedy = "Give them different ports, or leave both null: then they derive from the job id"
            raise ConfigError(other, second, f"{one} is the same port", remedy)
    return ports


def hold_ports(
    *, api: int | None = None, dp_rpc: int | None = None, control: int | None = None
) -> tuple[Ports, list[socket.socket]]:
    """Return ports of a run whose ranks share this host, free ones unless configured, and what holds these.

    A socket that is bound and does not listen keeps all others from its port, but not a server of ours: asyncio,
    uvicorn and ZeroMQ set SO_REUSEADDR, with which Linux lets them listen there (socket(7)). So a port is held from
    the choice to the end of the run, also between two starts of the engine.

    Raises:
        ConfigError: two of the three are the same port.
    """
    held = []
    for _ in range(3):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("0.0.0.0", 0))
        held.append(one)
    free = (one.getsockname()[1] for one in held)
    chosen = [next(free) if port is None else port for port in (api, dp_rpc, control)]
    return derive_ports(0, api=chosen[0], dp_rpc=chosen[1], control=chosen[2]), held


def holder(port: int) -> Holder:
    """Return who holds a port of this host, as far as this user may see it."""
    with contextlib.suppress(psutil.Error, OSError):
        held = [one for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == port]
        listens = any(one.status == psutil.CONN_LISTEN for one in held) or not held
        for one in held:
            if one.pid:
                process = psutil.Process(one.pid)
                return Holder(f"process {one.pid} {process.name()} of {process.username()}", listens)
        return Holder("a process that this user may not see", listens)
    return Holder("a process that this user may not see")


@dataclass(frozen=True)
class Listener:
    """A socket that listens: the user id of who made it, and its inode."""

    uid: int
    inode: int

    def pids(self) -> list[int]:
        """Return the processes that hold it, as far as this user may see into them: proc(5), /proc/PID/fd."""
        name, found = f"socket:[{self.inode}]", []
        for folder in Path("/proc").glob("[0-9]*/fd"):
            with contextlib.suppress(OSError):
                if any(str(file.readlink()) == name for file in folder.iterdir()):
                    found.append(int(folder.parent.name))
        return found


def listeners(port: int, address: str = "127.0.0.1") -> set[Listener] | None:
    """Return what listens on a port of this host: proc(5), /proc/net/tcp. None: nobody can tell.

    What listens on another loopback address than `address` alone is left out: that is another replica's.
    """
    found, read = set(), False
    own = socket.inet_aton(address)[::-1].hex().upper()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC_NET / name).read_text(encoding="utf-8").splitlines()[1:]:
                words = line.split()
                where, _, at = words[1].rpartition(":")
                if words[3] == _LISTENS and int(at, 16) == port and (where.endswith(own) or not where.endswith("7F")):
                    found.add(Listener(int(words[7]), int(words[9])))
            read = True
    return found if read else None


def listens(address: str, port: int, owns: Callable[[int], bool]) -> bool:
    """Look who listens on this host where an engine's API will be: its key is sent there, so nobody else may.

    Returns whether anybody does, as far as can be told. An engine binds its port at its start and listens after its
    load: until then any user could listen beside it. A container's engine may be root's, and then nobody but root sees
    its processes.

    Raises:
        RunError: it is neither this user nor root, or a process that is not of our engine.
    """
    found = listeners(port, address)
    for one in found or ():
        who = stranger(one.uid)
        if not who and (pids := one.pids()) and not any(map(owns, pids)):
            who = f"process {pids[0]} {name_of(pids[0])}, which is not of this service,"
        if who:
            reason, remedy = f"{who} listens there in the engine's place", "Set engine.port to another port"
            raise RunError("engine.port", port, reason, f"{remedy}, and find out what that is.")
    return found is None or bool(found)
