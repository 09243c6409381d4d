"""What belongs to a load: a change needs only another measuring window on the same service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from jobs.core import registry
from jobs.core.fields import (
    Count,
    Flag,
    NotNegative,
    Positive,
    Section,
    Share,
    Text,
    Whole,
    one_of,
    registered,
    section,
    setting,
)

OWN_CLIENT = "window"
"""The value of `bench.client` that names no external client."""


@dataclass(frozen=True)
class Slo(Section):
    """A service-level objective: limits that a load has to keep. null: no limit."""

    ttft_ms_p99: Positive | None = setting(None, "time to first token, 99th percentile, ms")
    tpot_ms_p99: Positive | None = setting(None, "time per output token after the first, 99th percentile, ms")
    itl_ms_p99: Positive | None = setting(None, "gap between token chunks, 99th percentile, ms")
    e2el_ms_p99: Positive | None = setting(None, "end-to-end latency, 99th percentile, ms")


@dataclass(frozen=True)
class Load(Section):
    """The load of one point."""

    client: Annotated[Text, registered(registry.CLIENTS, OWN_CLIENT)] = setting(
        OWN_CLIENT, "window: this tool's own steady-state client; `vllm bench serve`; AISBench"
    )
    endpoint: Annotated[Text, one_of("completions", "chat")] = setting("completions", "API that is called")
    workload: Annotated[Text, one_of("random", "shared_prefix", "multi_turn", "needle", "sharegpt", "trace")] = setting(
        "random", "where prompts come from; see jobs/measure/workload.py"
    )
    dataset: Text | None = setting(None, "file of workload=sharegpt (JSON) or trace (JSONL)")
    concurrency: Count | None = setting(None, "closed loop: requests kept in flight; with a rate: a cap")
    request_rate: Positive | None = setting(None, "open loop: mean arrivals per second, Poisson")
    num_requests: Count | None = setting(None, "measure exactly so many requests instead of a window of time")
    input_tokens: Count = setting(1024, "prompt length, tokens (words for endpoint=chat and workload=needle)")
    output_tokens: Count = setting(128, "output length, tokens")
    lengths: Annotated[Text, one_of("fixed", "uniform", "lognormal")] = setting(
        "fixed", "how the lengths of single requests lie around input_tokens and output_tokens, their means"
    )
    length_spread: Share = setting(0.5, "uniform: half width as a share of the mean; lognormal: deviation / mean")
    prefix_share: Share = setting(0.5, "workload=shared_prefix: share of a prompt that others have too")
    prefix_groups: Count = setting(1, "workload=shared_prefix: number of different prefixes")
    turns: Count = setting(4, "workload=multi_turn: requests of one conversation, each input_tokens longer")
    needle_depth: Share = setting(0.5, "workload=needle: place of the needle, 0 (begin of the prompt) to 1 (end)")
    trace_speed: Positive = setting(1.0, "workload=trace: 2 replays twice as fast")
    ignore_eos: Flag = setting(True, "always produce output_tokens")
    temperature: NotNegative = setting(0.0, "sampling temperature")
    warmup_s: NotNegative = setting(15.0, "load before the window opens, s")
    window_s: Positive = setting(120.0, "steady-state window that is measured, s")
    hold_load: Flag = setting(True, "keep the load on until every request of the window has ended")
    seed: Whole = setting(0, "seed of prompts and arrivals")
    slo: Slo = section(Slo, "service-level objective: for goodput and search")
    search: Annotated[Text, one_of("concurrency", "request_rate")] | None = setting(
        None, "find the highest concurrency or rate that keeps bench.slo, beginning at the one that is set"
    )
    search_most: Positive = setting(1024.0, "the search goes no higher")
    search_precision: Annotated[float, Field(gt=0, lt=1, strict=True)] = setting(
        0.05, "the search ends once its limits are so close, as a share of the lower one"
    )
    repeats: Count = setting(1, "windows on the same service; the row holds medians and their spread")
    min_success: Share = setting(0.99, "share of the window's requests that must be answered whole")
    canary: Annotated[Text, one_of("off", "answer", "sane")] = setting(
        "sane", "a known question before and after: off; answer: any words will do; sane: see canary.py"
    )
    canary_tokens: Count = setting(100, "length of the canary's answer, tokens")
    quality: Annotated[Text, one_of("off", "needle")] = setting(
        "off", "needle: long-context questions at max_model_len, once a service, outside the windows"
    )
    min_quality: Share = setting(
        0.5, "share of the quality questions that must be answered right for valid rows; 0: any answers will do"
    )
    quality_tokens: Count = setting(1024, "longest answer to such a question, tokens; reasoning models think first")

    @property
    def is_external(self) -> bool:
        """Whether a program of others measures the point, not this tool's own client."""
        return self.client != OWN_CLIENT
