"""Which published figures stand behind a prediction of memory. Numbers without a name are issues of vllm-ascend.

`docs/releases.md` has the table: predicted, observed, error; tests/unit/test_memory_anchors.py holds it.
"""

from __future__ import annotations

from collections.abc import Iterator

from jobs.engines.checkpoint.architecture import Architecture, Latent
from jobs.engines.prediction import Allowance

LATENT = "weights with latent attention, W8A8: #2191 and #8568 within 1 %; #5629 too, if MLAPO made no copy there"
SPARSE = "weights of an indexer: #12839, #9422, within 2 %"
FOUR_BITS = "experts in 4 bits: no log, but two starts (#10783, pull 12920)"
LINEAR = "linear attention: no log"
OTHER = "weights: no log of this kind of model, but the sizes of published checkpoints"
REST = "activations and HCCL buffers: FAQ of 0.18.0, entry 24, within 5 % of its KV cache"


def anchors_of(arch: Architecture, expert_bits: int | None, allowance: Allowance) -> tuple[str, ...]:
    """Return what stands behind the sum for a model, and what nothing stands behind."""
    return tuple(_anchors(arch, expert_bits, allowance))


def _anchors(arch: Architecture, expert_bits: int | None, allowance: Allowance) -> Iterator[str]:
    yield LATENT if isinstance(arch.attention, Latent) and arch.experts else OTHER
    if arch.indexer:
        yield SPARSE
    if expert_bits == 4:
        yield FOUR_BITS
    if arch.linear:
        yield LINEAR
    yield allowance.source if allowance.measured else REST
