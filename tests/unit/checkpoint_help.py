"""Small checkpoints that are real: safetensors files, an index, a description, a tokenizer, written byte by byte."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BYTES = {"I8": 1, "BF16": 2, "F32": 4, "F8_E4M3": 1}

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 32,
    "max_position_embeddings": 4096,
}


def safetensors(tensors: Tensors, seed: int = 0) -> bytes:
    """Return a file: 8 bytes of length, a JSON header, the data (safetensors, README "Format")."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(end)


def layer(number: int, dtype: str = "I8") -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return one layer: a quantized projection with its scale and offset, and a norm."""
    name = f"model.layers.{number}.mlp.down_proj.weight"
    return {
        name: (dtype, (64, 128)),
        f"{name}_scale": ("F32", (64, 1)),
        f"{name}_offset": ("F32", (64, 1)),
        f"model.layers.{number}.input_layernorm.weight": ("BF16", (64,)),
    }


def kind(name: str, quantized: str) -> str:
    return quantized if "down_proj" in name else "FLOAT"


def write(path: Path, *, shards: int = 2, dtype: str = "I8", quantized: str = "W8A8_DYNAMIC", index: str = "") -> Path:
    """Write a checkpoint of as many layers as shards."""
    path.mkdir(parents=True, exist_ok=True)
    placed: dict[str, str] = {}
    described: dict[str, Any] = {"model_quant_type": "W8A8_DYNAMIC", "version": "1.0.0"}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        tensors = layer(number, dtype)
        (path / name).write_bytes(safetensors(tensors, seed=number))
        placed |= dict.fromkeys(tensors, name)
        described |= {tensor: kind(tensor, quantized) for tensor in tensors}
    index = index or "model.safetensors.index.json"
    (path / index).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (path / "quant_model_description.json").write_text(json.dumps(described))
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "configuration_deepseek.py").write_text("class DeepseekV3Config: ...\n")
    (path / "tokenizer.json").write_text(json.dumps({"model": {}}))
    (path / "tokenizer_config.json").write_text("{}")
    return path


def shard(path: Path, number: int = 1) -> Path:
    return sorted(path.glob("*.safetensors"))[number - 1]
