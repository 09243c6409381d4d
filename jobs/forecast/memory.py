"""Does one request of `max_model_len` fit a service, and does the load of a point fit its KV cache? Pure.

An engine starts if the KV cache holds one sequence of `max_model_len` (vLLM, v1/core/kv_cache_utils.py,
check_enough_kv_cache_memory); more load than it holds queues or preempts (vllm-ascend FAQ, entry 24).
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines.ascend import utilization
from jobs.engines.base import Load, engine_of
from jobs.engines.prediction import GIB, Allowance, Prediction

DOES_NOT_FIT = "does not fit: "
"""Begins the reason of a row whose service was not started because the plan said that it cannot."""

SUM = "one request of {} tokens needs {} GiB of KV cache on each NPU ({} bytes a token) and {} GiB {}; by this sum {}"
LEFT = "are left ({} x {} - {} weights - {} HCCL buffers and activations{})"
ASIDE = "are set aside"
SHORTER = "{} would fit"
NONE = "no length fits"
DOUBT = "may not start: {}, but the sum is uncertain by {} GiB"
SPOKEN = (SUM, LEFT, ASIDE, SHORTER, NONE, DOUBT)
"""What is said where the longest request does not fit, or may not."""


@dataclass(frozen=True)
class Fit:
    """What is known of a service's memory before it starts.

    Attributes:
        length: `max_model_len`, tokens.
        utilization: share of the NPU that the engine may use.
        prediction: the sum; None: there is none, and `unknown` says why.
    """

    length: int
    utilization: float
    prediction: Prediction | None
    unknown: str = ""

    @property
    def lacks_bytes(self) -> float:
        """What one longest request lacks, bytes; 0 or less: it fits, or nothing is known."""
        return self.prediction.lacks_bytes(self.length) if self.prediction else 0.0

    @property
    def refusal(self) -> str | None:
        """The arithmetic where one longest request cannot fit, even if the sum is as wrong as it may be."""
        made = self.prediction
        return self._sum(made) if made and self.lacks_bytes > made.uncertainty_bytes else None

    @property
    def doubt(self) -> str | None:
        """The arithmetic where one longest request lacks less than the sum's own uncertainty."""
        made = self.prediction
        if not made or self.lacks_bytes <= 0 or self.refusal:
            return None
        return DOUBT.format(self._sum(made), f"{made.uncertainty_bytes / GIB:.2f}")

    def _sum(self, made: Prediction) -> str:
        need, rest = made.needed_bytes(self.length), sum(term.bytes for term in made.terms) - made.weights_bytes
        left = ASIDE
        if made.device_bytes and made.budget_bytes:
            figures = [f"{one / GIB:.2f}" for one in (made.device_bytes, made.weights_bytes, rest)]
            measured = f", {made.allowance.source}" if made.allowance.measured else ""
            left = LEFT.format(f"{self.utilization:g}", *figures, measured)
        figures = [
            f"{self.length:,}",
            f"{need / GIB:.2f}",
            f"{made.kv_bytes_per_token:,}",
            f"{made.kv_bytes / GIB:.2f}",
        ]
        longest = made.largest_max_model_len
        return SUM.format(*figures, left, SHORTER.format(f"{longest:,}") if longest else NONE)


def judge(config: Config, load: Load, *, allowance: Allowance | None = None, device_gib: float | None = None) -> Fit:
    """Return what is known of a service's memory; never an error: without a prediction it says why.

    `allowance` and `device_gib` are what earlier runs of this release and layout showed; None: the default.
    """
    parallel = config.parallel
    made, unknown = None, ""
    try:
        made = engine_of(config).memory(config, load, allowance, device_gib)
    except ConfigError as error:
        key, value, reason, _ = error.args
        unknown = f"{key}={value}: {reason}"
    share = utilization(config.engine.release, parallel.gpu_memory_utilization)
    return Fit(parallel.max_model_len, share, made, unknown)


@dataclass(frozen=True)
class Queueing:
    """A closed loop that is larger than the service, which runs `capacity` requests at once, limited by `cause`.

    What waits is measured as time to first token.
    """

    capacity: int
    cause: str


def queueing(config: Config, fit: Fit) -> Queueing | None:
    """Return what the concurrency of a point exceeds, or None: rule R20, and the KV capacity of all ranks."""
    bench, parallel = config.bench, config.parallel
    if bench.concurrency is None:
        return None
    found: list[Queueing] = []
    ranks = parallel.engines
    if (most := parallel.sequences) is not None:
        found.append(Queueing(most, f"max_num_seqs x data-parallel ranks = {parallel.max_num_seqs} x {ranks}"))
    if fit.prediction and fit.lacks_bytes <= 0:
        made, length = fit.prediction, bench.input_tokens + bench.output_tokens
        cause = (
            f"the predicted KV cache: {made.kv_tokens_per_rank:,} tokens a rank, {length:,} a request, {ranks} ranks"
        )
        found.append(Queueing(made.sequences(length) * ranks, cause))
    exceeded = [one for one in found if bench.concurrency > one.capacity]
    return min(exceeded, key=lambda one: one.capacity, default=None)
