"""Memory and time of one data-parallel rank of a rehearsal.

**Weights.** Of a mixture of experts, the dense part (attention, shared expert, embeddings) is taken to be half of
the active parameters (DeepSeek-R1: about 17 of 37 billion); of a dense model it is everything. The dense part is
cut over the tensor parallel ranks; the experts over all data x tensor parallel ranks with expert parallelism, else
over the tensor parallel ranks (a model that needs expert parallelism does not fit without it, as in
vllm-ascend issues 264 and 2378). A small share (router, low-rank projections) is on every NPU in full.

**KV cache.** What `gpu_memory_utilization` leaves of the NPU after the weights and an allowance for activations
and HCCL buffers, in whole blocks (vLLM: v1/core/kv_cache_utils.py). Every NPU holds the KV cache of all sequences
of its data-parallel rank, as with multi-head latent attention.

**Time of a step** is that of jobs/engines/steptime.py. A rank of a rehearsal runs for itself: the others are taken to
make as many tokens and to read no prompt, and it never waits for one that does. Pipeline stages are passed one after
the other, so that a token that is made waits for all of them; chunks of prompts follow each other, so that all stages
compute. What it takes to fill and to drain the pipeline is not modelled.
"""

from __future__ import annotations

from dataclasses import replace

from jobs.core.service_config import Shape
from jobs.engines.prediction import GIB, Layout
from jobs.engines.simulator.settings import Hardware
from jobs.engines.steptime import Constants, Sizes, StepTime, Work, dense_share


def weight_bytes(shape: Shape, hardware: Hardware, layout: Layout) -> tuple[float, float]:
    """Return the bytes of dense (with what is replicated) and of expert weights on one NPU."""
    total = shape.weight_gib * GIB
    dense, replicated = dense_share(shape), hardware.replicated_share
    experts = max(0.0, 1 - dense - replicated)
    return total * (dense / layout.tp + replicated) / layout.pp, total * experts / layout.expert_ranks / layout.pp


def kv_bytes_per_token(shape: Shape, layout: Layout) -> int:
    """Return what one token takes on one NPU: its stage's layers, and its share of the context parallel ranks."""
    return -(-shape.kv_bytes_per_token // (layout.pp * layout.dcp * layout.pcp))


def kv_bytes(shape: Shape, hardware: Hardware, layout: Layout, utilization: float) -> float:
    """Return the bytes of one NPU that are left for the KV cache; negative where the weights do not fit."""
    budget = utilization * hardware.npu_memory_gib - hardware.allowance_gib
    return budget * GIB - sum(weight_bytes(shape, hardware, layout))


def constants(hardware: Hardware) -> Constants:
    """Return what a machine of this kind costs."""
    return Constants(
        tflops=hardware.peak_tflops * hardware.prefill_efficiency,
        attention_tflops=hardware.attention_tflops,
        gb_s=hardware.hbm_gb_s * hardware.decode_efficiency,
        host_ms=hardware.overhead_ms,
        launch_ms=hardware.launch_ms,
        prompt_ms=hardware.prefill_overhead_ms,
        sequence_us=hardware.sequence_us,
        inside_gb_s=hardware.inside_gb_s,
        link_gb_s=hardware.link_gb_s,
        link_us=hardware.link_us,
    )


class Clock:
    """Turns the work of a step of one rank into seconds.

    Args:
        drafting: how many times as long a step is that only makes tokens: drafting and checking take time.
        sizes: of the model; None: as far as its shape tells.
    """

    def __init__(
        self,
        shape: Shape,
        hardware: Hardware,
        layout: Layout,
        drafting: float = 1.0,
        sizes: Sizes | None = None,
        *,
        npus_per_node: int = 8,
    ) -> None:
        self._drafting = drafting
        made = sizes or Sizes.of(shape)
        self._step = StepTime(made, constants(hardware), layout, npus_per_node=npus_per_node)

    def seconds(self, work: Work) -> float:
        """Return how long the step takes, in seconds."""
        parts = self._step.parts(work, work.new_tokens * (self._step.layout.dp - 1))
        if work.prompt_tokens:
            parts = replace(parts, compute=parts.compute / self._step.stages)
        drafting = (parts.host + parts.memory) * (self._drafting - 1) if work.new_tokens else 0.0
        return float(parts.seconds + drafting)
