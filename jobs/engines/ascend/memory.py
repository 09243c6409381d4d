"""What fits on one NPU: weights, HCCL buffers, activations, and the KV cache in what is left. Pure arithmetic.

    KV cache = utilization x device memory - weights - HCCL buffers - activations

**Allowance.** Activations and HCCL buffers together take 4.5 GiB at HCCL_BUFFSIZE=200 and up to 8192 batched tokens
(fitted to the FAQ of vllm-ascend 0.18.0, entry 24). The buffers are known, the rest is the activations' share. A log
corrects it: `Prediction.calibrated`.

**Uncertainty.** 1 GiB for the allowance, and all of what no log has confirmed: the tokens beyond 8192, and the part of
the `dp` and `mc2` buffers above those of HCCL_BUFFSIZE=200. HCCL makes a buffer at the first collective of its group,
and the profile run, after which the engine sizes its KV cache, is a prefill: it uses the groups `tp` and `ep` for
certain. That the sum is an upper bound there is known: the official two-node recipe of 0.9.1 (TP4 DP4, HCCL_BUFFSIZE
1024, utilization 0.9, max_model_len 32768) starts, and the full sum leaves it 2.3 GiB short. Measured: 0.25 GiB.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines import ascend
from jobs.engines.ascend.lookup import required
from jobs.engines.ascend.weights import kv_bytes_per_token, weights
from jobs.engines.checkpoint.architecture import Architecture
from jobs.engines.prediction import GIB, Allowance, Prediction, Term

MIB = 1 << 20

BLOCK = 128
"""Tokens of a KV cache block; vllm-ascend forces this size (0.9.1, platform.py)."""

DEVICE_GIB = 61.2
"""Memory of a 64 GB NPU that torch_npu reports, GiB (vllm-ascend issue 2378: 60.96; up to 61.3)."""

DEFAULT_BUFFSIZE = 200
"""HCCL_BUFFSIZE where it is not set, MB (CANN, envref_07_0080)."""

_DP_BUFFSIZE = 50
"""MB of the data-parallel group from 0.11 on (vllm-ascend, `calculate_dp_buffer_size`)."""

_ALLOWANCE_TOKENS = 8192
"""Batched tokens up to which the allowance holds."""

DEFAULT = Allowance()


@dataclass(frozen=True)
class Layout:
    """How a model lies on the NPUs; `dcp` and `pcp` are decode and prefill context parallel sizes."""

    tp: int
    dp: int
    expert_parallel: bool = False
    dcp: int = 1
    pcp: int = 1

    @property
    def npus(self) -> int:
        """NPUs in all; decode context parallelism reuses the tensor parallel ranks."""
        return self.tp * self.dp * self.pcp


def hccl(layout: Layout, *, moe: bool, release: str, buffsize: int = DEFAULT_BUFFSIZE) -> tuple[Term, ...]:
    """Return the HCCL buffers of one NPU: twice the buffer size for each communicator.

    0.9.1 uses HCCL_BUFFSIZE for every group. From 0.11 on only the group of fused MoE dispatch (mc2) does; the
    data-parallel group has 50 MB, the others 200 MB (vllm-ascend, utils.py, `get_hccl_config_for_pg_options`).

    Args:
        layout: which groups there are; a group of one NPU has no communicator.
        moe: the model has experts.
        release: of vllm-ascend.
        buffsize: HCCL_BUFFSIZE, MB.
    """
    experts = layout.npus if moe and layout.expert_parallel else 1
    sizes = {"tp": layout.tp, "dp": layout.dp, "ep": experts, "mc2": experts, "dcp": layout.dcp, "pcp": layout.pcp}
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
        linear_bytes, mtp, mlapo: see `weights`.
        kv_dtype_bytes: bytes of one KV cache element.
        kv_bytes: a KV cache of a fixed size (`--kv-cache-memory-bytes`) instead of the rest.
    """

    release: str
    utilization: float | None = None
    tokens: int = _ALLOWANCE_TOKENS
    buffsize: int = DEFAULT_BUFFSIZE
    device_gib: float = DEVICE_GIB
    allowance: Allowance = DEFAULT
    linear_bytes: int = 1
    kv_dtype_bytes: int = 2
    mtp: bool = False
    mlapo: bool = False
    kv_bytes: float | None = None


def predict(arch: Architecture, layout: Layout, sizes: Sizes) -> Prediction:
    """Return what fits on one NPU."""
    moe, allowance = arch.experts > 0, sizes.allowance
    buffers = hccl(layout, moe=moe, release=sizes.release, buffsize=sizes.buffsize)
    fitted = hccl(layout, moe=moe, release=sizes.release)
    activations, more = _activations(arch, layout, sizes.tokens, allowance, sum(term.bytes for term in fitted))
    weight = weights_of(arch, layout, sizes)
    terms = (*weight, *buffers, activations)
    device = sizes.device_gib * GIB
    budget = ascend.utilization(sizes.release, sizes.utilization) * device
    left, uncertain = sizes.kv_bytes, 0.0
    if left is None:
        left = budget - sum(term.bytes for term in terms)
        uncertain = allowance.uncertainty_gib * GIB
        uncertain += 0 if allowance.measured else more + _unconfirmed(buffers, fitted)
    found = fixed(arch, layout, sizes, left)
    return replace(found, terms=terms, device_bytes=device, budget_bytes=budget, uncertainty_bytes=uncertain)


def fixed(arch: Architecture, layout: Layout, sizes: Sizes, kv_bytes: float) -> Prediction:
    """Return what a KV cache of so many bytes holds, where neither device memory nor buffers nor activations count."""
    weight = weights_of(arch, layout, sizes)
    spread = layout.dcp * layout.pcp
    whole = kv_bytes_per_token(arch, tp=layout.tp, mtp=sizes.mtp, dtype_bytes=sizes.kv_dtype_bytes)
    tokens = max(0, int(kv_bytes // (whole * BLOCK))) * BLOCK * spread
    return Prediction(
        terms=weight,
        weights_bytes=sum(term.bytes for term in weight),
        device_bytes=0.0,
        budget_bytes=0.0,
        kv_bytes=kv_bytes,
        kv_bytes_per_token=math.ceil(whole / spread),
        kv_tokens_per_rank=tokens,
        largest_max_model_len=min(tokens, arch.max_length),
        block=BLOCK * spread,
        allowance=sizes.allowance,
    )


def weights_of(arch: Architecture, layout: Layout, sizes: Sizes) -> tuple[Term, ...]:
    """Return the weights of one NPU, line by line."""
    return weights(
        arch,
        tp=layout.tp,
        dp=layout.dp,
        pcp=layout.pcp,
        expert_parallel=layout.expert_parallel,
        linear_bytes=sizes.linear_bytes,
        mtp=sizes.mtp,
        mlapo=sizes.mlapo,
    )


def predict_config(
    config: Config,
    *,
    arch: Architecture | None = None,
    device_gib: float | None = None,
    allowance: Allowance | None = None,
) -> Prediction:
    """Return what fits on an NPU with the settings of one point.

    Args:
        config: model, parallel, hccl and engine sections are used.
        arch: the model; by default `model.path`/config.json, else the packaged one of `model.name`.
        device_gib: memory of an NPU, GiB; None: that of the default.
        allowance: None: the default, or that of the log of an earlier run of this release and layout.

    Raises:
        ConfigError: the model is not known, or a setting is not covered by this sum.
    """
    layout, sizes = asked(config)
    sizes = replace(sizes, device_gib=device_gib or DEVICE_GIB, allowance=allowance or DEFAULT)
    return predict(arch or required(config), layout, sizes)


def asked(config: Config) -> tuple[Layout, Sizes]:
    """Return layout and sizes of one point.

    Raises:
        ConfigError: a setting is not covered by this sum.
    """
    parallel = config.parallel
    args = _args(config)
    if whole_number(args, "pipeline-parallel-size", 1) > 1:
        key, stages = "engine.args.pipeline-parallel-size", args["pipeline-parallel-size"]
        raise ConfigError(key, stages, "memory is not predicted for pipeline stages", "Use tensor or data parallelism.")
    layout = Layout(
        tp=parallel.tensor_parallel_size,
        dp=parallel.data_parallel_size,
        expert_parallel=parallel.enable_expert_parallel,
        dcp=parallel.decode_context_parallel_size or 1,
        pcp=parallel.prefill_context_parallel_size or 1,
    )
    return layout, Sizes(
        release=config.engine.release,
        utilization=parallel.gpu_memory_utilization,
        tokens=parallel.max_num_batched_tokens or _ALLOWANCE_TOKENS,
        buffsize=buffsize_of(config),
        linear_bytes=1 if config.model.quantization == "ascend" else 2,
        kv_dtype_bytes=1 if str(args.get("kv-cache-dtype", "")).startswith(("fp8", "int8")) else 2,
        mtp=loads_mtp(config),
        mlapo=_mlapo(config),
        kv_bytes=whole_number(args, "kv-cache-memory-bytes", 0) or None,
    )


def _args(config: Config) -> dict[str, Any]:
    return {key.lstrip("-").replace("_", "-"): value for key, value in config.engine.args.items() if value is not None}


def buffsize_of(config: Config) -> int:
    """Return HCCL_BUFFSIZE of a config, MB."""
    return whole_number(config.engine.env, "HCCL_BUFFSIZE", config.hccl.buffsize or DEFAULT_BUFFSIZE, "engine.env")


def loads_mtp(config: Config) -> bool:
    """Return whether the checkpoint's multi-token prediction layer is loaded for speculative decoding."""
    return _mtp(_args(config).get("speculative-config"))


def whole_number(settings: Mapping[str, Any], name: str, default: int, section: str = "engine.args") -> int:
    """Return a whole number of `engine.args` or `engine.env`; ConfigError where it is none."""
    value = settings.get(name)
    if value is None:
        return default
    if not re.fullmatch(r"\d+", str(value)):
        raise ConfigError(f"{section}.{name}", value, "a whole number is needed", "Give a whole number.")
    return int(value)


def _mtp(speculative: Any) -> bool:
    """Whether `--speculative-config` loads the checkpoint's own prediction layer ("mtp", "deepseek_mtp")."""
    if isinstance(speculative, str):
        try:
            speculative = json.loads(speculative)
        except ValueError as error:
            key = "engine.args.speculative-config"
            raise ConfigError(key, speculative, f"it is not JSON: {error}", "Give a mapping.") from None
    return isinstance(speculative, Mapping) and str(speculative.get("method", "")).endswith("mtp")


def _mlapo(config: Config) -> bool:
    """Off by default before 0.18, on from there; a key from 0.23 on (vllm-ascend, envs.py, ascend_config.py)."""
    default = ascend.version(config.engine.release) >= (0, 18)
    value = config.engine.env.get("VLLM_ASCEND_ENABLE_MLAPO")
    value = (config.engine.additional_config or {}).get("enable_mlapo", value)
    return default if value is None else str(value).lower() in ("1", "true")
