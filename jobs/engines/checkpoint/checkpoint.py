"""What belongs to a checkpoint: its files, its index, its shards, and what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.core.errors import RunError
from jobs.engines.checkpoint.safetensors import Damaged, Header, read_header

CONFIG = "config.json"
DESCRIPTION = "quant_model_description.json"
"""Quantization type of every tensor (vllm-ascend, `AscendQuantConfig.get_config_filenames`)."""

INDEX = "model.safetensors.index.json"
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("tiktoken.model",))
"""Files of a tokenizer; one of these sets is enough (transformers, slow and fast tokenizers)."""

BESIDE = (
    INDEX, "quant_model_weights.safetensors.index.json", "quant_model_weight_w8a8_dynamic.safetensors.index.json",
    DESCRIPTION, "configuration.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files that a checkpoint may have beside its config and weights; the index of transformers, or one of msModelSlim."""

PART = ".part"
"""Ending of a file that is not whole yet."""

STAMP = ".staged.json"
"""Written last into a staged copy; without it the copy is not trusted."""

SMALL_BYTES = 64 << 20
"""Files up to this size that are no weights are hashed as a whole."""

READERS = 16
"""Headers that are read at a time: on a shared file system each costs a round trip or two."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a checkpoint: the file, the problem, the remedy."""

    file: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem.rstrip('.')}. {self.remedy}"


FETCH_AGAIN = "Fetch this file again: `python -m jobs model fetch` resumes."


def files(path: Path) -> dict[str, int]:
    """Return the files of a checkpoint and their sizes in bytes, by name relative to it, in order of name.

    Hidden files (a download client's own records) and halves are left out. Links are followed: a cache of a
    download client may hold nothing else.
    """
    found = {}
    for file in path.rglob("*"):
        name = file.relative_to(path)
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and file.suffix != PART and file.is_file():
            found[str(name)] = file.stat().st_size
    return dict(sorted(found.items()))


def read_object(path: Path) -> tuple[dict[str, Any], Finding | None]:
    """Return a JSON object, or an empty one and what is wrong with the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, Finding(path.name, "it is not there", FETCH_AGAIN)
    except OSError as error:
        return {}, Finding(path.name, f"it cannot be read: {error.strerror}", "Mend its rights.")
    except ValueError as error:
        return {}, Finding(path.name, f"it is not JSON: {error}", FETCH_AGAIN)
    if not isinstance(value, dict):
        return {}, Finding(path.name, "it is not a JSON object", FETCH_AGAIN)
    return value, None


def index_name(path: Path) -> str | None:
    """Return the name of the index: msModelSlim writes one that is not called as transformers call it."""
    names = sorted(file.name for file in path.glob("*.safetensors.index.json"))
    return INDEX if INDEX in names else names[0] if names else None


def shard_names(path: Path) -> list[str]:
    """Return the names of the weight files that the index gives; without an index there is one.

    Raises:
        RunError: the index cannot be read, or names a file outside the checkpoint.
    """
    if not (name := index_name(path)):
        return ["model.safetensors"]
    index, wrong = read_object(path / name)
    if wrong or not isinstance(mapping := index.get("weight_map"), dict):
        raise RunError(name, path, str(wrong or "it has no weight_map"), FETCH_AGAIN)
    for shard in mapping.values():
        if Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise RunError(name, shard, "it names a file outside the checkpoint", "Do not trust where it is from.")
    return sorted(set(mapping.values()))


@dataclass(frozen=True)
class Weights:
    """How large the weights are: bytes, layers that the index names (0: there is none), and which file says so."""

    bytes: int
    layers: int
    source: str


_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def weight_bytes(path: Path) -> Weights | None:
    """Return the size of the weights, from the index and the lengths of its shards; no shard is opened.

    Where not all shards can be seen, the index's own total_size stands for them. None: nothing says.
    """
    try:
        name = index_name(path) if path.is_dir() else None
    except OSError:  # it cannot be seen from here
        return None
    index, finding = read_object(path / name) if name else ({}, None)
    mapping, metadata = index.get("weight_map"), index.get("metadata")
    placed = {str(shard) for shard in mapping.values()} if isinstance(mapping, dict) else set()
    if not name:
        placed = set(_weight_files(path))
    try:
        length = sum((path / shard).stat().st_size for shard in placed)
    except OSError:
        length = 0
    tensors = mapping if isinstance(mapping, dict) else {}
    layers = 1 + max((int(found[1]) for one in tensors if (found := _LAYER.search(one))), default=-1)
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if finding is None and length:
        return Weights(length, layers, f"lengths of {len(placed)} weight files")
    if type(total) is int and total > 0:
        return Weights(total, layers, f"total_size in {name}")
    return None


@dataclass(frozen=True)
class Shards:
    """The weight files as their own headers describe them, and what is wrong with them."""

    headers: Mapping[str, Header] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def read_shards(path: Path) -> Shards:
    """Read the index and the header of every shard; no data is read.

    Every shard that the index names must be there, whole, and hold the tensors that the index puts into it. A
    checkpoint without an index may have one weight file.
    """
    name, findings = index_name(path), []
    placed: dict[str, list[str]] = {}
    if name:
        index, finding = read_object(path / name)
        mapping = index.get("weight_map", {})
        if finding or not isinstance(mapping, dict) or not mapping:
            return Shards({}, (finding or Finding(name, "it has no weight_map", FETCH_AGAIN),))
        for tensor, shard in mapping.items():
            placed.setdefault(str(shard), []).append(tensor)
    else:
        single = sorted(file.name for file in path.glob("*.safetensors"))
        if len(single) != 1:
            problem = "there is no index" + (f" for {len(single)} weight files" if single else " and no weight file")
            return Shards({}, (Finding(INDEX, problem, FETCH_AGAIN),))
        placed[single[0]] = []
    headers: dict[str, Header] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for shard, result in zip(placed, pool.map(lambda shard: _header(path / shard), placed), strict=True):
            if isinstance(result, Finding):
                findings.append(result)
                continue
            headers[shard] = result
            if missing := [tensor for tensor in placed[shard] if tensor not in result.tensors]:
                problem = f"{len(missing)} tensors that {name} puts there are not in it, {missing[0]} among them"
                findings.append(Finding(shard, problem, "Index and shards are of two versions: fetch both again."))
    if stray := sorted(set(_weight_files(path)) - placed.keys()):
        problem = f"{len(stray)} weight files are not in the index, {stray[0]} among them"
        findings.append(Finding(name or INDEX, problem, "An engine may load them too: move them away."))
    return Shards(headers, tuple(findings))


def _weight_files(path: Path) -> list[str]:
    return [file.name for file in path.glob("*.safetensors") if not file.name.startswith(".")]


def _header(path: Path) -> Header | Finding:
    if not path.exists():
        return Finding(path.name, "the index names it and it is not there", FETCH_AGAIN)
    try:
        return read_header(path)
    except Damaged as error:
        return Finding(path.name, str(error), FETCH_AGAIN)
