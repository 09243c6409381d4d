"""The /metrics page: names, labels and buckets of vLLM 0.9.1 (v1/metrics/loggers.py)."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from jobs.simulator.engine import Output

REASONS = ("stop", "length", "abort")

_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_TPOT = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


def one_two_five(limit: int) -> tuple[float, ...]:
    """Return the buckets 1, 2, 5, 10, ... up to `limit`."""
    out: list[float] = []
    scale = 1
    while True:
        for digit in (1, 2, 5):
            if digit * scale > limit:
                return tuple(out)
            out.append(digit * scale)
        scale *= 10


class Histogram:
    """Counts of values by bucket."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


@dataclass
class EngineMetrics:
    """What the front end has seen of one data-parallel rank; it keeps the last figures of a dead one."""

    max_model_len: int
    last: Output = field(default_factory=lambda: Output(0))
    prompt_tokens: int = 0
    generation_tokens: int = 0
    success: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))

    def __post_init__(self) -> None:
        lengths = one_two_five(self.max_model_len)
        self.first_token = Histogram(_TTFT)
        self.per_token = Histogram(_TPOT)
        self.end_to_end = Histogram(_LATENCY)
        self.step_tokens = Histogram(_STEP)
        self.prompt_length = Histogram(lengths)
        self.output_length = Histogram(lengths)
        self.asked_length = Histogram(lengths)


def render(engines: Iterable[tuple[int, EngineMetrics]], model: str, blocks: int, block_size: int) -> str:
    """Return the page for the engines given.

    Args:
        engines: number and figures of each engine that is shown.
        model: label model_name.
        blocks: KV cache blocks of all engines together (vLLM 0.9.1 adds them up).
        block_size: tokens of a block.
    """
    shown = list(engines)
    created = f"{time.time()}"
    out: list[str] = []

    def labels(engine: int, more: str = "") -> str:
        return f'{{engine="{engine}"{more},model_name="{model}"}}'

    def plain(kind: str, name: str, text: str, values: Iterable[tuple[str, float]]) -> None:
        out.append(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")
        out.extend(f"{name}{label} {float(value)}\n" for label, value in values)

    def each(kind: str, name: str, text: str, values: Iterable[float]) -> None:
        plain(kind, name, text, zip((labels(e) for e, _ in shown), values, strict=True))

    def histogram(name: str, text: str, values: Iterable[Histogram]) -> None:
        out.append(f"# HELP {name} {text}\n# TYPE {name} histogram\n")
        for (engine, _), h in zip(shown, values, strict=True):
            running = 0
            for bound, count in zip((*(f"{float(b)}" for b in h.bounds), "+Inf"), h.counts, strict=True):
                running += count
                label = labels(engine, f',le="{bound}"')
                out.append(f"{name}_bucket{label} {float(running)}\n")
            out.append(f"{name}_count{labels(engine)} {float(running)}\n{name}_sum{labels(engine)} {h.total}\n")
        plain("gauge", f"{name}_created", text, ((labels(e), float(created)) for e, _ in shown))

    ms = [m for _, m in shown]
    each("gauge", "vllm:num_requests_running", "Number of requests in model execution batches.",
         (m.last.running for m in ms))  # fmt: skip
    each("gauge", "vllm:num_requests_waiting", "Number of requests waiting to be processed.",
         (m.last.waiting for m in ms))  # fmt: skip
    each("gauge", "vllm:gpu_cache_usage_perc", "GPU KV-cache usage. 1 means 100 percent usage.",
         (m.last.usage for m in ms))  # fmt: skip
    each("counter", "vllm:gpu_prefix_cache_queries_total",
         "GPU prefix cache queries, in terms of number of queried tokens.", (m.last.prefix_queries for m in ms))  # fmt: skip
    each("counter", "vllm:gpu_prefix_cache_hits_total",
         "GPU prefix cache hits, in terms of number of cached tokens.", (m.last.prefix_hits for m in ms))  # fmt: skip
    each("counter", "vllm:num_preemptions_total", "Cumulative number of preemption from the engine.",
         (m.last.preemptions for m in ms))  # fmt: skip
    each("counter", "vllm:prompt_tokens_total", "Number of prefill tokens processed.", (m.prompt_tokens for m in ms))
    each("counter", "vllm:generation_tokens_total", "Number of generation tokens processed.",
         (m.generation_tokens for m in ms))  # fmt: skip
    plain("counter", "vllm:request_success_total", "Count of successfully processed requests.",
          ((labels(e, f',finished_reason="{r}"'), m.success[r]) for e, m in shown for r in REASONS))  # fmt: skip
    histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.", (m.prompt_length for m in ms))
    histogram("vllm:request_generation_tokens", "Number of generation tokens processed.",
              (m.output_length for m in ms))  # fmt: skip
    histogram("vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.",
              (m.step_tokens for m in ms))  # fmt: skip
    histogram("vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.",
              (m.asked_length for m in ms))  # fmt: skip
    histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.",
              (m.first_token for m in ms))  # fmt: skip
    histogram("vllm:time_per_output_token_seconds", "Histogram of time per output token in seconds.",
              (m.per_token for m in ms))  # fmt: skip
    histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.",
              (m.end_to_end for m in ms))  # fmt: skip
    plain("gauge", "vllm:cache_config_info", "Information of the LLMEngine CacheConfig",
          [(f'{{block_size="{block_size}",engine="0",num_gpu_blocks="{blocks}"}}', 1.0)])  # fmt: skip
    return "".join(out)
