"""What may be asked of an external client, and how much it sends. Pure."""

from __future__ import annotations

from jobs.config import Bench, Config
from jobs.errors import ConfigError

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
    if config.engine.name == "simulator":
        remedy = "Use bench.client=window, or engine=vllm_cpu."
        raise ConfigError("bench.client", bench.client, "the rehearsal engine has no tokenizer to count with", remedy)


def requests(bench: Bench) -> int:
    """Return how many requests a run sends: bench.num_requests, else about those of a window.

    An external client knows no window of time: a rate gives rate x window_s, a concurrency eight rounds.
    """
    if bench.num_requests:
        return bench.num_requests
    if bench.request_rate:
        return max(1, round(bench.request_rate * bench.window_s))
    return max(64, 8 * (bench.concurrency or 1))
