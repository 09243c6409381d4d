"""The weights and the KV cache bytes of a token on one NPU, line by line.

**Weights** of one NPU. Routed experts are cut over all NPUs with expert parallelism, else over the tensor parallel
ranks. Attention, shared expert, dense layers, embedding and output head are cut over the tensor parallel ranks and
repeated in each data-parallel rank. The low-rank projections of latent attention and the router are on every NPU in
full. Latent attention holds `kv_b` twice in 16 bits: vllm-ascend keeps both absorbed forms. The W8A8 checkpoint has
one byte a weight and 8 bytes (scale, offset) an output channel of an expert; its multi-token prediction layer is in
16 bits. Norms, biases and the channel figures of the attention (all below 0.01 GiB) are left out.
Measured: DeepSeek-V3 W8A8, TP4 DP4, 44.16 GiB (vllm-ascend issue 2191: 44.29 here); V3.1, TP8, with prediction layer
and MLAPO, 44.93 GiB (issue 8568: 44.56 here).
Where the checkpoint can be seen, its size is compared with that of the whole sum, and the lines are scaled by it.
"""

from __future__ import annotations

import math

from jobs.engines.checkpoint.architecture import Architecture, Latent, Stored
from jobs.engines.prediction import GIB, Term


def weights(
    arch: Architecture,
    *,
    tp: int,
    dp: int,
    expert_parallel: bool,
    pcp: int = 1,
    linear_bytes: int = 1,
    mtp: bool = False,
    mlapo: bool = False,
) -> tuple[Term, ...]:
    """Return the weights of one NPU, line by line.

    Args:
        arch: the model.
        tp, dp, pcp: tensor, data and prefill context parallel sizes.
        expert_parallel: the experts are cut over all ranks.
        linear_bytes: bytes of a linear weight: 1 in W8A8, 2 unquantized.
        mtp: the multi-token prediction layer is loaded.
        mlapo: fused latent attention prologue, which keeps a second copy of its projections
            (VLLM_ASCEND_ENABLE_MLAPO, on by default from 0.18; quantized weights only).
    """
    ranks = tp * dp * pcp if expert_parallel else tp
    lines = _loaded(arch, tp, ranks, expert_parallel, linear_bytes, mtp)
    if arch.stored:
        lines.append(_correction(arch, arch.stored, linear_bytes, sum(line.bytes for line in lines)))
    if mlapo and isinstance(arch.attention, Latent) and linear_bytes == 1:
        replicated, cut = _projections(arch, arch.attention)
        second = arch.layers * (replicated + cut / tp)
        lines.append(Term("MLAPO", second, "second copy of q_a, kv_a (every NPU) and q_b (/ tp)"))
    return tuple(line for line in lines if line.bytes)


def _loaded(arch: Architecture, tp: int, ranks: int, expert_parallel: bool, linear_bytes: int, mtp: bool) -> list[Term]:
    """Return the terms of what an engine loads from the checkpoint."""
    lines = [*_layers(arch, tp, ranks, expert_parallel, linear_bytes, arch.moe_layers, arch.layers - arch.moe_layers)]
    copies = 1 if arch.tied else 2
    embedding = copies * 2 * arch.vocabulary * arch.hidden / tp
    lines.append(Term("embedding and output head", embedding, f"{copies} x 2 B x vocabulary x hidden / tp"))
    if mtp and arch.mtp_layers:
        layer = _layers(arch, tp, ranks, expert_parallel, 2, arch.mtp_layers, 0)
        joint = arch.mtp_layers * 2 * (2 * arch.hidden) * arch.hidden
        total = joint + sum(term.bytes for term in layer)
        lines.append(Term("multi-token prediction layer", total, "one more layer and its joint projection, 2 B"))
    return lines


def _correction(arch: Architecture, stored: Stored, linear_bytes: int, summed: float) -> Term:
    """Return what the checkpoint's own size changes: all lines grow, or shrink, by the same share.

    Args:
        summed: the lines of one NPU. The checkpoint is compared with the same lines of a whole model, of which it
            holds `kv_b` once, and the prediction layer if its index names it.
    """
    mtp = stored.layers > arch.layers
    whole = _loaded(arch, 1, 1, False, linear_bytes, mtp)
    sizes = [line.bytes / 2 if line.name == _KV_B else line.bytes for line in whole]
    share = stored.bytes / sum(sizes) - 1
    source = f"{stored.bytes / GIB:.2f} GiB by {stored.source}, {sum(sizes) / GIB:.2f} by the sum: {share:+.2%}"
    return Term("the checkpoint's own size", summed * share, source)


_KV_B = "kv_b, two copies"


def _layers(
    arch: Architecture, tp: int, ranks: int, expert_parallel: bool, size: int, moe: int, dense: int
) -> tuple[Term, ...]:
    """Return the terms of `moe` layers with experts and `dense` ones without; `size`: bytes of a linear weight."""
    channel = 8 if size == 1 else 0
    count = math.ceil(arch.experts / ranks) if expert_parallel else arch.experts / ranks
    expert = 3 * arch.hidden * arch.expert_size * size + channel * (2 * arch.expert_size + arch.hidden)
    router = (4 if size == 1 and isinstance(arch.attention, Latent) else 2) * arch.hidden * arch.experts
    return (
        Term(
            "routed experts", moe * count * expert, f"{moe} layers x {count:g} experts x (3 x hidden x size + scales)"
        ),
        *_attention(arch, tp, size, moe + dense),
        Term("shared expert", moe * 3 * arch.hidden * arch.shared_size * size / tp, "3 x hidden x size / tp"),
        Term("dense layers", dense * 3 * arch.hidden * arch.intermediate * size / tp, "3 x hidden x size / tp"),
        Term("router", moe * router, "hidden x experts, on every NPU, 4 B (DeepSeek W8A8) or 2 B"),
    )


def _attention(arch: Architecture, tp: int, size: int, layers: int) -> tuple[Term, ...]:
    attention = arch.attention
    if isinstance(attention, Latent):
        replicated, cut = _projections(arch, attention)
        cut += arch.heads * attention.value * arch.hidden
        both = arch.heads * attention.kv_rank * (attention.nope + attention.value)
        return (
            Term(
                "attention, every NPU", layers * replicated * size, "q_a and kv_a: hidden x (q rank + kv rank + rope)"
            ),
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
    arch: Architecture, *, tp: int, mtp: bool = False, dcp: int = 1, pcp: int = 1, dtype_bytes: int = 2
) -> int:
    """Return the KV cache bytes that one token takes on one NPU, on average.

    The latent of MLA is on every tensor parallel rank; grouped heads are cut, with at least one a rank. Context
    parallelism spreads the tokens over dcp x pcp ranks (vllm-ascend, feature guide "context parallel").
    """
    attention = arch.attention
    width = attention.width if isinstance(attention, Latent) else 2 * attention.head * _kv_heads(attention.kv_heads, tp)
    layers = arch.layers + (arch.mtp_layers if mtp else 0)
    return math.ceil(layers * width * dtype_bytes / (dcp * pcp))
