"""How long one step of an engine takes, on all of its data-parallel ranks together: the one model of time. Pure.

Plan, rehearsal engine, forecast and tuner count with it. **Time of a step** =
    host + launch x layers (+ prompt, where it holds prompt tokens) + sequence x tokens that are made
    + max(compute, memory) + inside + between + latency x exchanges between nodes, where

- compute = 2 x dense parameters x own tokens / (tp x FLOP/s)  +  2 x expert parameters a token x tokens of all ranks /
  (expert ranks x FLOP/s)  +  FLOP a (query, context) pair x pairs / (tp x the attention kernel's FLOP/s);
- memory = (dense weights / tp + touched experts / expert ranks + KV cache that is read) / bytes a second; n tokens
  touch the share 1 - (1 - p)^n of the experts, p = the share that one token uses (independent choices);
- inside and between: two all-reduces a layer over the tensor-parallel ranks, 2 (tp - 1)/tp x tokens x hidden x 2 bytes
  each (ring: Patarasuk, Yuan 2009, "Bandwidth optimal all-reduce algorithms"), over the link between the nodes where
  these ranks lie on both; and for a mixture of experts with expert parallelism one dispatch (as activations) and one
  combine (bf16) a layer: own tokens / tp x experts a token x hidden x (activation + 2) bytes, of which the share that
  lies on other nodes crosses the link (Rajbhandari et al. 2022, "DeepSpeed-MoE"; an idle rank pads, and waits);
- a pipeline of p stages hands over own tokens x hidden x 2 bytes at each border; a step passes all stages.

With data parallelism and experts in common every rank takes part in every exchange: a step lasts as long as that of
the busiest rank, and the experts work for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.core.service_config import Shape
from jobs.engines.checkpoint.architecture import Architecture, Latent
from jobs.engines.prediction import GIB, Layout

Number = Any
"""A float, of one step; or an array of them (numpy), of many steps at once. numpy itself is not needed here: the
rehearsal engine starts without it."""

PAIR_FLOPS = 71.0
"""FLOP of one query token on one context token for each byte of KV cache of that (multi-head latent attention of
DeepSeek-V3: 61 layers x 128 heads x (192 + 128) x 2 FLOP, of 70,272 bytes)."""


def dense_share(shape: Shape) -> float:
    """Return the share of the weights that every token uses, where the architecture is not known.

    Of a mixture of experts half of the active parameters (DeepSeek-R1: 17 of 37 billion); of a dense model all.
    """
    if shape.active_parameters >= shape.parameters:
        return 1.0
    return shape.active_parameters / 2 / shape.parameters


def _pair_flops(shape: Shape, arch: Architecture | None) -> float:
    """Return the FLOP of one query token on one context token. Sparse attention is taken for full attention."""
    if arch is None or not arch.experts:
        return PAIR_FLOPS * shape.kv_bytes_per_token
    one = arch.attention
    width = one.nope + one.rope + one.value if isinstance(one, Latent) else 2 * one.head
    return 2.0 * arch.layers * arch.heads * width


@dataclass(frozen=True)
class Sizes:
    """What a model costs for time.

    Attributes:
        layers, moe_layers, hidden: of the main model; 0 where they are not known: then nothing is sent.
        dense, experts: parameters that every token uses, and those of all routed experts, counts.
        chosen: share of the experts that one token uses; 1 where there are none.
        top: experts that one token uses in a layer.
        weight_bytes: of one parameter, mean.
        kv_bytes: KV cache of one token that one NPU reads.
        pair_flops: of one query token on one context token, all heads and layers together.
        activation_bytes: of one activation in the matrix products: 1 int8 (W8A8, W4A8), 2 bf16.
    """

    layers: int
    moe_layers: int
    hidden: int
    dense: float
    experts: float
    chosen: float
    top: int
    weight_bytes: float
    kv_bytes: float
    pair_flops: float
    activation_bytes: int = 1

    @classmethod
    def of(cls, shape: Shape, arch: Architecture | None = None) -> Sizes:
        """Return the sizes of a model; without its architecture nothing is known of what its layers send."""
        weight = shape.weight_gib * GIB / shape.parameters
        pair, act = _pair_flops(shape, arch), 1 if weight < 1.5 else 2
        if arch is None or not arch.experts:
            share = dense_share(shape)
            dense = share * shape.parameters
            experts = shape.parameters - dense
            chosen = (shape.active_parameters - dense) / experts if experts else 1.0
            layers, hidden = (arch.layers, arch.hidden) if arch else (0, 0)
            return cls(layers, 0, hidden, dense, experts, chosen, 0, weight, shape.kv_bytes_per_token, pair, act)
        experts = min(arch.moe_layers * arch.experts * 3.0 * arch.hidden * arch.expert_size, shape.parameters)
        return cls(
            layers=arch.layers,
            moe_layers=arch.moe_layers,
            hidden=arch.hidden,
            dense=shape.parameters - experts,
            experts=experts,
            chosen=arch.experts_per_token / arch.experts,
            top=arch.experts_per_token,
            weight_bytes=weight,
            kv_bytes=shape.kv_bytes_per_token,
            pair_flops=pair,
            activation_bytes=act,
        )


@dataclass(frozen=True)
class Constants:
    """What a machine and its software cost; hardware/*.yaml says where each figure is from. Of one NPU.

    Attributes:
        tflops, gb_s: compute (int8; bf16 reaches half of it) and memory bandwidth that are reached.
        attention_tflops: of the attention kernel, which computes in bf16.
        host_ms, launch_ms, prompt_ms: of a step; of each layer; further of a step that holds prompt tokens.
        sequence_us: further of each token that is made: the host samples it, and turns it into text.
        inside_gb_s, link_gb_s, link_us: between NPUs of a node; between nodes; latency of one exchange of those.
    """

    tflops: float
    attention_tflops: float
    gb_s: float
    host_ms: float
    launch_ms: float
    prompt_ms: float
    sequence_us: float
    inside_gb_s: float
    link_gb_s: float
    link_us: float


@dataclass(frozen=True)
class Work:
    """What one step computes on one data-parallel rank.

    Attributes:
        prompt_tokens: prompt tokens (and tokens computed again after a preemption).
        new_tokens: sequences that make one further token, or tokens that are checked for them.
        pairs: (query token, context token) pairs.
        context: tokens whose KV cache is read.
    """

    prompt_tokens: Number
    new_tokens: Number
    pairs: Number
    context: Number

    @property
    def tokens(self) -> Number:
        """All tokens of the step."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True)
class Parts:
    """Seconds of one step by what they go to."""

    host: Number
    compute: Number
    memory: Number
    communication: Number

    @property
    def seconds(self) -> Number:
        """The step as a whole: weights and caches are read while others are computed."""
        longer = (self.compute + self.memory + abs(self.compute - self.memory)) / 2
        return self.host + longer + self.communication


class StepTime:
    """Turns the work of a step into seconds. `npus_per_node`: a group of more than that lies on several nodes."""

    def __init__(self, sizes: Sizes, constants: Constants, layout: Layout, *, npus_per_node: int = 8) -> None:
        self.sizes, self.constants, self.layout = sizes, constants, layout
        self.stages = layout.pp
        int8, self._bytes = constants.tflops * 1e12, constants.gb_s * 1e9
        flops = int8 / sizes.activation_bytes
        tp, ranks = layout.tp * layout.pcp, layout.expert_ranks
        self._dense_flops = 2 * sizes.dense / (tp * flops)
        self._expert_flops = 2 * sizes.experts * sizes.chosen / (ranks * flops)
        self._pair = sizes.pair_flops / (tp * constants.attention_tflops * 1e12)
        self._dense_read = sizes.dense * sizes.weight_bytes / layout.tp / self._bytes
        self._expert_read = sizes.experts * sizes.weight_bytes / ranks / self._bytes
        self._context_read = sizes.kv_bytes / (layout.dcp * layout.pcp) / self._bytes
        self._set_exchanges(tp, npus_per_node)

    def _set_exchanges(self, tp: int, npus_per_node: int) -> None:
        """Work out the seconds that one token of one rank takes on its way, inside a node and between nodes."""
        sizes, constants, layout = self.sizes, self.constants, self.layout
        inside, link = constants.inside_gb_s * 1e9, constants.link_gb_s * 1e9
        reduced = 2 * sizes.layers * 2 * (tp - 1) / tp * sizes.hidden * 2
        over = tp > npus_per_node
        self._way = reduced / (link if over else inside)
        self._exchanges = 2 * sizes.layers if over else 0
        if layout.expert_parallel and layout.expert_ranks > 1 and sizes.top:
            sent = sizes.moe_layers * sizes.top * sizes.hidden * (sizes.activation_bytes + 2) / tp
            away = max(0.0, 1 - npus_per_node / layout.expert_ranks)
            self._way += sent * (away / link + (1 - away) / inside)
            self._exchanges += 2 * sizes.moe_layers if away else 0
        if self.stages > 1:
            self._way += (self.stages - 1) * sizes.hidden * 2 / tp / link
            self._exchanges += self.stages - 1

    def parts(self, work: Work, others: Number | None = None) -> Parts:
        """Return what one step takes, by the work of the busiest rank.

        `others`: tokens of all other data-parallel ranks together; None: each has as many.
        """
        layout, constants = self.layout, self.constants
        tokens = shared = work.tokens
        if layout.expert_parallel:
            shared = tokens + (tokens * (layout.dp - 1) if others is None else others)  # arrays too: never in place
        touched = 1 - (1 - self.sizes.chosen) ** shared
        host_ms = (
            constants.host_ms
            + constants.launch_ms * self.sizes.layers
            + constants.prompt_ms * (work.prompt_tokens > 0)
            + constants.sequence_us * work.new_tokens / 1e3
        )
        return Parts(
            host=host_ms / 1e3,
            compute=self._dense_flops * tokens + self._expert_flops * shared + self._pair * work.pairs,
            memory=self._dense_read + self._expert_read * touched + self._context_read * work.context,
            communication=self._way * tokens + self._exchanges * constants.link_us / 1e6,
        )
