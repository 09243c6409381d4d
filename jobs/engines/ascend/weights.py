"""The weights and the KV cache bytes of a token on one NPU, line by line.

**Weights** of one NPU. Routed experts are cut over all NPUs with expert parallelism, else over the tensor parallel
ranks. Attention, shared expert, dense layers, embedding and output head are cut over the tensor parallel ranks and
repeated in each data-parallel rank. The low-rank projections of latent attention and the router are on every NPU in
full. Latent attention holds `kv_b` twice in 16 bits: vllm-ascend keeps both absorbed forms. The W8A8 checkpoint has
one byte a weight and 8 bytes (scale, offset) an output channel of an expert; its multi-token prediction layer is in
16 bits. Norms, biases and the channel figures of the attention (all below 0.01 GiB) are left out.
Measured: DeepSeek-V3 W8A8, TP4 DP4, 44.16 GiB (vllm-ascend issue 2191: 44.29 here); V3.1, TP8, with prediction layer
and MLAPO, 44.93 GiB (issue 8568: 44.56 here); V3.1-Terminus, TP4 DP4, with prediction layer, 45.66 GiB (issue 5629):
45.93 here without MLAPO's second copy, 47.33 with it. MLAPO was asked for; the code that ran (0.13.0rc1) makes no copy
of projections with a dynamic scale. That this checkpoint has such ones is concluded from the figure, not seen.
Sparse attention adds an indexer to its layers (query projection, key projection, head weights), on every NPU in full
and in 16 bits (vllm-ascend v0.23.0, models/deepseek_v3.2: ReplicatedLinear). Linear attention is cut over the tensor
parallel ranks. A pipeline stage holds its own layers; the first one the embedding, the last one the output head, the
draft model and for that the embedding once more (vllm 0.32, v1/spec_decode: shared with one stage only).
Where the checkpoint can be seen, its size is compared with that of the whole sum, and the lines are scaled by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from jobs.engines.checkpoint.architecture import Architecture, Grouped, Latent
from jobs.engines.checkpoint.checkpoint import Stored
from jobs.engines.checkpoint.parts import Indexer, Linear, Stage
from jobs.engines.prediction import GIB, Layout, Term


@dataclass(frozen=True)
class Precision:
    """Bytes of a linear weight: 1 in W8A8, 2 unquantized; and bits of a weight of a routed expert: 4 in W4A8."""

    linear: int = 1
    expert_bits: int = 8

    @classmethod
    def of(cls, linear: int, expert_bits: int | None = None) -> Precision:
        """Return a precision whose experts are as the rest, unless they have bits of their own."""
        return cls(linear, expert_bits or 8 * linear)


def weights(
    arch: Architecture,
    layout: Layout,
    *,
    linear_bytes: int = 1,
    expert_bits: int | None = None,
    mtp: bool = False,
    mlapo: bool = False,
    stage: Stage | None = None,
) -> tuple[Term, ...]:
    """Return the weights of one NPU, line by line.

    Args:
        arch, layout: the model, and how it lies on the NPUs.
        linear_bytes: bytes of a linear weight: 1 in W8A8, 2 unquantized.
        expert_bits: of a weight of a routed expert; None: as every linear weight.
        stage: the pipeline stage of the NPU; None: there is one only.
        mtp: the multi-token prediction layer is loaded.
        mlapo: fused latent attention prologue, which keeps a second copy of its projections
            (VLLM_ASCEND_ENABLE_MLAPO, on by default from 0.18; quantized weights only).
    """
    precision = Precision.of(linear_bytes, expert_bits)
    held = arch.part(stage) if stage else arch
    lines = _loaded(held, layout, precision, mtp)
    if arch.stored:
        lines.append(_correction(arch, arch.stored, precision, sum(line.bytes for line in lines)))
    if mlapo and isinstance(arch.attention, Latent) and linear_bytes == 1:
        replicated, cut = _projections(arch, arch.attention)
        second = (held.layers - _linear_layers(held)) * (replicated + cut / layout.tp)
        lines.append(Term(MLAPO, second, "second copy of q_a, kv_a (every NPU) and q_b (/ tp)"))
    return tuple(line for line in lines if line.bytes)


def _loaded(arch: Architecture, layout: Layout, precision: Precision, mtp: bool) -> list[Term]:
    """Return the terms of what an engine loads from the checkpoint."""
    lines = [*_layers(arch, layout, precision, arch.moe_layers, arch.layers - arch.moe_layers)]
    drafts = mtp and arch.mtp_layers > 0
    copies = arch.embeds + (arch.heads_out and not (arch.tied and arch.embeds)) + (drafts and not arch.embeds)
    embedding = copies * 2 * arch.vocabulary * arch.hidden / layout.tp
    lines.append(Term("embedding and output head", embedding, f"{copies} x 2 B x vocabulary x hidden / tp"))
    if drafts:
        indexer = arch.indexer and replace(arch.indexer, layers=(0,) * arch.mtp_layers)
        plain = replace(arch, linear=None, indexer=indexer)
        layer = _layers(plain, layout, Precision.of(2), arch.mtp_layers, 0)
        joint = arch.mtp_layers * 2 * (2 * arch.hidden) * arch.hidden
        total = joint + sum(term.bytes for term in layer)
        lines.append(Term("multi-token prediction layer", total, "one more layer and its joint projection, 2 B"))
    return lines


def _correction(arch: Architecture, stored: Stored, precision: Precision, summed: float) -> Term:
    """Return what the checkpoint's own size changes: all lines grow, or shrink, by the same share.

    Args:
        summed: the lines of one NPU. The checkpoint is compared with the same lines of a whole model, of which it
            holds `kv_b` once, and the prediction layer if its index names it.
    """
    mtp = stored.layers > arch.layers
    whole = _loaded(arch, Layout(1, 1), precision, mtp)
    sizes = [line.bytes / 2 if line.name == _KV_B else line.bytes for line in whole]
    share = stored.bytes / sum(sizes) - 1
    source = f"{stored.bytes / GIB:.2f} GiB by {stored.source}, {sum(sizes) / GIB:.2f} by the sum: {share:+.2%}"
    return Term("the checkpoint's own size", summed * share, source)


_KV_B = "kv_b, two copies"
MLAPO = "MLAPO"


def _layers(arch: Architecture, layout: Layout, precision: Precision, moe: int, dense: int) -> tuple[Term, ...]:
    """Return the terms of `moe` layers with experts and `dense` ones without."""
    size, tp, count = precision.linear, layout.tp, arch.experts / layout.expert_ranks
    count = math.ceil(count) if layout.expert_parallel else count
    expert = 3 * arch.hidden * arch.expert_size * precision.expert_bits / 8
    expert += _CHANNEL.get(precision.expert_bits, 0) * (2 * arch.expert_size + arch.hidden)
    router = (4 if size == 1 and isinstance(arch.attention, Latent) else 2) * arch.hidden * arch.experts
    routed = f"{moe} layers x {count:g} experts x (3 x hidden x size + scales)"
    lines = [
        Term("routed experts", moe * count * expert, routed),
        *_attention(arch, tp, size, moe + dense - _linear_layers(arch)),
        Term("shared expert", moe * 3 * arch.hidden * arch.shared_size * size / tp, "3 x hidden x size / tp"),
        Term("dense layers", dense * 3 * arch.hidden * arch.intermediate * size / tp, "3 x hidden x size / tp"),
        Term("router", moe * router, "hidden x experts, on every NPU, 4 B (DeepSeek W8A8) or 2 B"),
    ]
    if arch.indexer and isinstance(arch.attention, Latent):
        lines.append(_indexer(arch.indexer, arch.hidden, arch.attention.query_rank or arch.hidden))
    if arch.linear:
        lines.append(_linear(arch.linear, arch.hidden, tp, size))
    return tuple(lines)


_CHANNEL = {8: 8, 4: 12}
"""Bytes of scales of one output channel of a quantized expert: scale and offset in 32 bits (W8A8); scale in 64 and
bias in 32 bits (W4A8 with a scale a channel, after loading: vllm-ascend 0.30.0rc2, quantization/methods/w4a8). W4A8
with a scale for each group of 256 weights, an older form, takes 6 % more for the experts."""


def _linear_layers(arch: Architecture) -> int:
    return len(arch.linear.layers) if arch.linear else 0


def _indexer(indexer: Indexer, hidden: int, rank: int) -> Term:
    one = rank * indexer.heads * indexer.head + hidden * (indexer.head + indexer.heads)
    source = "(q rank x heads x head + hidden x (head + heads)) x 2 B, on every NPU"
    return Term("indexer", len(indexer.layers) * one * 2, source)


def _linear(linear: Linear, hidden: int, tp: int, size: int) -> Term:
    """q, k, v and output are cut, and the second half of the gates (vllm 0.32, models/glm5next/common/kda.py)."""
    width = linear.heads * linear.head
    cut = 4 * hidden * width + 2 * linear.head * width + hidden * linear.heads
    one = cut * size / tp + 2 * hidden * linear.head * size
    source = "(q, k, v, output and gates) / tp; first half of the gates on every NPU"
    return Term("linear attention", len(linear.layers) * one, source)


def _attention(arch: Architecture, tp: int, size: int, layers: int) -> tuple[Term, ...]:
    attention = arch.attention
    if isinstance(attention, Latent):
        replicated, cut = _projections(arch, attention)
        cut += arch.heads * attention.value * arch.hidden
        both = arch.heads * attention.kv_rank * (attention.nope + attention.value)
        source = "q_a and kv_a: hidden x (q rank + kv rank + rope)"
        return (
            Term("attention, every NPU", layers * replicated * size, source),
            Term("attention", layers * cut * size / tp, "(q_b and output projection) / tp"),
            Term(_KV_B, layers * 2 * 2 * both / tp, "2 x 2 B x kv rank x heads x (nope + value) / tp"),
        )
    query = 2 * arch.hidden * arch.heads * attention.head / tp
    kv = 2 * arch.hidden * _kv_heads(attention.kv_heads, tp) * attention.head
    return (Term("attention", layers * (query + kv) * size, "(q and o) / tp; k and v: at least one head a rank"),)


def _projections(arch: Architecture, attention: Latent) -> tuple[int, int]:
    """Return the weights of one layer's input projections: those that every NPU holds, and those that are cut."""
    query = arch.heads * (attention.nope + attention.rope)
    if not attention.query_rank:
        return arch.hidden * attention.width, arch.hidden * query
    return arch.hidden * (attention.query_rank + attention.width), attention.query_rank * query


def _kv_heads(heads: int, tp: int) -> int:
    return max(1, heads // tp)


def kv_bytes_per_token(
    arch: Architecture, tp: int, mtp: bool = False, dtype_bytes: int = 2, index_bytes: int = 2, packed: bool = False
) -> float:
    """Return the KV cache bytes that one token takes on one NPU, without context parallelism.

    The latent of MLA is on every tensor parallel rank; grouped heads are cut, with at least one a rank. An indexer
    keeps a key of its own, of a token or of a pool of them (vllm-ascend: 2 bytes an element; 1 by `indexer_kv_dtype`).

    Args:
        index_bytes: bytes of one element of the indexer's cache; with 1 a key has a scale of 2 bytes beside it.
        packed: the latent in 8 bits with a scale for each 128 of it, its rotary part in 16 (`enable_sparse_sfa_c8`;
            vllm-ascend v0.23.0, attention/utils.py, get_sfa_qsfa_packed_head_dim).
    """
    attention, further = arch.attention, arch.mtp_layers if mtp else 0
    layers = arch.layers - _linear_layers(arch) + further
    width = _width(attention, tp) * dtype_bytes
    if packed and isinstance(attention, Latent):
        width = attention.kv_rank + 2 * attention.rope + 4 * math.ceil(attention.kv_rank / 128)
    total: float = layers * width
    if arch.indexer:
        key = arch.indexer.head * index_bytes + (2 if index_bytes == 1 else 0)
        total += (len(arch.indexer.layers) + further) * key / arch.indexer.pool
    return total


def _width(attention: Latent | Grouped, tp: int) -> int:
    return attention.width if isinstance(attention, Latent) else 2 * attention.head * _kv_heads(attention.kv_heads, tp)


def state_bytes(arch: Architecture, *, tp: int, drafts: int = 0) -> float:
    """Return the bytes of linear attention's state of one sequence on one NPU, whatever its length.

    `drafts`: tokens that are drafted for a step.
    Source: vllm 0.32, MambaStateShapeCalculator.kda_state_shape: the convolution's window of q, k and v in 16 bits, and
    a square matrix a head in 32 bits.
    """
    if not arch.linear:
        return 0.0
    linear = arch.linear
    window = 3 * linear.heads * linear.head * (linear.kernel - 1 + drafts) * 2
    return len(linear.layers) * (window + linear.heads * linear.head**2 * 4) / tp
