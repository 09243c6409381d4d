"""What fits into the memory of one NPU: the form in which every engine says it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jobs.core.config import Config

GIB = 1 << 30


@dataclass(frozen=True)
class Layout:
    """How a model lies on the NPUs; `dcp` and `pcp` are decode and prefill context parallel sizes, `pp` the stages."""

    tp: int
    dp: int
    expert_parallel: bool = False
    dcp: int = 1
    pcp: int = 1
    pp: int = 1

    @classmethod
    def of(cls, config: Config) -> Layout:
        """Return the layout of a config."""
        p = config.parallel
        further = (p.decode_context_parallel_size, p.prefill_context_parallel_size, p.pipeline_parallel_size)
        return cls(
            p.tensor_parallel_size, p.data_parallel_size, p.enable_expert_parallel, *(size or 1 for size in further)
        )

    @property
    def npus(self) -> int:
        """NPUs of one pipeline stage of all ranks; decode context parallelism reuses the tensor parallel ranks."""
        return self.tp * self.dp * self.pcp

    @property
    def expert_ranks(self) -> int:
        """NPUs over which the experts of a layer are cut: of one stage (vLLM, the expert parallel group)."""
        return self.npus if self.expert_parallel else self.tp


@dataclass(frozen=True)
class Term:
    """One line of the sum: `bytes` on one NPU, and where the figure comes from."""

    name: str
    bytes: float
    source: str

    @property
    def gib(self) -> float:
        """The term in GiB."""
        return self.bytes / GIB


@dataclass(frozen=True)
class Allowance:
    """Activations and HCCL buffers together, GiB, at HCCL_BUFFSIZE=200 and up to 8192 batched tokens."""

    gib: float = 4.5
    source: str = "default, fitted to the FAQ of vllm-ascend 0.18.0"
    measured: bool = False

    @property
    def uncertainty_gib(self) -> float:
        """How far the sum may be off by this figure, GiB."""
        return 0.25 if self.measured else 1.0


@dataclass(frozen=True)
class Prediction:
    """What fits, for one NPU and one data-parallel rank.

    Attributes:
        terms: everything but the KV cache, line by line; `weights_bytes` is the weights' part.
        budget_bytes: what the engine may use of the NPU.
        kv_bytes: what is left for the KV cache; negative where the weights do not fit.
        kv_bytes_per_token: of one NPU, on average.
        kv_tokens_per_rank: capacity of one data-parallel rank, whole blocks.
        largest_max_model_len: longest sequence with which the engine starts; 0: it does not start.
        device_bytes: memory of the NPU; 0 where the KV cache has a size of its own (CPU engine).
        block: tokens that are given out together: 128 x dcp x pcp.
        allowance: that was used.
        stages: of a pipeline, a line on each stage; all that stands above is of the one that holds the fewest tokens.
        graphs_gib: what graphs take after the KV cache is sized, beyond the budget, least and most; None: nothing.
        anchors: published figures that the sum was held against, and what none stands behind.
        uncertainty_bytes: how far `kv_bytes` may be off; 0: the engine does not measure, its cache has a fixed size.
    """

    terms: tuple[Term, ...]
    weights_bytes: float
    device_bytes: float
    budget_bytes: float
    kv_bytes: float
    kv_bytes_per_token: int
    kv_tokens_per_rank: int
    largest_max_model_len: int
    block: int
    allowance: Allowance
    uncertainty_bytes: float = 0.0
    stages: tuple[str, ...] = ()
    graphs_gib: tuple[float, float] | None = None
    anchors: tuple[str, ...] = ()

    def lacks_bytes(self, length: int) -> float:
        """Return what one sequence of `length` tokens lacks, bytes; 0 or less: it fits, with so much to spare."""
        lacks = self._blocks(length) * self.kv_bytes_per_token - self.kv_bytes
        return lacks if self.sequences(length) else max(1.0, lacks)

    def needed_bytes(self, length: int) -> float:
        """Return the KV cache of one sequence of `length` tokens on one NPU, bytes."""
        return self._blocks(length) * self.kv_bytes_per_token

    def sequences(self, length: int) -> int:
        """Return how many sequences of `length` tokens one data-parallel rank holds at once."""
        return self.kv_tokens_per_rank // self._blocks(length)

    def calibrated(self, kv_tokens: int, source: str) -> Allowance:
        """Return the allowance with which this prediction gives the capacity that an engine printed.

        `kv_tokens`: "GPU KV cache size" of its log, tokens of one data-parallel rank. `source`: where that stands.
        """
        # An engine gives out whole blocks: on average half of one was left over.
        return self.calibrated_bytes((kv_tokens + self.block / 2) * self.kv_bytes_per_token, source)

    def calibrated_bytes(self, kv_bytes: float, source: str) -> Allowance:
        """Return the allowance with which this prediction leaves the KV cache that an engine printed, bytes."""
        return Allowance(self.allowance.gib + (self.kv_bytes - kv_bytes) / GIB, source, measured=True)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form of `python -m jobs memory --json`."""
        return {
            "weights_gib": self.weights_bytes / GIB,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_tokens_per_rank": self.kv_tokens_per_rank,
            "largest_max_model_len": self.largest_max_model_len,
            "kv_gib": self.kv_bytes / GIB,
            "budget_gib": self.budget_bytes / GIB,
            "allowance_gib": self.allowance.gib,
            "allowance_source": self.allowance.source,
            "uncertainty_gib": self.uncertainty_bytes / GIB,
            "stages": list(self.stages),
            "graphs_gib": self.graphs_gib and list(self.graphs_gib),
            "anchors": list(self.anchors),
            "terms": [{"name": term.name, "gib": term.gib, "source": term.source} for term in self.terms],
        }

    def _blocks(self, length: int) -> int:
        return max(1, math.ceil(length / self.block)) * self.block
