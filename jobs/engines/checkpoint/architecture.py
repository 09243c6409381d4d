"""The sizes of a model that decide its memory, from the `config.json` of its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jobs.core import names
from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.core.fields import from_root
from jobs.core.foreign import load_json
from jobs.engines.checkpoint.checkpoint import Stored, weight_bytes
from jobs.engines.checkpoint.parts import Indexer, Linear, Stage

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
class Architecture:
    """A decoder-only model.

    Attributes:
        layers: all layers of the main model; the last `moe_layers` of them hold experts.
        experts, expert_size, experts_per_token: routed experts of a layer, their inner size, and how many one
            token uses; 0 in a dense model.
        shared_size: inner size of the shared experts of a layer together.
        intermediate: inner size of the feed-forward part of a dense layer.
        tied: one matrix serves as embedding and as output head.
        mtp_layers: multi-token prediction layers of the checkpoint; loaded only for speculative decoding.
        max_length: longest sequence that vLLM accepts without an override, tokens.
        indexer: of sparse attention; None: it attends to everything.
        linear: the layers that have linear attention instead; None: none has.
        embeds, heads_out: it holds the embedding, the output head; a pipeline stage may not.
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
    indexer: Indexer | None = None
    linear: Linear | None = None
    embeds: bool = True
    heads_out: bool = True
    stored: Stored | None = None

    def part(self, stage: Stage) -> Architecture:
        """Return what one pipeline stage holds of the model. Draft models are on the last one."""
        dense = self.layers - self.moe_layers
        return replace(
            self,
            layers=stage.size,
            moe_layers=max(0, stage.end - max(stage.begin, dense)),
            mtp_layers=self.mtp_layers if stage.last else 0,
            indexer=self.indexer and replace(self.indexer, layers=stage.of(self.indexer.layers)),
            linear=self.linear and replace(self.linear, layers=stage.of(self.linear.layers)),
            embeds=stage.first,
            heads_out=stage.last,
            stored=None,
        )


def from_hf_config(config: Mapping[str, Any]) -> Architecture:
    """Read a Hugging Face `config.json`: DeepSeek-V2/V3/R1/V3.2, GLM-5, Kimi-K2, Llama, Qwen2/3, MoE forms, Mixtral.

    Of a model that also sees, the language model is read: its vision tower (Kimi-K2.5, GLM-5.3-Flash: below 1 GiB) is
    left out.

    Raises:
        ConfigError: a size that the sum needs is missing, or is none.
    """
    try:
        return _checked(_read(config))
    except WRONG as error:
        raise ConfigError("config.json", "(form)", f"it has an unknown form: {error}", "Mend the file.") from None


WRONG = (TypeError, ValueError, AttributeError, ArithmeticError)
"""What comes of values of another kind than they should be."""


def _read(config: Mapping[str, Any]) -> Architecture:
    if isinstance(text := config.get("text_config"), Mapping):
        config = text
    layers, hidden, heads = (_size(config, k) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    if layers > MOST_LAYERS:
        raise ValueError(f"{layers} layers")
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
        indexer=_indexer(config, layers),
        linear=_linear(config),
    )


def load(name: str, path: Path) -> Architecture:
    """Return the architecture of the checkpoint in `path`, else the packaged one of that name (`model.name`).

    The path need not exist here, for the nodes may see more than the login node.

    Raises:
        ConfigError: there is neither, or the file is not a `config.json` of a known form.
    """
    for file in (path / "config.json", _PACKAGED / f"{name}.json"):
        if not file.is_file():
            continue
        try:
            config = load_json(file)
        except RunError as error:
            raise ConfigError("model.path", path, f"{file} cannot be read: {error.reason}", "Mend the file.") from None
        if not isinstance(config, dict):
            raise ConfigError("model.path", path, f"{file} is not a JSON object", "Mend the file.")
        try:
            return _checked(_read(config))
        except WRONG as error:
            raise ConfigError("model.path", path, f"{file} has an unknown form: {error}", "Mend the file.") from None
    reason = "its config.json is not visible here"
    raise ConfigError("model.path", path, reason, "Give a directory that holds config.json.")


MOST_LAYERS, LARGEST = 10_000, 10**9
"""No model has more layers, or a larger size: whoever made such a file wants a sum that does not end, or overflows."""


def _checked(found: Architecture) -> Architecture:
    """Return an architecture. ValueError: a size in it is none."""
    sizes = {
        f"{name}.{one}": size
        for name, part in vars(found).items()
        if is_dataclass(part)
        for one, size in vars(part).items()
    }
    for name, size in (vars(found) | sizes).items():
        is_size = isinstance(size, int) and 0 <= size <= LARGEST
        if not (is_size or size is None or isinstance(size, tuple) or is_dataclass(size)):
            raise ValueError(f"{name} = {size}")
    if isinstance(found.attention, Grouped) and min(found.attention.kv_heads, found.attention.head) < 1:
        raise ValueError(f"{found.attention.kv_heads} heads of {found.attention.head} elements")
    return found


def architecture_of(config: Config) -> Architecture | None:
    """Return the architecture of `model`; None where its config.json is not visible from here."""
    try:
        return required(config)
    except ConfigError:
        return None


def required(config: Config) -> Architecture:
    """Return the architecture of `model`, read once.

    Raises:
        ConfigError: its config.json is not visible from here, or is not of a known form.
    """
    return _seen(config.model.name, config.model.path, config.model.load_format == "dummy")


@cache
def _seen(name: str, path: str, dummy: bool) -> Architecture:
    """Return the architecture and, unless the weights are made up, what the checkpoint's files say of them."""
    where = Path(from_root(path))
    return replace(load(name, where), stored=None if dummy else weight_bytes(where))


def packaged(name: str) -> Architecture | None:
    """Return the packaged architecture of a model, or None where there is none of that name."""
    try:
        file = _PACKAGED / names.file_name(f"{name}.json")
    except ValueError:
        return None
    return from_hf_config(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ConfigError(f"config.json: {key}", value, "a whole number of at least 1 is needed", "Mend config.json.")
    return value


def _attention(config: Mapping[str, Any], hidden: int, heads: int) -> Latent | Grouped:
    if config.get("kv_lora_rank"):
        rank, nope, value = (_size(config, key) for key in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim"))
        rope = 0 if config.get("qk_rope_head_dim") == 0 else _size(config, "qk_rope_head_dim")  # GLM-5.3-Flash has none
        return Latent(config.get("q_lora_rank") or 0, rank, rope, nope, value)
    return Grouped(config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads)


def _indexer(config: Mapping[str, Any], layers: int) -> Indexer | None:
    """Read the indexer of sparse attention.

    Which layers have one of their own: `indexer_types`, else every `index_topk_freq`-th (transformers 5.19,
    configuration_glm_moe_dsa.py; vllm 0.32, models/deepseek_v2.py). Layers with linear attention have none.
    """
    if not config.get("index_topk"):
        return None
    step, offset = max(config.get("index_topk_freq") or 1, 1), config.get("index_skip_topk_offset", 2)
    kinds = config.get("indexer_types") or [
        "shared" if max(n - offset + 1, 0) % step else "full" for n in range(layers)
    ]
    skip = linear.layers if (linear := _linear(config)) else ()
    own = tuple(layer for layer, kind in enumerate(kinds) if kind == "full" and layer not in skip)
    return Indexer(_size(config, "index_n_heads"), _size(config, "index_head_dim"), own, config.get("index_kpool") or 1)


def _linear(config: Mapping[str, Any]) -> Linear | None:
    """Read the layers with linear attention (transformers 5.19, configuration_glm5_next.py)."""
    found = tuple(n for n, kind in enumerate(config.get("layer_types") or ()) if kind == "linear_attention")
    if not found or not isinstance(sizes := config.get("linear_attn_config"), Mapping):
        return None
    heads, head, kernel = (_size(sizes, key) for key in ("num_heads", "head_dim", "short_conv_kernel_size"))
    return Linear(heads, head, kernel, found)


def _moe_layers(config: Mapping[str, Any], layers: int) -> int:
    if "first_k_dense_replace" in config:  # DeepSeek: transformers, configuration_deepseek_v3.py
        frequency = config.get("moe_layer_freq") or 1
        return sum(1 for layer in range(config["first_k_dense_replace"], layers) if layer % frequency == 0)
    if kinds := config.get("mlp_layer_types"):  # GLM-5.3-Flash
        return sum(1 for kind in kinds if kind == "sparse")
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
