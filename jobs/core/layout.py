"""How the data-parallel ranks of a service lie on its nodes, from the config alone, and where each of its ranks stands:
its role, its addresses and ports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jobs.core.config import Config
from jobs.core.errors import ConfigError

Role = Literal["head", "headless"]

LOOPBACK = "lo"


def npus_of_a_rank(config: Config) -> int:
    """Return the NPUs of one data-parallel rank: tensor x pipeline x prefill context parallel size."""
    parallel = config.parallel
    sizes = (parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.prefill_context_parallel_size)
    return math.prod(size or 1 for size in sizes)


def span(config: Config) -> int:
    """Return the nodes over which one data-parallel rank reaches: 1 where its NPUs fit in a node.

    A single rank is also spread over `cluster.nodes` where its pipeline stages can be: a small model, a stage a node.
    """
    parallel, nodes, most = config.parallel, config.cluster.nodes or 1, config.cluster.npus_per_node
    npus, stages = npus_of_a_rank(config), parallel.pipeline_parallel_size or 1
    if parallel.engines > 1:
        return 1
    if stages > 1 and stages % nodes == 0 and npus <= nodes * most:
        return nodes
    return max(1, npus // most) if npus % most == 0 else 1


def local_sizes(config: Config) -> tuple[int, ...]:
    """Return the data-parallel ranks of each node, in node order; their number is the number of nodes.

    A single rank that reaches over several nodes (vLLM's --nnodes) counts on the first of them: (1, 0).

    Raises:
        ConfigError: they do not add up to `parallel.data_parallel_size` (rule R1), or contradict
            `cluster.nodes`, or need more NPUs than a node has.
    """
    if (over := span(config)) > 1 and config.cluster.nodes in (None, over):
        return (1, *(0,) * (over - 1))
    size, local = config.parallel.data_parallel_size, config.parallel.data_parallel_size_local
    nodes = config.cluster.nodes
    sizes: tuple[int, ...] = local if isinstance(local, tuple) else (local,) * (nodes or max(1, size // local))
    if sum(sizes) != config.parallel.engines:
        reason = f"the nodes' local sizes {list(sizes)} add up to {sum(sizes)}"
        remedy = (
            "Make parallel.data_parallel_size the sum of parallel.data_parallel_size_local over the nodes"
            " (or, for a whole service on each node, every one of them)."
        )
        raise ConfigError("parallel.data_parallel_size", size, reason, remedy)
    if nodes is not None and nodes != len(sizes):
        reason = f"parallel.data_parallel_size_local {list(sizes)} needs {len(sizes)} nodes"
        raise ConfigError("cluster.nodes", nodes, reason, "Leave cluster.nodes null, or give as many local sizes.")
    for node, ranks in enumerate(sizes):
        npus = ranks * npus_of_a_rank(config)
        if npus > config.cluster.npus_per_node:
            raise ConfigError(
                "parallel.tensor_parallel_size",
                config.parallel.tensor_parallel_size,
                f"node {node} needs {ranks} x {npus // ranks} = {npus} NPUs and has {config.cluster.npus_per_node}",
                "Lower it or parallel.data_parallel_size_local, or set cluster.npus_per_node.",
            )
    return sizes


def start_rank(local_sizes: Sequence[int], node: int) -> int:
    """Return the first data-parallel rank of a node (0: the head): the sum of the local sizes before it.

    `local_sizes`: data-parallel ranks of each node, in order (`parallel.data_parallel_size_local`). An index without a
    node is an IndexError.

    Source: vLLM's data-parallel deployment, --data-parallel-start-rank.
    """
    if not 0 <= node < len(local_sizes):
        raise IndexError(f"node {node} of {len(local_sizes)}")
    return sum(local_sizes[:node])


def node_of(local_sizes: Sequence[int], data_parallel_rank: int) -> int:
    """Return the node that runs a data-parallel rank; a rank that there is not is an IndexError."""
    for node, size in enumerate(local_sizes):
        if data_parallel_rank < start_rank(local_sizes, node) + size:
            return node
    raise IndexError(f"data-parallel rank {data_parallel_rank} of {sum(local_sizes)}")


@dataclass(frozen=True)
class Placement:
    """One rank of a service.

    Text that is known only on the node (addresses, ports from the job id) is a placeholder in braces when a
    plan is printed: {address}, {interface}, {master_address}, {api_port}, {rpc_port}.
    """

    rank: int
    ranks: int
    address: str
    interface: str
    master_address: str
    api_port: str
    rpc_port: str
    api_key: str | None = None
    replica: bool = False

    @property
    def role(self) -> Role:
        """Rank 0 is the head (API server), as is a replica of its own; every other rank is headless."""
        return "head" if self.rank == 0 or self.replica else "headless"

    @property
    def local(self) -> str:
        """Where its own host reaches its API; replicas that share a host have a loopback address each."""
        return self.address if self.replica and self.address.startswith("127.") else "127.0.0.1"

    def among(self, config: Config) -> Placement:
        """Return the place as it is where each node has a whole service: no other node is its master."""
        if config.parallel.replicas == 1:
            return self
        address = serving_address(config, self.rank, self.address)
        return replace(self, address=address, master_address=address, replica=True)


def serving_address(config: Config, rank: int, address: str) -> str:
    """Return where a replica serves: its node's address; where all are on one host, each has a loopback address."""
    return f"127.0.0.{rank + 1}" if config.cluster.on_loopback else address


def planned(config: Config) -> tuple[Placement, ...]:
    """Return the ranks of a service as far as they are known before there is an allocation."""
    engine, cluster, hccl = config.engine, config.cluster, config.hccl
    loopback = cluster.on_loopback
    interface = LOOPBACK if loopback else "{interface}" if hccl.socket_ifname == "auto" else hccl.socket_ifname
    master = cluster.master_address or ("127.0.0.1" if loopback else "{master_address}")
    ranks = len(local_sizes(config))
    return tuple(
        Placement(
            rank=rank,
            ranks=ranks,
            address="127.0.0.1" if loopback else master if rank == 0 else "{address}",
            interface=interface or "{interface}",
            master_address=master,
            api_port=str(engine.port or "{api_port}"),
            rpc_port=str(engine.data_parallel_rpc_port or "{rpc_port}"),
            api_key="{api_key}" if engine.api_key and (rank == 0 or config.parallel.replicas > 1) else None,
        ).among(config)
        for rank in range(ranks)
    )
