"""Memory and time of one data-parallel rank: a roofline, fitted to published figures.

**Weights.** Of a mixture of experts, the dense part (attention, shared expert, embeddings) is taken to be half of
the active parameters (DeepSeek-R1: about 17 of 37 billion); of a dense model it is everything. The dense part is
cut over the tensor parallel ranks; the experts over all data x tensor parallel ranks with expert parallelism, else
over the tensor parallel ranks (a model that needs expert parallelism does not fit without it, as in
vllm-ascend issues 264 and 2378). A small share (router, low-rank projections) is on every NPU in full.

**KV cache.** What `gpu_memory_utilization` leaves of the NPU after the weights and an allowance for activations
and HCCL buffers, in whole blocks (vLLM: v1/core/kv_cache_utils.py). Every NPU holds the KV cache of all sequences
of its data-parallel rank, as with multi-head latent attention.

**Time of a step** = overhead (+ overhead of prefill, where the step holds prompt tokens) + max(compute, memory):
    compute = (2 x active parameters x tokens + attention FLOP x (query, context) pairs)
              / (tensor parallel x peak x prefill_efficiency)
    memory  = (dense weights + touched experts + KV cache of the sequences) / (bandwidth x decode_efficiency)
n tokens touch the share 1 - (1 - p)^n of the experts, p = the share that one token uses. With expert parallelism the
other data-parallel ranks are taken to run an equal number of tokens: each NPU computes as many tokens for others
as others do for it, and its experts serve all of them. Waiting for a slower rank in a collective is not modelled.

**Fit** (hardware/atlas_800i_a2.yaml, 640 GiB of weights; DeepSeek-R1 W8A8, DP2 TP8 on 16 NPUs of 64 GB; in brackets
what others measured): KV cache of 133,376 tokens at utilization 0.9; 41.8 GiB of weights an NPU, with DP4 TP4 44.1
(vllm-ascend issue 2191: 44.16); 3.5K in, 1.5K out: 18 tokens/s/user at 32 users (vllm-ascend's nightly with one draft
token: 20.5), 840 tokens/s at 64 (MindIE, 16 x 910B: 850); prefill 11 to 12K tokens/s (12.2K); TTFT of an idle service
0.3 s for 512 tokens, 0.7 s for 3.5K, 8.6 s for 32K, 83 s for 128K. They show that a rehearsal is plausible, no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.core.service_config import Shape
from jobs.engines.simulator.spec import Hardware

GIB = 1 << 30


@dataclass(frozen=True)
class Layout:
    """How the model lies on the NPUs."""

    tensor_parallel: int
    data_parallel: int
    expert_parallel: bool

    @property
    def expert_ranks(self) -> int:
        """NPUs over which the experts are cut."""
        return self.tensor_parallel * (self.data_parallel if self.expert_parallel else 1)


def dense_share(shape: Shape) -> float:
    """Return the share of the weights that every token uses."""
    if shape.active_parameters >= shape.parameters:
        return 1.0
    return shape.active_parameters / 2 / shape.parameters


def weight_bytes(shape: Shape, hardware: Hardware, layout: Layout) -> tuple[float, float]:
    """Return the bytes of dense (with what is replicated) and of expert weights on one NPU."""
    total = shape.weight_gib * GIB
    dense, replicated = dense_share(shape), hardware.replicated_share
    experts = max(0.0, 1 - dense - replicated)
    return total * (dense / layout.tensor_parallel + replicated), total * experts / layout.expert_ranks


def kv_bytes(shape: Shape, hardware: Hardware, layout: Layout, utilization: float) -> float:
    """Return the bytes of one NPU that are left for the KV cache; negative where the weights do not fit."""
    budget = utilization * hardware.npu_memory_gib - hardware.allowance_gib
    return budget * GIB - sum(weight_bytes(shape, hardware, layout))


@dataclass(frozen=True)
class Work:
    """What one step computes.

    Attributes:
        prompt_tokens: prompt tokens (and tokens computed again after a preemption).
        new_tokens: sequences that make one further token.
        pairs: (query token, context token) pairs.
        context: tokens whose KV cache is read.
    """

    prompt_tokens: int
    new_tokens: int
    pairs: float
    context: int


class Clock:
    """Turns the work of a step into seconds."""

    def __init__(self, shape: Shape, hardware: Hardware, layout: Layout) -> None:
        compute = layout.tensor_parallel * hardware.peak_tflops * 1e12 * hardware.prefill_efficiency
        bandwidth = hardware.hbm_gb_s * 1e9 * hardware.decode_efficiency
        dense, experts = weight_bytes(shape, hardware, layout)
        self._overhead = hardware.overhead_ms / 1e3
        self._prefill_overhead = hardware.prefill_overhead_ms / 1e3
        self._token = 2 * shape.active_parameters / compute
        self._pair = hardware.attention_flops_per_kv_byte * shape.kv_bytes_per_token / compute
        self._dense = dense / bandwidth
        self._experts = experts / bandwidth
        self._context = shape.kv_bytes_per_token / bandwidth
        share = dense_share(shape)
        one_token = (shape.active_parameters / shape.parameters - share) / (1 - share) if share < 1 else 1.0
        self._untouched = 1 - one_token
        self._ranks = layout.data_parallel if layout.expert_parallel else 1

    def seconds(self, work: Work) -> float:
        """Return how long the step takes, in seconds."""
        tokens = work.prompt_tokens + work.new_tokens
        touched = 1 - self._untouched ** (tokens * self._ranks)
        compute = self._token * tokens + self._pair * work.pairs
        memory = self._dense + self._experts * touched + self._context * work.context
        overhead = self._overhead + (self._prefill_overhead if work.prompt_tokens else 0.0)
        return overhead + max(compute, memory)
