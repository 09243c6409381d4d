"""How the data-parallel ranks of a service lie on its nodes, from the config alone."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.core.config import Config
from jobs.core.errors import ConfigError


def span(config: Config) -> int:
    """Return the nodes over which one data-parallel rank reaches: 1 where its NPUs fit in a node."""
    parallel = config.parallel
    npus = parallel.tensor_parallel_size * (parallel.prefill_context_parallel_size or 1)
    whole = parallel.data_parallel_size == 1 and npus % config.cluster.npus_per_node == 0
    return max(1, npus // config.cluster.npus_per_node) if whole else 1


def local_sizes(config: Config) -> tuple[int, ...]:
    """Return the data-parallel ranks of each node, in node order; their number is the number of nodes.

    A single rank that reaches over several nodes (vLLM's --nnodes) counts on the first of them: (1, 0).

    Raises:
        ConfigError: they do not add up to `parallel.data_parallel_size` (rule R1), or contradict
            `cluster.nodes`, or need more NPUs than a node has.
    """
    if (over := span(config)) > 1 and config.cluster.nodes in (None, over):
        return (1, *(0,) * (over - 1))
    size, local, nodes = (
        config.parallel.data_parallel_size,
        config.parallel.data_parallel_size_local,
        config.cluster.nodes,
    )
    sizes: tuple[int, ...] = local if isinstance(local, tuple) else (local,) * (nodes or max(1, size // local))
    if sum(sizes) != size:
        raise ConfigError(
            "parallel.data_parallel_size",
            size,
            f"the nodes' local sizes {list(sizes)} add up to {sum(sizes)}",
            "Make parallel.data_parallel_size the sum of parallel.data_parallel_size_local over the nodes.",
        )
    if nodes is not None and nodes != len(sizes):
        raise ConfigError(
            "cluster.nodes",
            nodes,
            f"parallel.data_parallel_size_local {list(sizes)} needs {len(sizes)} nodes",
            "Leave cluster.nodes null, or give as many local sizes.",
        )
    for node, ranks in enumerate(sizes):
        npus = ranks * config.parallel.tensor_parallel_size * (config.parallel.prefill_context_parallel_size or 1)
        if npus > config.cluster.npus_per_node:
            raise ConfigError(
                "parallel.tensor_parallel_size",
                config.parallel.tensor_parallel_size,
                f"node {node} needs {ranks} x {npus // ranks} = {npus} NPUs and has {config.cluster.npus_per_node}",
                "Lower it or parallel.data_parallel_size_local, or set cluster.npus_per_node.",
            )
    return sizes


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
