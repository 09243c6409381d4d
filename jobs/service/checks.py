"""What can be refused from one config alone, before anything is submitted."""

from __future__ import annotations

from jobs.cluster import choose_interface, derive_ports
from jobs.config import Config
from jobs.errors import ConfigError
from jobs.measure.external import asked
from jobs.service.command import check_args
from jobs.service.environment import check_env
from jobs.service.placement import local_sizes
from jobs.simulator.faults import parse_faults


def check(config: Config) -> None:
    """Raise ConfigError for the first thing in this config that cannot work (issue 2, bad input)."""
    check_args(config.engine.args)
    check_env(config.engine.env)
    local_sizes(config)
    parse_faults(config.engine.rehearsal.faults)
    if config.hccl.socket_ifname != "auto":
        choose_interface(config.hccl.socket_ifname, ())
    ports = (config.engine.port, config.engine.data_parallel_rpc_port, config.cluster.control_port)
    given = [port for port in ports if port is not None]
    if len(set(given)) < len(given):  # the others are not known before there is a job id
        derive_ports(0, api=ports[0], dp_rpc=ports[1], control=ports[2])
    bench = config.bench
    if bench.concurrency is None and bench.request_rate is None:
        raise ConfigError(
            "bench.concurrency",
            None,
            "neither concurrency nor request_rate is set, so there is no load",
            "Set bench.concurrency (closed loop) or bench.request_rate (open loop).",
        )
    needed = bench.input_tokens + bench.output_tokens
    if bench.endpoint == "completions" and needed > config.parallel.max_model_len:
        raise ConfigError(
            "parallel.max_model_len",
            config.parallel.max_model_len,
            f"bench.input_tokens + bench.output_tokens = {needed}, so the engine would refuse every request",
            "Raise parallel.max_model_len or shorten the requests.",
        )
    asked.check(config)
    low, high = config.model.shape.token_ids
    if not 0 <= low < high:
        raise ConfigError(
            "model.shape.token_ids",
            [low, high],
            "low must be below high",
            "Give [low, high) of ordinary ids.",
        )
