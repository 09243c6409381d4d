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
from dataclasses import dataclass
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines import ascend
from jobs.engines.ascend.lookup import required
from jobs.engines.ascend.weights import GIB, Term, kv_bytes_per_token, weights
from jobs.engines.checkpoint.architecture import Architecture

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
    own = {"mc2": buffsize, "dp": _DP_BUFFSIZE} if _version(release) >= (0, 11) else dict.fromkeys(sizes, buffsize)
    return tuple(
        Term(f"HCCL {name}", 2 * megabytes * MIB, f"2 x {megabytes} MB, group of {size} NPUs, release {release}")
        for name, size in sizes.items()
        if size > 1
        for megabytes in [own.get(name, DEFAULT_BUFFSIZE)]
    )


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])


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

    def utilization_for(self, length: int) -> float | None:
        """Return the utilization at which one request of `length` tokens fits; above 1: none. None: no NPU."""
        if not self.device_bytes:
            return None
        return (self._taken() + self._blocks(length) * self.kv_bytes_per_token) / self.device_bytes

    def calibrated(self, kv_tokens: int, source: str) -> Allowance:
        """Return the allowance with which this prediction gives the capacity that an engine printed.

        Args:
            kv_tokens: "GPU KV cache size" of its log, tokens of one data-parallel rank.
            source: where the figure stands.
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
            "terms": [{"name": term.name, "gib": term.gib, "source": term.source} for term in self.terms],
        }

    def _blocks(self, length: int) -> int:
        return max(1, math.ceil(length / self.block)) * self.block

    def _taken(self) -> float:
        return sum(term.bytes for term in self.terms)


def predict(
    arch: Architecture,
    layout: Layout,
    *,
    release: str,
    utilization: float | None = None,
    max_num_batched_tokens: int = _ALLOWANCE_TOKENS,
    buffsize: int = DEFAULT_BUFFSIZE,
    device_gib: float = DEVICE_GIB,
    allowance: Allowance = Allowance(),
    linear_bytes: int = 1,
    kv_dtype_bytes: int = 2,
    mtp: bool = False,
    mlapo: bool = False,
    kv_bytes: float | None = None,
    kv_only: bool = False,
) -> Prediction:
    """Return what fits on one NPU.

    Args:
        arch, layout: the model and how it lies on the NPUs.
        release: of vllm-ascend; decides the HCCL buffers.
        utilization: `gpu_memory_utilization`; None: the default of the release.
        max_num_batched_tokens: tokens of one engine step.
        buffsize: HCCL_BUFFSIZE, MB.
        device_gib: memory of the NPU as torch_npu reports it, GiB.
        allowance: activations and HCCL buffers, by default or from a log.
        linear_bytes, mtp, mlapo: see `weights`.
        kv_dtype_bytes: bytes of one KV cache element.
        kv_bytes: a KV cache of a fixed size (`--kv-cache-memory-bytes`, VLLM_CPU_KVCACHE_SPACE) instead of the rest.
        kv_only: there is no NPU: neither device memory nor buffers nor activations count (CPU engine).
    """
    weight = weights(
        arch,
        tp=layout.tp,
        dp=layout.dp,
        pcp=layout.pcp,
        expert_parallel=layout.expert_parallel,
        linear_bytes=linear_bytes,
        mtp=mtp,
        mlapo=mlapo,
    )
    rest: tuple[Term, ...] = ()
    uncertain = 0.0
    if not kv_only:
        buffers = hccl(layout, moe=arch.experts > 0, release=release, buffsize=buffsize)
        fitted = hccl(layout, moe=arch.experts > 0, release=release)
        taken = sum(term.bytes for term in fitted)
        activations, more = _activations(arch, layout, max_num_batched_tokens, allowance, taken)
        rest = (*buffers, activations)
        if kv_bytes is None:
            uncertain = allowance.uncertainty_gib * GIB
            uncertain += 0 if allowance.measured else more + _unconfirmed(buffers, fitted)
    device = 0.0 if kv_only else device_gib * GIB
    budget = ascend.utilization(release, utilization) * device
    left = budget - sum(term.bytes for term in (*weight, *rest)) if kv_bytes is None else kv_bytes
    spread = layout.dcp * layout.pcp
    whole = kv_bytes_per_token(arch, tp=layout.tp, mtp=mtp, dtype_bytes=kv_dtype_bytes)
    tokens = max(0, int(left // (whole * BLOCK))) * BLOCK * spread
    return Prediction(
        terms=(*weight, *rest),
        weights_bytes=sum(term.bytes for term in weight),
        device_bytes=device,
        budget_bytes=budget,
        kv_bytes=left,
        kv_bytes_per_token=math.ceil(whole / spread),
        kv_tokens_per_rank=tokens,
        largest_max_model_len=min(tokens, arch.max_length),
        block=BLOCK * spread,
        allowance=allowance,
        uncertainty_bytes=uncertain,
    )


def predict_config(
    config: Config,
    *,
    arch: Architecture | None = None,
    device_gib: float = DEVICE_GIB,
    allowance: Allowance = Allowance(),
) -> Prediction:
    """Return what fits with the settings of one point.

    The KV cache of engine=vllm_cpu is VLLM_CPU_KVCACHE_SPACE. The rehearsal engine, which has a sum of its own
    (jobs/engines/simulator/memory.py), is judged here as the NPUs that it stands for.

    Args:
        config: model, parallel, hccl and engine sections are used.
        arch: the model; by default `model.path`/config.json, else the packaged one of `model.name`.
        device_gib: memory of an NPU, GiB.
        allowance: by default, or from the log of an earlier run of this release and layout.

    Raises:
        ConfigError: the model is not known, or a setting is not covered by this sum.
    """
    parallel, engine = config.parallel, config.engine
    args = _args(config)
    if _whole(args, "pipeline-parallel-size", 1) > 1:
        key, stages = "engine.args.pipeline-parallel-size", args["pipeline-parallel-size"]
        raise ConfigError(key, stages, "memory is not predicted for pipeline stages", "Use tensor or data parallelism.")
    fixed = _whole(args, "kv-cache-memory-bytes", 0) or None
    if engine.name == "vllm_cpu":
        fixed = _whole(engine.env, "VLLM_CPU_KVCACHE_SPACE", 0, "engine.env") * GIB
        if not fixed:
            key = "engine.env.VLLM_CPU_KVCACHE_SPACE"
            raise ConfigError(key, engine.env.get(key[11:]), "the CPU engine's KV cache has no size", "Set it, in GiB.")
    return predict(
        arch or required(config),
        Layout(
            tp=parallel.tensor_parallel_size,
            dp=parallel.data_parallel_size,
            expert_parallel=parallel.enable_expert_parallel,
            dcp=parallel.decode_context_parallel_size or 1,
            pcp=parallel.prefill_context_parallel_size or 1,
        ),
        release=engine.release,
        utilization=parallel.gpu_memory_utilization,
        max_num_batched_tokens=parallel.max_num_batched_tokens or _ALLOWANCE_TOKENS,
        buffsize=buffsize_of(config),
        device_gib=device_gib,
        allowance=allowance,
        linear_bytes=1 if config.model.quantization == "ascend" else 2,
        kv_dtype_bytes=1 if str(args.get("kv-cache-dtype", "")).startswith(("fp8", "int8")) else 2,
        mtp=loads_mtp(config),
        mlapo=_mlapo(config),
        kv_bytes=fixed,
        kv_only=engine.name == "vllm_cpu",
    )


def _args(config: Config) -> dict[str, Any]:
    return {key.lstrip("-").replace("_", "-"): value for key, value in config.engine.args.items() if value is not None}


def buffsize_of(config: Config) -> int:
    """Return HCCL_BUFFSIZE of a config, MB."""
    return _whole(config.engine.env, "HCCL_BUFFSIZE", config.hccl.buffsize or DEFAULT_BUFFSIZE, "engine.env")


def loads_mtp(config: Config) -> bool:
    """Return whether the checkpoint's multi-token prediction layer is loaded for speculative decoding."""
    return _mtp(_args(config).get("speculative-config"))


def _whole(settings: Mapping[str, Any], name: str, default: int, section: str = "engine.args") -> int:
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
    default = _version(config.engine.release) >= (0, 18)
    value = config.engine.env.get("VLLM_ASCEND_ENABLE_MLAPO")
    value = (config.engine.additional_config or {}).get("enable_mlapo", value)
    return default if value is None else str(value).lower() in ("1", "true")
