"""What fits on one NPU: weights, HCCL buffers, activations, and the KV cache in what is left. Pure arithmetic.

    KV cache = utilization x device memory - weights - HCCL buffers - activations

**Allowance.** Activations and HCCL buffers together take 4.5 GiB at HCCL_BUFFSIZE=200 and up to 8192 batched tokens
(fitted to the FAQ of vllm-ascend 0.18.0, entry 24). The buffers are known, the rest is the activations' share. A log
corrects it: `Prediction.calibrated`.

**Uncertainty.** 1 GiB for the allowance, and all of what no log has confirmed: the tokens beyond 8192, and the part of
the `dp` and `mc2` buffers above those of HCCL_BUFFSIZE=200. HCCL makes a buffer at the first collective of its group,
and the profile run, after which the engine sizes its KV cache, is a prefill: it uses the groups `tp` and `ep` for
certain. Whether the sum is an upper bound there nobody has shown: the two-node tutorial of 0.9.1 (TP4 DP4,
HCCL_BUFFSIZE 1024), which it leaves 2.3 GiB short, is refused by 0.9.1 itself. Measured: 0.25 GiB. And the second copy
of MLAPO, where nobody can see whether the checkpoint lets it be (`_mlapo`).

**Graphs.** From 0.23 on the KV cache is sized before the graphs are captured (vllm-ascend v0.23.0, worker.py,
determine_available_memory): what they take, `GRAPHS_GIB`, comes beyond the utilization, from what it leaves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines import ascend, speculation
from jobs.engines.ascend.weights import MLAPO, kv_bytes_per_token, state_bytes, weights
from jobs.engines.checkpoint.architecture import Architecture, Latent, architecture_of, required
from jobs.engines.checkpoint.checkpoint import static_attention
from jobs.engines.checkpoint.parts import Stage, stages
from jobs.engines.prediction import GIB, Allowance, Layout, Prediction, Term

MIB = 1 << 20

BLOCK = 128
"""Tokens of a KV cache block; vllm-ascend forces this size (0.9.1, platform.py)."""

DEVICE_GIB = 60.96
"""Memory of an A2's NPU as torch_npu reports it, GiB (vllm-ascend issues 2378, 4013, 6611, 13439; A3: 61.27)."""

GRAPHS_GIB = (0.8, 2.0)
"""What graphs took in published logs, least and most, GiB (vllm-ascend issue 13439: 0.79; a log of 0.23.0rc1: 1.97)."""

DEFAULT_BUFFSIZE = 200
"""HCCL_BUFFSIZE where it is not set, MB (CANN, envref_07_0080)."""

_DP_BUFFSIZE = 50
"""MB of the data-parallel group from 0.11 on (vllm-ascend, `calculate_dp_buffer_size`)."""

_ALLOWANCE_TOKENS = 8192
"""Batched tokens up to which the allowance holds."""

DRAFTER_GIB = 2.0
"""What a draft model of its own may take on an NPU and is not counted: one layer and a head in 16 bits, GiB."""

PARTITION = "VLLM_PP_LAYER_PARTITION"
"""Variable with the layers of each pipeline stage, as "31,30"."""

DEFAULT = Allowance()

LATENT = "weights with latent attention, W8A8: #2191 and #8568 within 1 %; #5629 too, if MLAPO made no copy there"
SPARSE = "weights of an indexer: #12839, #9422, within 2 %"
FOUR_BITS = "experts in 4 bits: no log, but two starts (#10783, pull 12920)"
LINEAR = "linear attention: no log"
OTHER = "weights: no log of this kind of model, but the sizes of published checkpoints"
REST = "activations and HCCL buffers: FAQ of 0.18.0, entry 24, within 5 % of its KV cache"
"""Published figures that stand behind a prediction. Numbers without a name are issues of vllm-ascend.

`docs/releases.md` has the table: predicted, observed, error; tests/unit/test_memory_anchors.py holds it.
"""


def hccl(layout: Layout, *, moe: bool, release: str, buffsize: int = DEFAULT_BUFFSIZE) -> tuple[Term, ...]:
    """Return the HCCL buffers of one NPU: twice `buffsize` (MB) for each communicator; a group of one NPU has none.

    0.9.1 uses HCCL_BUFFSIZE for every group. From 0.11 on only the group of fused MoE dispatch (mc2) does; the
    data-parallel group has 50 MB, the others 200 MB (vllm-ascend, utils.py, `get_hccl_config_for_pg_options`).
    """
    experts = layout.npus if moe and layout.expert_parallel else 1
    sizes = {"tp": layout.tp, "dp": layout.dp, "ep": experts, "mc2": experts, "dcp": layout.dcp, "pcp": layout.pcp}
    sizes["pp"] = layout.pp
    own = dict.fromkeys(sizes, buffsize)
    if ascend.version(release) >= (0, 11):
        own = {"mc2": buffsize, "dp": _DP_BUFFSIZE}
    return tuple(
        Term(f"HCCL {name}", 2 * megabytes * MIB, f"2 x {megabytes} MB, group of {size} NPUs, release {release}")
        for name, size in sizes.items()
        if size > 1
        for megabytes in [own.get(name, DEFAULT_BUFFSIZE)]
    )


def _activations(
    arch: Architecture, layout: Layout, tokens: int, allowance: Allowance, buffers: float
) -> tuple[Term, float]:
    """Return what the allowance leaves beside the buffers, with more for tokens beyond those it was fitted for.

    The second value is this further part alone, in bytes.

    A further token takes its hidden state and residual, their gathered copies, and its share of the rows of the
    experts (in, inner, out), each in 2 bytes: an estimate that no log has confirmed yet.
    """
    row = 2 * arch.hidden + 3 * (arch.expert_size or arch.intermediate / layout.tp)
    token = 2 * (4 * arch.hidden + row * (arch.experts_per_token / layout.tp if arch.experts else 1))
    more = max(0, tokens - _ALLOWANCE_TOKENS) * token
    source = f"{allowance.gib:.2f} GiB with HCCL buffers ({allowance.source})"
    if more:
        source += f"; {token / 1e3:.0f} kB for each token above {_ALLOWANCE_TOKENS}"
    return Term("activations", allowance.gib * GIB - buffers + more, source), more


def _unconfirmed(buffers: tuple[Term, ...], fitted: tuple[Term, ...]) -> float:
    """Return the bytes of the groups that a profile run may not use, above those that the allowance was fitted with."""
    idle = ("HCCL dp", "HCCL mc2")
    return max(0.0, sum((b.bytes - f.bytes) for b, f in zip(buffers, fitted, strict=True) if b.name in idle))


@dataclass(frozen=True)
class Sizes:
    """What decides the memory of one NPU beside the model and its layout.

    Attributes:
        release: of vllm-ascend; decides the HCCL buffers.
        utilization: `gpu_memory_utilization`; None: the default of the release.
        tokens: of one engine step, `max_num_batched_tokens`.
        buffsize: HCCL_BUFFSIZE, MB.
        device_gib: memory of the NPU as torch_npu reports it, GiB.
        allowance: activations and HCCL buffers, by default or from a log.
        linear_bytes, expert_bits, mtp, mlapo: see `weights`; `mlapo_unseen`: whether it is there is not known.
        graphs: are captured after the KV cache is sized.
        kv_dtype_bytes, index_bytes, packed: of the KV cache and of the indexer's, see `kv_bytes_per_token`.
        sequences, drafts: of one engine step, and tokens drafted for one: linear attention keeps a state for each.
        drafter: a draft model of its own (EAGLE) is loaded, whose size is not known.
        partition: layers of each pipeline stage (VLLM_PP_LAYER_PARTITION).
        by_layer: the cache of a layer is on one tensor parallel rank alone (`enable_kvpp`), but a draft model's.
        kv_bytes: a KV cache of a fixed size (`--kv-cache-memory-bytes`) instead of the rest.
    """

    release: str
    utilization: float | None = None
    tokens: int = _ALLOWANCE_TOKENS
    buffsize: int = DEFAULT_BUFFSIZE
    device_gib: float = DEVICE_GIB
    allowance: Allowance = DEFAULT
    linear_bytes: int = 1
    expert_bits: int | None = None
    kv_dtype_bytes: int = 2
    index_bytes: int = 2
    packed: bool = False
    sequences: int = 256
    drafts: int = 0
    drafter: bool = False
    partition: str | None = None
    by_layer: bool = False
    mtp: bool = False
    mlapo: bool = False
    mlapo_unseen: bool = False
    graphs: bool = False
    kv_bytes: float | None = None


def predict(arch: Architecture, layout: Layout, sizes: Sizes) -> Prediction:
    """Return what fits on one NPU; of pipeline stages, of the one that holds the fewest tokens.

    Raises:
        ConfigError: the layers of the stages are not those of the model.
    """
    return _scarcest([_predict(arch, layout, sizes, stage) for stage in _stages(arch, layout, sizes)])


def fixed(arch: Architecture, layout: Layout, sizes: Sizes, kv_bytes: float) -> Prediction:
    """Return what a KV cache of so many bytes holds, where neither device memory nor buffers nor activations count.

    Raises:
        ConfigError: see `predict`.
    """
    return _scarcest([_holds(arch, layout, sizes, stage, kv_bytes) for stage in _stages(arch, layout, sizes)])


def _stages(arch: Architecture, layout: Layout, sizes: Sizes) -> tuple[Stage, ...]:
    try:
        return stages(arch.layers, layout.pp, sizes.partition)
    except ValueError as error:
        key = f"engine.env.{PARTITION}"
        raise ConfigError(key, sizes.partition, str(error), "Give as many numbers as there are stages.") from None


def _scarcest(found: list[Prediction]) -> Prediction:
    least = min(found, key=lambda one: (one.kv_tokens_per_rank, one.kv_bytes))
    return replace(least, stages=tuple(text for one in found for text in one.stages) if len(found) > 1 else ())


def _predict(arch: Architecture, layout: Layout, sizes: Sizes, stage: Stage) -> Prediction:
    moe, allowance = arch.experts > 0, sizes.allowance
    buffers = hccl(layout, moe=moe, release=sizes.release, buffsize=sizes.buffsize)
    fitted = hccl(layout, moe=moe, release=sizes.release)
    activations, more = _activations(arch, layout, sizes.tokens, allowance, sum(term.bytes for term in fitted))
    states = sizes.sequences * (1 + sizes.drafts) * state_bytes(arch.part(stage), tp=layout.tp, drafts=sizes.drafts)
    held = Term("linear attention states", states, f"{sizes.sequences} sequences x {1 + sizes.drafts}, whatever length")
    terms = (*_weights(arch, layout, sizes, stage), *buffers, activations, *((held,) if states else ()))
    device = sizes.device_gib * GIB
    budget = ascend.utilization(sizes.release, sizes.utilization) * device
    left, uncertain = sizes.kv_bytes, 0.0
    if left is None:
        left = budget - sum(term.bytes for term in terms)
        uncertain = (allowance.uncertainty_gib + (0 if allowance.measured else sizes.drafter * DRAFTER_GIB)) * GIB
        uncertain += 0 if allowance.measured else more + _unconfirmed(buffers, fitted)
        uncertain += sum(term.bytes for term in terms if term.name == MLAPO and sizes.mlapo_unseen)
        # No log shows what vLLM's pages leave beside linear attention's states.
        uncertain += max(0.0, left / 2) if states and not allowance.measured else 0
    found = _holds(arch, layout, sizes, stage, left)
    return replace(
        found,
        terms=terms,
        device_bytes=device,
        budget_bytes=budget,
        uncertainty_bytes=uncertain,
        graphs_gib=GRAPHS_GIB if sizes.graphs else None,
        anchors=tuple(_anchors(arch, sizes.expert_bits, allowance)),
    )


def _holds(arch: Architecture, layout: Layout, sizes: Sizes, stage: Stage, kv_bytes: float) -> Prediction:
    weight = _weights(arch, layout, sizes, stage)
    # Of the tokens over ranks (vllm-ascend, feature guide "context parallel"). The indexer's cache is spread with the
    # rest: its copy on every rank (`enable_sfa_dcp_replicated_indexer`) is not the default.
    spread = layout.dcp * layout.pcp
    part, widths = arch.part(stage), (sizes.kv_dtype_bytes, sizes.index_bytes, sizes.packed)
    whole = kv_bytes_per_token(part, layout.tp, sizes.mtp, *widths)
    if sizes.by_layer:
        layers = kv_bytes_per_token(part, layout.tp, False, *widths)
        whole += layers * (math.ceil(part.layers / layout.tp) / part.layers - 1)  # the fullest rank
    tokens = max(0, int(kv_bytes // (whole * BLOCK))) * BLOCK * spread
    held = sum(term.bytes for term in weight)
    return Prediction(
        terms=weight,
        weights_bytes=held,
        device_bytes=0.0,
        budget_bytes=0.0,
        kv_bytes=kv_bytes,
        kv_bytes_per_token=math.ceil(whole / spread),
        kv_tokens_per_rank=tokens,
        largest_max_model_len=min(tokens, arch.max_length),
        block=BLOCK * spread,
        allowance=sizes.allowance,
        stages=(
            f"stage {stage.number}: layers {stage.begin} to {stage.end - 1}, weights {held / GIB:.2f} GiB,"
            f" KV cache {kv_bytes / GIB:.2f} GiB, {tokens:,} tokens",
        ),
    )


def _anchors(arch: Architecture, expert_bits: int | None, allowance: Allowance) -> Iterator[str]:
    """Yield what stands behind the sum for a model, and what nothing stands behind."""
    yield LATENT if isinstance(arch.attention, Latent) and arch.experts else OTHER
    if arch.indexer:
        yield SPARSE
    if expert_bits == 4:
        yield FOUR_BITS
    if arch.linear:
        yield LINEAR
    yield allowance.source if allowance.measured else REST


def _weights(arch: Architecture, layout: Layout, sizes: Sizes, stage: Stage) -> tuple[Term, ...]:
    return weights(
        arch,
        layout,
        linear_bytes=sizes.linear_bytes,
        expert_bits=sizes.expert_bits,
        mtp=sizes.mtp,
        mlapo=sizes.mlapo,
        stage=stage,
    )


def predict_config(
    config: Config,
    *,
    arch: Architecture | None = None,
    device_gib: float | None = None,
    allowance: Allowance | None = None,
) -> Prediction:
    """Return what fits on an NPU of `device_gib` with the settings of one point.

    Args:
        arch: the model; by default `model.path`/config.json, else the packaged one of `model.name`.
        allowance: None: the default, or that of the log of an earlier run of this release and layout.

    Raises:
        ConfigError: the model is not known, or a setting is not covered by this sum.
    """
    layout, sizes = asked(config)
    sizes = replace(sizes, device_gib=device_gib or DEVICE_GIB, allowance=allowance or DEFAULT)
    return predict(arch or required(config), layout, sizes)


def asked(config: Config) -> tuple[Layout, Sizes]:
    """Return layout and sizes of one point. ConfigError: a setting is not covered by this sum."""
    parallel, args, drafting = config.parallel, _args(config), speculation.speculation_of(config)
    partition, arch = config.engine.env.get(PARTITION), architecture_of(config)
    attention = ascend.as_mapping(args.get("attention-config"))
    sparse, mlapo = arch is not None and arch.indexer is not None, _mlapo(config)
    return Layout.of(config), Sizes(
        release=config.engine.release,
        utilization=parallel.gpu_memory_utilization,
        tokens=parallel.max_num_batched_tokens or _ALLOWANCE_TOKENS,
        buffsize=buffsize_of(config),
        linear_bytes=1 if config.model.quantization == "ascend" else 2,
        expert_bits=config.model.shape.expert_bits,
        kv_dtype_bytes=_cache_bytes(args.get("kv-cache-dtype")),
        index_bytes=1 if _on(config, "enable_sparse_li_c8") else _cache_bytes(attention.get("indexer_kv_dtype")),
        packed=sparse and _on(config, "enable_sparse_sfa_c8"),
        sequences=parallel.max_num_seqs or 256,
        drafts=drafting.tokens or 1 if drafting else 0,
        drafter=drafting is not None and not drafting.is_mtp and drafting.method not in ("ngram", "suffix"),
        partition=None if partition is None else str(partition),
        by_layer=_on(config, "enable_kvpp"),
        mtp=loads_mtp(config),
        mlapo=mlapo is not False,
        mlapo_unseen=mlapo is None,
        graphs=_graphs(config),
        kv_bytes=whole_number(args, "kv-cache-memory-bytes", 0) or None,
    )


def _on(config: Config, key: str) -> bool:
    return ascend.is_true((config.engine.additional_config or {}).get(key))


def _cache_bytes(dtype: Any) -> int:
    return 1 if str(dtype or "").startswith(("fp8", "int8")) else 2


def _args(config: Config) -> dict[str, Any]:
    return {key.lstrip("-").replace("_", "-"): value for key, value in config.engine.args.items() if value is not None}


def buffsize_of(config: Config) -> int:
    """Return HCCL_BUFFSIZE of a config, MB."""
    return whole_number(config.engine.env, "HCCL_BUFFSIZE", config.hccl.buffsize or DEFAULT_BUFFSIZE, "engine.env")


def loads_mtp(config: Config) -> bool:
    """Return whether the checkpoint's multi-token prediction layer is loaded. ConfigError: it cannot be read."""
    speculation.check(config)
    found = speculation.speculation_of(config)
    return found is not None and found.is_mtp


def whole_number(settings: Mapping[str, Any], name: str, default: int, section: str = "engine.args") -> int:
    """Return a whole number of `engine.args` or `engine.env`; ConfigError where it is none."""
    value = settings.get(name)
    if value is None:
        return default
    if not re.fullmatch(r"\d+", str(value)):
        raise ConfigError(f"{section}.{name}", value, "a whole number is needed", "Give a whole number.")
    return int(value)


def _mlapo(config: Config) -> bool | None:
    """Return whether MLAPO keeps its second copy; None: only the checkpoint tells, which cannot be seen from here.

    It is off by default before 0.18, on from there; a key from 0.23 on, without its variable from 0.27.1 on (envs.py).
    Before 0.30 it needs projections with a static scale (W8A8): for W8A8_DYNAMIC the engine turns it off with a warning
    (vllm-ascend, attention/mla_v1.py of 0.11.0 to 0.26.0rc1; 0.30.0rc2 takes both on A2).
    """
    at = ascend.version(config.engine.release)
    value = config.engine.env.get("VLLM_ASCEND_ENABLE_MLAPO") if at < (0, 27) else None
    value = (config.engine.additional_config or {}).get("enable_mlapo", value)
    if not (at >= (0, 18) if value is None else ascend.is_true(value)):
        return False
    return True if at >= (0, 30) else static_attention(Path(config.model.path))


def _graphs(config: Config) -> bool:
    args = _args(config)
    mode = ascend.as_mapping(args.get("compilation-config")).get("cudagraph_mode")
    eager = ascend.is_true(args.get("enforce-eager")) or str(mode or "").upper() == "NONE"
    return ascend.version(config.engine.release) >= (0, 23) and not eager
