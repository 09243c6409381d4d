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
    OneKey,
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

REPEATS = 3
"""Windows from which their own scatter can be judged: so many are measured unless the configuration says otherwise. A
search and an external client take a number of their own."""

OWN_CLIENT = "window"
"""The value of `bench.client` that names no external client."""

USUAL_CONCURRENCY = 16
"""Of a closed loop for which `bench.concurrency` is not set."""


def open_loop(search: str | None, request_rate: float | None, workload: str) -> bool:
    """Tell whether the requests of a load come at times of their own; else so many are kept in flight."""
    return search == "request_rate" or (search is None and (request_rate is not None or workload == "trace"))


@dataclass(frozen=True)
class Slo(OneKey):
    """A service-level objective: limits on a request that 99 % of the requests have to keep. null: no limit."""

    ttft_ms: Positive | None = setting(None, "time to first token, ms")
    tpot_ms: Positive | None = setting(None, "time per output token after the first, ms")
    itl_ms: Positive | None = setting(None, "gap between token chunks, ms: that of 99 % of a request's own")
    e2el_ms: Positive | None = setting(None, "end-to-end latency, ms")

    @staticmethod
    def column(name: str) -> str:
        """Return the column of a row that shows whether it keeps a limit."""
        return f"{name}_p99"


@dataclass(frozen=True)
class Load(Section):
    """The load of one point."""

    client: Annotated[Text, registered(registry.CLIENTS, OWN_CLIENT)] = setting(
        OWN_CLIENT, "window: this tool's own steady-state client; else an external benchmark program"
    )
    endpoint: Annotated[Text, one_of("completions", "chat")] = setting("completions", "API that is called")
    workload: Annotated[
        Text, one_of("random", "shared_prefix", "multi_turn", "needle", "sharegpt", "trace", "text")
    ] = setting("random", "where prompts come from; see jobs/measure/workload.py")
    dataset: Text | None = setting(
        None, "file of workload=sharegpt (JSON), trace (JSONL) or text (null: the tool's own)"
    )
    concurrency: Annotated[Count, Field(le=1_000_000)] | None = setting(
        None, "requests in flight at most; not set: 16, or no limit where a rate or a trace brings them"
    )
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
    slo: Slo = section(Slo, "limits that 99 % of the requests have to keep each, for goodput and search")
    search: Annotated[Text, one_of("concurrency", "request_rate")] | None = setting(
        None, "find the highest concurrency or rate that keeps bench.slo, beginning at the one that is set"
    )
    search_most: Positive = setting(1024.0, "the search goes no higher")
    search_precision: Annotated[float, Field(gt=0, lt=1, strict=True)] = setting(
        0.05, "the search ends once its limits are so close, as a share of the lower one"
    )
    repeats: Count = setting(
        REPEATS, "windows on the same service, of compared loads by turns; the row holds medians and their spread"
    )
    min_success: Share = setting(0.99, "share of the window's requests that must be answered whole")
    canary: Annotated[Text, one_of("off", "answer", "sane")] = setting(
        "sane", "a known question before and after: off; answer: any words will do; sane: see canary.py"
    )
    check_share: Share = setting(
        0.02,
        "canary's question among the load: so many for each request, in no latency; 0: none; none without a canary",
    )
    quality: Annotated[Text, one_of("off", "needle")] = setting(
        "off", "needle: long-context questions at max_model_len, once a service, outside the windows"
    )
    min_quality: Share = setting(
        0.5, "share of the quality questions that must be answered right for valid rows; 0: any answers will do"
    )

    @property
    def is_external(self) -> bool:
        """Whether a program of others measures the point, not this tool's own client."""
        return self.client != OWN_CLIENT

    @property
    def is_open(self) -> bool:
        """Whether requests come at times of their own, whatever the service does: by a rate or a trace."""
        return open_loop(self.search, self.request_rate, self.workload)


def turn_input(bench: Load, turn: int) -> int:
    """Return the prompt length of a turn of a conversation: all that was said before, and `input_tokens` more."""
    return bench.input_tokens + turn * (bench.input_tokens + bench.output_tokens)
