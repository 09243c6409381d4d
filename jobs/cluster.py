"""Where a rank runs: hosts of a nodelist, address of the HCCL card, ports of a job, place of a Slurm task.

Pure, but for `interface_addresses`, which asks the kernel for the cards of this host. Nothing here reads
the process environment: `task_from_slurm` is handed one.
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ifaddr

from jobs.errors import ConfigError, RunError

_NAME = re.compile(r"(?:[^\[\],\t\n ]|\[[^\[\]]*\]|[\[\]])+")  # a comma in brackets does not end a name
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_NUMBERS = re.compile(r"([0-9]{1,64})(?:-([0-9]{1,64})?)?")
_MOST_HOSTS = 65_536  # scontrol's limit of one range; here of one name with all its brackets


def expand_nodelist(text: str) -> tuple[str, ...]:
    """Return the hosts of a Slurm nodelist as `scontrol show hostnames` prints them.

    Order and duplicates are kept, numbers are padded to the width of the lower bound, and `a[1-]` is `a1`.
    Of several brackets in one name the last runs fastest, then the first, the second and so on: that is
    Slurm's order (22.05, src/common/hostlist.c), and rank k lives on host k of it. A suffix behind the last
    bracket (`a[1-2]-ib`) is read too: older releases refuse it, and so never print it.

    Raises:
        ConfigError: unbalanced or nested brackets, an empty, reversed or non-numeric range, too many hosts.
            Where scontrol guesses (`a[1-2` becomes the host `a]`), this refuses.
    """
    hosts: list[str] = []
    for name in _NAME.findall(text):
        literals = _BRACKETS.split(name)[::2]
        if any("[" in literal or "]" in literal for literal in literals):
            raise _bad_nodelist(text, f"the brackets of {name!r} are not in pairs")
        brackets = [_spans(text, inside) for inside in _BRACKETS.findall(name)]
        sizes = (sum(len(numbers) for numbers, _ in spans) for spans in brackets)
        if math.prod(sizes) > _MOST_HOSTS:
            raise _bad_nodelist(text, f"{name!r} stands for more than {_MOST_HOSTS:,} hosts")
        digits = [[f"{n:0{width}d}" for numbers, width in spans for n in numbers] for spans in brackets]
        for choice in itertools.product(*reversed(digits[:-1]), *digits[-1:]):
            in_order = (*reversed(choice[:-1]), *choice[-1:], "")
            hosts.append("".join(itertools.chain(*zip(literals, in_order, strict=True))))
    return tuple(hosts)


def _spans(text: str, inside: str) -> list[tuple[range, int]]:
    """The numbers of one bracket as (range, width) pairs."""
    spans = []
    for item in inside.split(","):
        match = _NUMBERS.fullmatch(item)
        if not match:
            raise _bad_nodelist(text, f"{item!r} in [{inside}] is neither a number nor a range like 1-4")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise _bad_nodelist(text, f"the range {item!r} runs backwards")
        if high - low >= _MOST_HOSTS:
            raise _bad_nodelist(text, f"the range {item!r} has more than {_MOST_HOSTS:,} hosts")
        spans.append((range(low, high + 1), len(match[1])))
    return spans


def _bad_nodelist(text: str, reason: str) -> ConfigError:
    remedy = "Write it as Slurm does, for example a[01-04,7],b; `scontrol show hostnames LIST` expands a list"
    return ConfigError("nodelist", text, reason, remedy)


def start_rank(local_sizes: Sequence[int], node: int) -> int:
    """Return the first data-parallel rank of a node: the sum of the local sizes before it.

    Args:
        local_sizes: data-parallel ranks of each node, in order (`parallel.data_parallel_size_local`).
        node: index of the node, 0 for the head. An index without a node is an IndexError.

    Source: vLLM's data-parallel deployment, --data-parallel-start-rank.
    """
    if not 0 <= node < len(local_sizes):
        raise IndexError(f"node {node} of {len(local_sizes)}")
    return sum(local_sizes[:node])


def node_of(local_sizes: Sequence[int], data_parallel_rank: int) -> int:
    """Return the node that runs a data-parallel rank; a rank that there is not is an IndexError.

    Args: see `start_rank`.
    """
    for node, size in enumerate(local_sizes):
        if data_parallel_rank < start_rank(local_sizes, node) + size:
            return node
    raise IndexError(f"data-parallel rank {data_parallel_rank} of {sum(local_sizes)}")


FIRST_PORT = 17_000
PORTS_PER_JOB = 10
PORT_SLOTS = 1_250


@dataclass(frozen=True)
class Ports:
    """TCP ports of one job: API server, data-parallel RPC, and the channel between the ranks."""

    api: int
    dp_rpc: int
    control: int


def derive_ports(
    job_id: int, *, api: int | None = None, dp_rpc: int | None = None, control: int | None = None
) -> Ports:
    """Return the ports of a job: a block of ten at 17000 + 10 * (job_id % 1250), unless configured.

    The blocks end at 29499. That is clear of HCCL (device 16666, host 60000-60015), of the article's 13389,
    of torch's and vLLM's defaults (29500, 29550), of Kubernetes node ports (30000) and of the ephemeral
    range (32768), from which vLLM draws its further ZMQ sockets. Jobs with consecutive ids never meet. Two
    jobs share a block only if their ids differ by a multiple of 1,250; on Slurm both would have to run on
    the same node at once, and then the second fails with "Address already in use", which a configured
    value cures. A local run uses its process id as job id, any integer will do.

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


@dataclass(frozen=True)
class Address:
    """One address of a card. `prefix` is the length of its network prefix in bits."""

    ip: str
    prefix: int


def interface_addresses() -> dict[str, tuple[Address, ...]]:
    """Return the cards of this host with their addresses, IPv4 first; a card may have none."""
    cards: dict[str, tuple[Address, ...]] = {}
    for adapter in ifaddr.get_adapters(include_unconfigured=True):
        ips = sorted(adapter.ips, key=lambda ip: not ip.is_IPv4)  # stable: the kernel's order otherwise
        cards[adapter.name] = tuple(
            Address(ip.ip if isinstance(ip.ip, str) else ip.ip[0], ip.network_prefix) for ip in ips
        )
    return cards


def choose_interface(spec: str | None, names: Sequence[str]) -> tuple[str, ...]:
    """Return the cards that an HCCL_SOCKET_IFNAME setting means, best first (CANN, envref_07_0075).

    `eth,enp` means names that begin so, `=eth0,enp0` exactly these, `^eth` all but names that begin so, and
    `^=eth0` all but exactly this. A plain item prefers the card of exactly that name: GLOO and TP take
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


def find_card(spec: str | None, cards: Mapping[str, tuple[Address, ...]]) -> tuple[str, Address]:
    """Return name and IPv4 address of the first card that `hccl.socket_ifname` means and that has one.

    Raises:
        ConfigError: there is none. The error lists the cards of this host and proposes the likeliest one:
            a wrong card name is the usual cause of a failed HCCL start.
    """
    order = sorted(cards, key=_hccl_order)
    first = {name: next((a for a in cards[name] if ":" not in a.ip), None) for name in order}
    chosen = choose_interface(spec, tuple(cards))
    for name in chosen:
        if address := first[name]:
            return name, address
    reason = f"{', '.join(chosen)}: no IPv4 address" if chosen else "no card of this host matches"
    shown = {name: f"{a.ip}/{a.prefix}" if a else "no IPv4 address" for name, a in first.items()}
    found = "; ".join(f"{name} ({what})" for name, what in shown.items())
    usable = [name for name, address in first.items() if address]
    close = difflib.get_close_matches((spec or "").lstrip("^="), usable, n=1) or usable
    advice = f"Set hccl.socket_ifname={close[0]}" if close else "Give the nodes' card an IPv4 address"
    raise ConfigError("hccl.socket_ifname", spec, reason, f"{advice}. Cards of this host: {found or 'none'}")


def address_of(interface: str | None) -> str:
    """Return the IPv4 address of this host's card that `hccl.socket_ifname` means; errors as `find_card`."""
    return find_card(interface, interface_addresses())[1].ip


def same_subnet(address: str, peer: str, prefix: int) -> bool:
    """Tell whether two addresses lie in one network of that prefix length (bits)."""
    return ipaddress.ip_address(peer) in ipaddress.ip_interface(f"{address}/{prefix}").network


def check_master(published: str, resolved: Sequence[str], own: str, prefix: int) -> str | None:
    """Compare the address that rank 0 published with what this rank derives; return a warning or None.

    It is a warning, not an error: a name may rightly belong to another card than the HCCL card.

    Args:
        published: address that rank 0 bound and published.
        resolved: addresses that the first host's name resolves to on this host.
        own: address of this rank's own card; `prefix` is the length of its network prefix in bits.
    """
    doubts: list[str] = []
    if not same_subnet(own, published, prefix):
        doubts.append(f"is not in the network of this rank's own card ({own}/{prefix}): the cards may differ")
    if published not in resolved:
        names = ", ".join(resolved) or "nothing"
        doubts.append(f"is not what the first host's name resolves to here ({names})")
    return f"The master address {published} of rank 0 {', and '.join(doubts)}." if doubts else None


@dataclass(frozen=True)
class Task:
    """The place of this process in its Slurm step: one task a node, rank k on hosts[k]."""

    rank: int
    ranks: int
    job_id: int
    hosts: tuple[str, ...]
    host: str


def task_from_slurm(env: Mapping[str, str]) -> Task:
    """Read rank, size, job id and hosts from the environment that srun gives a task.

    The step's nodelist is preferred to the job's: a step may run on fewer nodes. With one task a node every
    distribution but `arbitrary` puts task k on the k-th node of that list (srun(1), --distribution).

    Raises:
        RunError: a variable is missing or unreadable, the step has not one task a node, or Slurm says that
            this task runs on another node than its rank implies.
    """
    rank, ranks, job_id = (_number(env, name) for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID"))
    key = "SLURM_STEP_NODELIST" if env.get("SLURM_STEP_NODELIST") else "SLURM_JOB_NODELIST"
    nodelist = _variable(env, key)
    try:
        hosts = expand_nodelist(nodelist)
    except ConfigError as error:
        raise RunError(key, nodelist, error.reason, error.remedy) from error
    if len(hosts) != ranks:
        reason = f"{nodelist} has {len(hosts)} nodes, and each runs one task"
        raise RunError("SLURM_NTASKS", ranks, reason, "Start the step with --ntasks-per-node=1")
    if not 0 <= rank < ranks:
        reason = f"the step has ranks 0 to {ranks - 1}"
        raise RunError("SLURM_PROCID", rank, reason, "Start all ranks by one srun")
    host = env.get("SLURMD_NODENAME") or hosts[rank]
    if host != hosts[rank]:
        reason = f"rank {rank} belongs on {hosts[rank]}, the node {rank} of {nodelist}"
        remedy = "Leave out --distribution=arbitrary and SLURM_HOSTFILE"
        raise RunError("SLURMD_NODENAME", host, reason, remedy)
    return Task(rank, ranks, job_id, hosts, host)


def batch_job(env: Mapping[str, str]) -> tuple[int, int]:
    """Return the id and the number of nodes of the batch job that we are in.

    Raises:
        RunError: this process is in none.
    """
    return _number(env, "SLURM_JOB_ID"), _number(env, "SLURM_JOB_NUM_NODES")


def _variable(env: Mapping[str, str], name: str) -> str:
    value = env.get(name)
    if not value:
        remedy = "Start it by srun inside an allocation, or use cluster=local"
        raise RunError(name, "not set", "this process is not a task of a Slurm step", remedy)
    return value


def _number(env: Mapping[str, str], name: str) -> int:
    value = _variable(env, name)
    try:
        return int(value)
    except ValueError as error:
        raise RunError(name, value, "it is not a whole number", "Start it by srun, which sets it") from error
