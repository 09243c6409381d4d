"""The sizes of a model that decide its memory, from the `config.json` of its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.core.errors import ConfigError

_PACKAGED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, V3, R1): ranks and head sizes. `query_rank` 0: not compressed."""

    query_rank: int
    kv_rank: int
    rope: int
    nope: int
    value: int

    @property
    def width(self) -> int:
        """Elements that the KV cache holds of one token in one layer."""
        return self.kv_rank + self.rope


@dataclass(frozen=True)
class Grouped:
    """Multi-head, grouped or multi-query attention: key-value heads and the size of a head."""

    kv_heads: int
    head: int


@dataclass(frozen=True)
class Stored:
    """The weights of a checkpoint as its files have them: `bytes` in all, and layers from 0 on (0: not known).

    `source` says which file, or files, the figure is from.
    """

    bytes: int
    layers: int
    source: str


@dataclass(frozen=True)
class Architecture:
    """A decoder-only model.

    Attributes:
        layers: all layers of the main model; `moe_layers` of them hold experts.
        experts, expert_size, experts_per_token: routed experts of a layer, their inner size, and how many one
            token uses; 0 in a dense model.
        shared_size: inner size of the shared experts of a layer together.
        intermediate: inner size of the feed-forward part of a dense layer.
        tied: one matrix serves as embedding and as output head.
        mtp_layers: multi-token prediction layers of the checkpoint; loaded only for speculative decoding.
        max_length: longest sequence that vLLM accepts without an override, tokens.
        stored: its checkpoint, where that can be seen from here.
    """

    hidden: int
    layers: int
    moe_layers: int
    heads: int
    attention: Latent | Grouped
    intermediate: int
    experts: int
    expert_size: int
    experts_per_token: int
    shared_size: int
    vocabulary: int
    tied: bool
    mtp_layers: int
    max_length: int
    stored: Stored | None = None


def from_hf_config(config: Mapping[str, Any]) -> Architecture:
    """Read a Hugging Face `config.json`: DeepSeek-V2/V3/R1, Llama, Qwen2/3, their MoE forms, Mixtral.

    Raises:
        ConfigError: a size that the sum needs is missing.
    """
    layers, hidden, heads = (_size(config, k) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    experts = next((config[k] for k in ("n_routed_experts", "num_experts", "num_local_experts") if config.get(k)), 0)
    expert_size = (config.get("moe_intermediate_size") or _size(config, "intermediate_size")) if experts else 0
    shared = config.get("shared_expert_intermediate_size") or (config.get("n_shared_experts") or 0) * expert_size
    return Architecture(
        hidden=hidden,
        layers=layers,
        moe_layers=_moe_layers(config, layers) if experts else 0,
        heads=heads,
        attention=_attention(config, hidden, heads),
        intermediate=_size(config, "intermediate_size"),
        experts=experts,
        expert_size=expert_size,
        experts_per_token=config.get("num_experts_per_tok", 0) if experts else 0,
        shared_size=shared if experts else 0,
        vocabulary=_size(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        mtp_layers=config.get("num_nextn_predict_layers") or 0,
        max_length=_max_length(config),
    )


def load(name: str, path: Path) -> Architecture:
    """Return the architecture of the checkpoint in `path`, else the packaged one of that name.

    Args:
        name: `model.name`, the name of a file in jobs/engines/checkpoint/models.
        path: `model.path`; it need not exist here, for the nodes may see more than the login node.

    Raises:
        ConfigError: there is neither, or the file is not a `config.json` of a known form.
    """
    for file in (path / "config.json", _PACKAGED / f"{name}.json"):
        if not file.is_file():
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError("model.path", path, f"{file} cannot be read: {error}", "Mend the file.") from None
        if not isinstance(config, dict):
            raise ConfigError("model.path", path, f"{file} is not a JSON object", "Mend the file.")
        try:
            return from_hf_config(config)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError("model.path", path, f"{file} has an unknown form: {error}", "Mend the file.") from None
    raise ConfigError(
        "model.path", path, "its config.json is not visible here", "Give a directory that holds config.json."
    )


def packaged(name: str) -> Architecture | None:
    """Return the packaged architecture of a model, or None where there is none of that name."""
    file = _PACKAGED / f"{name}.json"
    return from_hf_config(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ConfigError(f"config.json: {key}", value, "a whole number of at least 1 is needed", "Mend config.json.")
    return value


def _attention(config: Mapping[str, Any], hidden: int, heads: int) -> Latent | Grouped:
    if config.get("kv_lora_rank"):
        parts = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        return Latent(config.get("q_lora_rank") or 0, *(_size(config, key) for key in parts))
    return Grouped(config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads)


def _moe_layers(config: Mapping[str, Any], layers: int) -> int:
    if "first_k_dense_replace" in config:  # DeepSeek: transformers, configuration_deepseek_v3.py
        frequency = config.get("moe_layer_freq") or 1
        return sum(1 for layer in range(config["first_k_dense_replace"], layers) if layer % frequency == 0)
    step, dense = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or ()  # Qwen
    return sum(1 for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)


def _max_length(config: Mapping[str, Any]) -> int:
    """As vLLM derives it (vllm 0.9.1, config.py, `_get_and_verify_max_len`)."""
    length, scaling = _size(config, "max_position_embeddings"), config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if not scaling or kind in ("su", "longrope", "llama3"):
        return length
    if kind == "yarn":
        length = scaling.get("original_max_position_embeddings", length)
    return int(length * scaling.get("factor", 1))
