"""Is it the W8A8 checkpoint? By content: dtypes in the shards against `quant_model_description.json`.

The article's FAQ: answers of poor quality come from a wrong checkpoint. The description gives every tensor a type
(msModelSlim: FLOAT, W8A8, W8A8_DYNAMIC, W4A8_DYNAMIC, ...); vllm-ascend chooses a layer's method by the type of its
`.weight` (vllm-ascend 0.9.1, quantization/quant_config.py). A W8A8 weight is INT8 with a scale beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.engines.checkpoint.checkpoint import DESCRIPTION, Finding
from jobs.engines.checkpoint.safetensors import Header, Tensor

W8A8 = ("W8A8", "W8A8_DYNAMIC")
FLOATS = ("BF16", "F16", "F32")
LEAST_SHARE = 0.9
"""Share of all elements that INT8 weights have at least: 97.8 % in DeepSeek-R1 (embedding, output head, kv_b and the
prediction layer stay in 16 bits)."""

OFFICIAL = "Fetch the official W8A8 checkpoint (`python -m jobs model fetch`); a home-made one answers poorly."


@dataclass(frozen=True)
class Shares:
    """Shares of all elements of the checkpoint, from 0 to 1: by described type, and by dtype in the shards."""

    by_type: Mapping[str, float]
    by_dtype: Mapping[str, float]


def examine(description: Mapping[str, Any], headers: Mapping[str, Header]) -> tuple[Shares, list[Finding]]:
    """Return the shares, and what speaks against W8A8."""
    tensors: dict[str, Tensor] = {}
    for header in headers.values():
        tensors |= header.tensors
    shares = Shares(
        _shares(tensors, {name: _type(description.get(name)) for name in tensors}),
        _shares(tensors, {name: tensor.dtype for name, tensor in tensors.items()}),
    )
    findings = [*_shares_of_w8a8(shares), *_contradictions(description, tensors)] if tensors else []
    return shares, findings


def _type(value: Any) -> str:
    return value if isinstance(value, str) else "not described"


def _shares(tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        counts[kinds[name]] += tensor.elements
    total = counts.total() or 1
    return {kind: count / total for kind, count in counts.most_common()}


def _shares_of_w8a8(shares: Shares) -> list[Finding]:
    found = []
    described, stored = sum(shares.by_type.get(kind, 0.0) for kind in W8A8), shares.by_dtype.get("I8", 0.0)
    if described < LEAST_SHARE:
        found.append(
            Finding(DESCRIPTION, f"only {described:.0%} of the model is W8A8 ({_text(shares.by_type)})", OFFICIAL)
        )
    if stored < LEAST_SHARE:
        found.append(
            Finding("*.safetensors", f"only {stored:.0%} of the model is INT8 ({_text(shares.by_dtype)})", OFFICIAL)
        )
    others = {kind for kind in shares.by_type if kind.startswith("W") and kind not in W8A8}
    if others:
        found.append(Finding(DESCRIPTION, f"some weights are {', '.join(sorted(others))}, not W8A8", OFFICIAL))
    return found


def _text(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())


def _contradictions(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Finding]:
    """Return where description and shards differ, one finding a kind with the first tensor as its example."""
    kinds: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if not name.endswith(".weight"):
            continue
        kind = _type(description.get(name))
        if kind in W8A8 and tensor.dtype != "I8":
            kinds.setdefault("described as W8A8 and not INT8 in the shards", []).append(f"{name} ({tensor.dtype})")
        elif kind == "FLOAT" and tensor.dtype not in FLOATS:
            kinds.setdefault("described as FLOAT and not so in the shards", []).append(f"{name} ({tensor.dtype})")
        elif kind == "not described" and tensor.dtype == "I8":
            kinds.setdefault("INT8 in the shards and not described", []).append(name)
        if tensor.dtype == "I8" and f"{name}_scale" not in tensors:
            kinds.setdefault("INT8 without a scale beside them", []).append(name)
    # The description also has plain values (version, model_quant_type): only names of tensors count.
    if absent := [n for n in description if n.endswith(".weight") and n not in tensors]:
        kinds["described and not in the shards"] = absent
    return [
        Finding(DESCRIPTION, f"{len(names)} weights are {what}, {names[0]} among them", OFFICIAL)
        for what, names in kinds.items()
    ]
