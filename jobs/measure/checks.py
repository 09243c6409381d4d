"""What can be refused of a load from its config alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.measure.clients import base
from jobs.measure.workload import longest_request


def _check_length(config: Config) -> None:
    bench = config.bench
    needed = longest_request(bench)
    exact = bench.endpoint == "completions" and bench.workload != "needle"  # else lengths are words
    if needed and exact and needed > config.parallel.max_model_len:
        usual = bench.lengths == "fixed" and bench.workload != "multi_turn"
        what = "bench.input_tokens + bench.output_tokens" if usual else "the longest request of this workload"
        raise ConfigError(
            "parallel.max_model_len",
            config.parallel.max_model_len,
            f"{what} = {needed}, so the engine would refuse {'every request' if usual else 'it'}",
            "Raise parallel.max_model_len or shorten the requests.",
        )


def _check_load(config: Config) -> None:
    bench = config.bench
    if bench.concurrency is None and bench.request_rate is None and bench.workload != "trace":
        raise ConfigError(
            "bench.concurrency",
            None,
            "neither concurrency nor request_rate is set, so there is no load",
            "Set bench.concurrency (closed loop) or bench.request_rate (open loop).",
        )
    if bench.workload == "trace" and bench.request_rate is not None:
        raise ConfigError(
            "bench.request_rate", bench.request_rate, "a trace has its own times", "Set null, and bench.trace_speed."
        )


def _check_dataset(config: Config) -> None:
    bench = config.bench
    needs = bench.workload in ("sharegpt", "trace")
    if needs and not bench.dataset:
        raise ConfigError("bench.dataset", None, f"workload={bench.workload} needs a file", "Give its path.")
    if not needs and bench.dataset:
        reason = f"workload={bench.workload} has no data set"
        raise ConfigError("bench.dataset", bench.dataset, reason, "Leave it out, or set bench.workload.")


def _check_search(config: Config) -> None:
    bench = config.bench
    if bench.search is None:
        return
    if not any(asdict(bench.slo).values()):
        raise ConfigError(
            "bench.search", bench.search, "there is no objective to keep", "Set bench.slo.ttft_ms_p99 or another limit."
        )
    first = bench.concurrency if bench.search == "concurrency" else bench.request_rate
    if first is None:
        raise ConfigError(f"bench.{bench.search}", None, "the search begins at it", "Set the load to begin with.")
    if first > bench.search_most:
        reason = f"the search begins above it, at {first:g}"
        raise ConfigError("bench.search_most", bench.search_most, reason, "Raise it, or begin lower.")
    for key, value in (("repeats", bench.repeats), ("num_requests", bench.num_requests)):
        if value not in (None, 1):
            reason = "a search measures windows of time, one a load"
            raise ConfigError(f"bench.{key}", value, reason, "Leave it out of a search.")
    if bench.workload == "trace" or (bench.search == "concurrency" and bench.request_rate is not None):
        key = "workload" if bench.workload == "trace" else "request_rate"
        raise ConfigError(f"bench.{key}", getattr(bench, key), "it fixes the load", "Leave it out of a search.")


BENCH_LOOKS: tuple[Callable[[Config], None], ...] = (
    _check_load,
    _check_dataset,
    _check_search,
    base.check,
    _check_length,
)
"""What each of them refuses is a finding of its own."""
