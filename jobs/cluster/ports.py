"""TCP ports of a job. Pure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from jobs.core.errors import ConfigError

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
