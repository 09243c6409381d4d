"""What can be refused from one config alone, before anything is submitted."""

from __future__ import annotations

from jobs.ascend import release, releases
from jobs.cluster import choose_interface, derive_ports
from jobs.config import Config
from jobs.errors import ConfigError
from jobs.measure.external import asked
from jobs.service.command import check_args
from jobs.service.environment import check_env
from jobs.service.placement import local_sizes, span
from jobs.simulator.faults import parse_faults


def check(config: Config) -> None:
    """Raise ConfigError for the first thing in this config that cannot work (issue 2, bad input)."""
    check_args(config.engine.args)
    check_env(config.engine.env)
    local_sizes(config)
    _check_release(config)
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


def _check_release(config: Config) -> None:
    """Refuse layouts whose flags the release does not have, or whose sizes do not divide (rules R14, R15)."""
    parallel, engine = config.parallel, config.engine
    across = parallel.tensor_parallel_size if span(config) > 1 else None
    needed = {
        "decode-context-parallel-size": ("decode_context_parallel_size", parallel.decode_context_parallel_size),
        "prefill-context-parallel-size": ("prefill_context_parallel_size", parallel.prefill_context_parallel_size),
        "nnodes": ("tensor_parallel_size", across),
    }
    for flag, (key, value) in needed.items():
        if value is None:
            continue
        if engine.release in releases() and flag not in release(engine.release).flags:
            reason = f"release {engine.release} has no --{flag}, which this needs"
            raise ConfigError(
                f"parallel.{key}", value, reason, "Choose engine.release=0.13.0 or later, or another layout."
            )
        if flag == "nnodes" and engine.name == "simulator":
            reason = "the rehearsal engine keeps each data-parallel rank in one node"
            raise ConfigError(f"parallel.{key}", value, reason, "Rehearse another layout.")
    tp, dcp = parallel.tensor_parallel_size, parallel.decode_context_parallel_size or 1
    if tp % dcp:
        raise ConfigError(
            "parallel.decode_context_parallel_size",
            dcp,
            f"it does not divide parallel.tensor_parallel_size = {tp} (rule R15)",
            "Give a divisor of it.",
        )
    if (parallel.prefill_context_parallel_size or 1) > 1 and parallel.data_parallel_size > 1:
        raise ConfigError(
            "parallel.prefill_context_parallel_size",
            parallel.prefill_context_parallel_size,
            "vllm-ascend does not combine it with data parallelism (rule R14)",
            "Set parallel.data_parallel_size=1, or leave it null.",
        )
