"""What may be asked of an external client, how much it sends, and whether it is there."""

from __future__ import annotations

import shutil

from jobs.core.config import Bench, Config, client_inside, in_container
from jobs.core.errors import ConfigError, RunError
from jobs.measure.clients import ais_bench, vllm_bench

WORKLOADS = ("random", "sharegpt")
"""What both clients can send."""


def check(config: Config) -> None:
    """Raise ConfigError where an external client cannot do what a point asks for: its one run has a form of its own."""
    bench = config.bench
    if bench.client == "window":
        return
    if bench.workload not in WORKLOADS:
        reason = f"bench.client={bench.client} sends {' or '.join(WORKLOADS)} prompts only"
        raise ConfigError("bench.workload", bench.workload, reason, "Use bench.client=window.")
    forms = {"search": bench.search, "repeats": bench.repeats, "lengths": bench.lengths}
    for key, usual in (("search", None), ("repeats", 1), ("lengths", "fixed")):
        if forms[key] != usual:
            reason = f"bench.client={bench.client} cannot do this"
            raise ConfigError(f"bench.{key}", forms[key], reason, "Leave it out, or use bench.client=window.")
    if bench.where == "container" and not in_container(config):
        remedy = "Leave it out, or choose container=enroot, pyxis or docker."
        raise ConfigError("bench.where", bench.where, "the engine runs in no container", remedy)
    if config.engine.name == "simulator":
        remedy = "Use bench.client=window, or engine=vllm_cpu."
        raise ConfigError("bench.client", bench.client, "the rehearsal engine has no tokenizer to count with", remedy)


def check_node(config: Config, path: str | None) -> None:
    """Raise RunError where a point's client is to run on this node and is not there: an engine start takes long.

    One that runs in the engine's container is looked for in there, before the engine starts.

    Args:
        config: of the point.
        path: PATH of the client.
    """
    bench = config.bench
    sourced = bench.client == "vllm_bench" and config.engine.source  # a sourced file may extend PATH
    if bench.client == "window" or client_inside(config) or sourced:
        return
    program = ais_bench.program(config) if bench.client == "ais_bench" else vllm_bench.program(config)
    if shutil.which(program, path=path):
        return
    if bench.client == "ais_bench":
        reason = "bench.client=ais_bench runs on the node, in an environment of its own, and has no such program here"
        remedy = (
            "Run `python tools/engines.py ais_bench`, set bench.program, or bench.where=container if the image has it."
        )
    else:
        reason = "bench.client=vllm_bench is to run on the node, and there is no such program here"
        inside = "Leave bench.where out: then it runs in the engine's container" if in_container(config) else ""
        remedy = f"{inside or 'Install the engine here'}, or set bench.program."
    raise RunError("bench.program", program, reason, remedy)


def requests(bench: Bench) -> int:
    """Return how many requests a run sends: bench.num_requests, else about those of a window.

    An external client knows no window of time: a rate gives rate x window_s, a concurrency eight rounds.
    """
    if bench.num_requests:
        return bench.num_requests
    if bench.request_rate:
        return max(1, round(bench.request_rate * bench.window_s))
    return max(64, 8 * (bench.concurrency or 1))
