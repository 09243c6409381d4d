"""The /metrics page: names, labels and buckets of vLLM 0.9.1 (v1/metrics/loggers.py)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from jobs.engines.simulator.engine import Output

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


_SCALARS: tuple[tuple[str, str, str, Callable[[EngineMetrics], float]], ...] = (
    ("gauge", "num_requests_running", "Number of requests in model execution batches.", lambda m: m.last.running),
    ("gauge", "num_requests_waiting", "Number of requests waiting to be processed.", lambda m: m.last.waiting),
    ("gauge", "gpu_cache_usage_perc", "GPU KV-cache usage. 1 means 100 percent usage.", lambda m: m.last.usage),
    (
        "counter",
        "gpu_prefix_cache_queries_total",
        "GPU prefix cache queries, in terms of number of queried tokens.",
        lambda m: m.last.prefix_queries,
    ),
    (
        "counter",
        "gpu_prefix_cache_hits_total",
        "GPU prefix cache hits, in terms of number of cached tokens.",
        lambda m: m.last.prefix_hits,
    ),
    (
        "counter",
        "num_preemptions_total",
        "Cumulative number of preemption from the engine.",
        lambda m: m.last.preemptions,
    ),
    ("counter", "prompt_tokens_total", "Number of prefill tokens processed.", lambda m: m.prompt_tokens),
    ("counter", "generation_tokens_total", "Number of generation tokens processed.", lambda m: m.generation_tokens),
)

_HISTOGRAMS: tuple[tuple[str, str, Callable[[EngineMetrics], Histogram]], ...] = (
    ("request_prompt_tokens", "Number of prefill tokens processed.", lambda m: m.prompt_length),
    ("request_generation_tokens", "Number of generation tokens processed.", lambda m: m.output_length),
    ("iteration_tokens_total", "Histogram of number of tokens per engine_step.", lambda m: m.step_tokens),
    ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", lambda m: m.asked_length),
    ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", lambda m: m.first_token),
    ("time_per_output_token_seconds", "Histogram of time per output token in seconds.", lambda m: m.per_token),
    ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", lambda m: m.end_to_end),
)


def render(engines: Iterable[tuple[int, EngineMetrics]], model: str, blocks: int, block_size: int) -> str:
    """Return the page for the engines given.

    Args:
        engines: number and figures of each engine that is shown.
        model: label model_name.
        blocks: KV cache blocks of all engines together (vLLM 0.9.1 adds them up).
        block_size: tokens of a block.
    """
    shown = list(engines)
    out: list[str] = []

    def labels(engine: int, more: str = "") -> str:
        return f'{{engine="{engine}"{more},model_name="{model}"}}'

    for kind, name, text, value in _SCALARS:
        out.append(_head(kind, name, text))
        out.extend(f"vllm:{name}{labels(engine)} {float(value(m))}\n" for engine, m in shown)
    out.append(_head("counter", "request_success_total", "Count of successfully processed requests."))
    for engine, m in shown:
        for reason, count in m.success.items():
            label = labels(engine, f',finished_reason="{reason}"')
            out.append(f"vllm:request_success_total{label} {float(count)}\n")
    for name, text, pick in _HISTOGRAMS:
        out.append(_head("histogram", name, text))
        for engine, m in shown:
            histogram = pick(m)
            bounds = (*(str(float(bound)) for bound in histogram.bounds), "+Inf")
            for bound, count in zip(bounds, accumulate(histogram.counts), strict=True):
                label = labels(engine, f',le="{bound}"')
                out.append(f"vllm:{name}_bucket{label} {float(count)}\n")
            out.append(f"vllm:{name}_count{labels(engine)} {float(sum(histogram.counts))}\n")
            out.append(f"vllm:{name}_sum{labels(engine)} {histogram.total}\n")
    if shown:
        out.append(_head("gauge", "cache_config_info", "Information of the LLMEngine CacheConfig"))
        out.append(f'vllm:cache_config_info{{block_size="{block_size}",engine="0",num_gpu_blocks="{blocks}"}} 1.0\n')
    return "".join(out)


def _head(kind: str, name: str, text: str) -> str:
    return f"# HELP vllm:{name} {text}\n# TYPE vllm:{name} {kind}\n"
