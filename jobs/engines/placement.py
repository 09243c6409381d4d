"""Where a rank stands: its role, its addresses and ports, and the data-parallel ranks it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jobs.core.config import Config
from jobs.core.layout import local_sizes, start_rank

Role = Literal["head", "headless"]

LOOPBACK = "lo"


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

    @property
    def role(self) -> Role:
        """Rank 0 is the head (API server, measures); every other rank is headless."""
        return "head" if self.rank == 0 else "headless"


def first_data_parallel_rank(config: Config, rank: int) -> int:
    """Return the data-parallel rank of the first engine of a node (--data-parallel-start-rank)."""
    return start_rank(local_sizes(config), rank)


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
            api_key="{api_key}" if engine.api_key and rank == 0 else None,
        )
        for rank in range(ranks)
    )
