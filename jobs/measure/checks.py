"""What can be refused of a load from its config alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict

from jobs.core.config import Config, in_container
from jobs.core.errors import ConfigError
from jobs.core.load import REPEATS
from jobs.engines.base import Finding, engine_of
from jobs.measure import bound, search
from jobs.measure.clients import base
from jobs.measure.workload import longest_request


def check_client(config: Config) -> None:
    """Raise ConfigError where a point's external client cannot do what it asks for."""
    bench = config.bench
    if not bench.is_external:
        return
    if config.parallel.replicas > 1:
        reason = f"bench.client={bench.client} knows one address, and each of the replicas has its own"
        raise ConfigError("bench.client", bench.client, reason, "Use bench.client=window: it spreads the requests.")
    client = base.of(config)
    client.check(config)
    if bench.where == "container" and not in_container(config):
        remedy = "Leave it out, or choose a container.runtime."
        raise ConfigError("bench.where", bench.where, "the engine runs in no container", remedy)
    if client.needs_tokenizer and engine_of(config).traits.simulated:
        remedy = "Use bench.client=window, or engine=vllm_cpu."
        raise ConfigError("bench.client", bench.client, "the rehearsal engine has no tokenizer to count with", remedy)


def _check_length(config: Config) -> None:
    bench = config.bench
    needed = longest_request(bench)
    exact = bench.endpoint == "completions" and bench.workload != "needle"  # else lengths are words
    if needed and exact and needed > config.parallel.max_model_len:
        usual = bench.lengths == "fixed" and bench.workload != "multi_turn"
        what = "bench.input_tokens + bench.output_tokens" if usual else "the longest request of this workload"
        reason = f"{what} = {needed}, so the engine would refuse {'every request' if usual else 'it'}"
        key, remedy = "parallel.max_model_len", "Raise parallel.max_model_len or shorten the requests."
        raise ConfigError(key, config.parallel.max_model_len, reason, remedy)


def _check_load(config: Config) -> None:
    bench = config.bench
    if bench.concurrency is None and not bench.is_open:
        reason = "neither concurrency nor request_rate is set, so there is no load"
        remedy = "Leave it out (16), or set bench.request_rate (open loop)."
        raise ConfigError("bench.concurrency", None, reason, remedy)
    if bench.workload == "trace" and bench.request_rate is not None:
        reason, remedy = "a trace has its own times", "Set null, and bench.trace_speed."
        raise ConfigError("bench.request_rate", bench.request_rate, reason, remedy)


def _check_dataset(config: Config) -> None:
    bench = config.bench
    needs = bench.workload in ("sharegpt", "trace")
    if needs and not bench.dataset:
        raise ConfigError("bench.dataset", None, f"workload={bench.workload} needs a file", "Give its path.")
    if bench.workload == "text" and bench.endpoint != "completions":
        reason = "prompts of exact length are token ids, which a chat has not"
        raise ConfigError("bench.workload", "text", reason, "Set bench.endpoint=completions.")
    if not needs and bench.dataset and bench.workload != "text":
        reason = f"workload={bench.workload} has no data set"
        raise ConfigError("bench.dataset", bench.dataset, reason, "Leave it out, or set bench.workload.")


def _check_slo(config: Config) -> None:
    bench = config.bench
    for name in ("tpot_ms", "itl_ms"):
        limit = getattr(bench.slo, name)
        if limit is not None and bench.output_tokens == 1 and bench.workload not in ("sharegpt", "trace"):
            reason = "an answer of bench.output_tokens=1 has no time between tokens, so each would keep it"
            raise ConfigError(f"bench.slo.{name}", limit, reason, "Leave it out, or ask for longer answers.")


def _check_search(config: Config) -> None:
    bench = config.bench
    if bench.search is None:
        return
    if not any(asdict(bench.slo).values()):
        reason, remedy = "there is no objective to keep", "Set bench.slo.ttft_ms or another limit."
        raise ConfigError("bench.search", bench.search, reason, remedy)
    first = bench.concurrency if bench.search == "concurrency" else bench.request_rate
    if first is None:
        raise ConfigError(f"bench.{bench.search}", None, "the search begins at it", "Set the load to begin with.")
    if bench.search == "request_rate" and first < (least := search.least_rate(bench)):
        held = bound.WINDOWS * bench.window_s * first
        reason = (
            f"{bound.WINDOWS} windows at it hold {held:.0f} requests, and {bound.needed(0)} are the least that tell"
        )
        longer = math.ceil(bench.window_s * least / first)
        remedy = f"Begin at {math.ceil(least * 100) / 100:g} or more, or set bench.window_s={longer}."
        raise ConfigError("bench.request_rate", first, reason, remedy)
    if first > bench.search_most:
        reason = f"the search begins above it, at {first:g}"
        raise ConfigError("bench.search_most", bench.search_most, reason, "Raise it, or begin lower.")
    for key, value in (("repeats", bench.repeats), ("num_requests", bench.num_requests)):
        if value not in ((1, REPEATS) if key == "repeats" else (None, 1)):  # the default means own windows
            reason = "a search measures windows of time, one a load"
            raise ConfigError(f"bench.{key}", value, reason, "Leave it out of a search.")
    if bench.workload == "trace" or (bench.search == "concurrency" and bench.request_rate is not None):
        key = "workload" if bench.workload == "trace" else "request_rate"
        raise ConfigError(f"bench.{key}", getattr(bench, key), "it fixes the load", "Leave it out of a search.")


BENCH_LOOKS: tuple[Callable[[Config], None], ...] = (
    _check_load,
    _check_dataset,
    _check_slo,
    _check_search,
    check_client,
    _check_length,
)
"""What each of them refuses is a finding of its own."""


def warnings(config: Config) -> Iterator[Finding]:
    """Yield what is risky about a load."""
    bench = config.bench
    if bench.is_open and bench.concurrency is not None:
        reason = (
            f"it caps an open loop: what comes while {bench.concurrency} requests are in flight waits in the client"
        )
        told = "its figures leave the wait out" if bench.is_external else "latencies count from the arrival"
        remedy = f"Leave it out (null: no cap), unless the queue before the service is meant; {told}."
        yield Finding("C3", "warning", "bench.concurrency", bench.concurrency, reason, remedy, "this tool")
