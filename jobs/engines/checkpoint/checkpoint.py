"""What belongs to a checkpoint: its files, its index, its shards, and what their headers say.

A `.safetensors` file (safetensors, README "Format") is 8 bytes little-endian header length, a JSON header of that
length, then the data; `data_offsets` count from the first byte of the data, and the data has no holes.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jobs.core import names
from jobs.core.errors import RunError
from jobs.core.files import is_there
from jobs.core.foreign import load_json, parse_json, regular

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


def check_small(key: str, file: object, size: int) -> None:
    """Raise RunError for a file that is no weights, and larger than such files are: it would fill a disk."""
    if size > SMALL_BYTES:
        reason = f"it has {size:,} bytes, and is no file of weights"
        raise RunError(key, file, reason, "Do not trust where it is from.")


def read_object(path: Path) -> tuple[dict[str, Any], Finding | None]:
    """Return a JSON object, or an empty one and what is wrong with the file."""
    if is_there(path) is False:
        return {}, Finding(path.name, "it is not there", FETCH_AGAIN)
    try:
        value = load_json(path)
    except RunError as error:
        return {}, Finding(path.name, error.reason, f"Mend its rights, or: {FETCH_AGAIN}")
    if not isinstance(value, dict):
        return {}, Finding(path.name, "it is not a JSON object", FETCH_AGAIN)
    return value, None


def modules(config: Mapping[str, Any]) -> list[str]:
    """Return the files of code that a config.json names beside it (`auto_map`), in order of name.

    A reference is `module.Class`, or `repository--module.Class` where the code is elsewhere.

    Raises:
        RunError: one does not name a module beside it.
    """
    codes = config.get("auto_map") or {}
    codes = codes.values() if isinstance(codes, dict) else [codes]
    found = set()
    for code in (item for value in codes for item in (value if isinstance(value, list) else [value]) if item):
        if "--" not in str(code):
            try:
                found.add(names.module(code))
            except ValueError as error:
                remedy = "Do not trust where it is from."
                raise RunError(f"{CONFIG}: auto_map", str(code)[:100], str(error), remedy) from None
    return sorted(found)


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
    placed, wrong = placement(name, *read_object(path / name))
    if wrong:
        raise RunError(name, path, wrong.problem, wrong.remedy)
    return sorted(placed)


Placed = dict[str, list[str]]
"""Tensors by weight file."""


def placement(name: str, index: Mapping[str, Any], wrong: Finding | None) -> tuple[Placed, Finding | None]:
    """Return the tensors of each weight file as an index places them, or none and what is wrong with the index.

    The names become paths, of which a copy that is not right is removed: only plain names pass. `index` and `wrong` are
    what `read_object` says of it.
    """
    mapping = index.get("weight_map")
    if wrong or not isinstance(mapping, dict) or not mapping:
        return {}, wrong or Finding(name, "it has no weight_map", FETCH_AGAIN)
    placed: dict[str, list[str]] = {}
    for tensor, shard in mapping.items():
        try:
            placed.setdefault(names.file_below(shard), []).append(tensor)
        except ValueError as error:
            problem = f"it names a file outside the checkpoint: {str(shard)[:100]!r}, {error}"
            return {}, Finding(name, problem, "Do not trust where it is from.")
    return placed, None


@dataclass(frozen=True)
class Stored:
    """How large the weights are: bytes, layers that the index names (0: there is none), and which file says so."""

    bytes: int
    layers: int
    source: str


def static_attention(path: Path) -> bool | None:
    """Return whether the projections of latent attention are W8A8 with a static scale; None: nothing tells."""
    try:
        stamp = (path / DESCRIPTION).stat()
    except OSError:
        return None
    return _static_attention(path / DESCRIPTION, stamp.st_mtime_ns)


@cache
def _static_attention(path: Path, _: int) -> bool | None:
    described, _finding = read_object(path)
    kinds = {kind for name, kind in described.items() if name.endswith("self_attn.q_a_proj.weight") and kind != "FLOAT"}
    return kinds == {"W8A8"} if kinds else None


_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.")


def weight_bytes(path: Path) -> Stored | None:
    """Return the size of the weights, from the index and the lengths of its shards; no shard is opened.

    Where not all shards can be seen, the index's own total_size stands for them. None: nothing says.
    """
    try:
        name = index_name(path) if path.is_dir() else None
    except OSError:  # it cannot be seen from here
        return None
    index, finding = read_object(path / name) if name else ({}, None)
    placed, finding = placement(name, index, finding) if name else ({one: [] for one in _weight_files(path)}, None)
    try:
        length = sum((path / shard).stat().st_size for shard in placed)
    except OSError:
        length = 0
    tensors = (tensor for shard in placed.values() for tensor in shard)
    layers = 1 + max((int(found[1]) for one in tensors if (found := _LAYER.search(one))), default=-1)
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if finding is None and length:
        return Stored(length, layers, f"lengths of {len(placed)} weight files")
    if type(total) is int and total > 0:
        return Stored(total, layers, f"total_size in {name}")
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
        placed, finding = placement(name, *read_object(path / name))
        if finding:
            return Shards({}, (finding,))
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


LARGEST_HEADER = 32 << 20
"""Longer headers are refused, bytes: 200,000 tensors. (The reference implementation takes 100 MB, which are 1.4 GB as
Python's objects.)"""

LARGE_HEADER = 1 << 20
"""Of longer headers one is read at a time, bytes."""

_LARGE = threading.Lock()

BITS = {
    dtype: bits
    for bits, dtypes in (
        (4, "F4"), (6, "F6_E2M3 F6_E3M2"), (8, "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0"), (16, "U16 I16 F16 BF16"),
        (32, "U32 I32 F32"), (64, "U64 I64 F64 C64"),
    )
    for dtype in dtypes.split()
}  # fmt: skip
"""Bits of one element by dtype."""


class Damaged(Exception):
    """A file that is no whole safetensors file; the text says why."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: dtype as safetensors writes it, shape, and bytes."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file holds. `size` is the length in bytes that the whole file has."""

    tensors: Mapping[str, Tensor]
    size: int


def read_header(path: Path) -> Header:
    """Read the header of a file and compare the file's length with it; the data itself is not read.

    Raises:
        Damaged: it cannot be read, is cut short or too long, or its header contradicts itself.
    """
    try:
        with regular(path) as file, contextlib.ExitStack() as turn:
            there = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if there < 8 or length > LARGEST_HEADER or length > there - 8:
                raise Damaged(f"it has {there} bytes and asks for a header of {length}: cut short, or no safetensors")
            if length > LARGE_HEADER:
                turn.enter_context(_LARGE)
            values = parse_json(file.read(length))
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Damaged(f"its header is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise Damaged("its header is not a JSON object")
    tensors, end = {}, 0
    for name, item in values.items():
        if name != "__metadata__":
            tensors[name], last = _tensor(name, item)
            end = max(end, last)
    if sum(tensor.bytes for tensor in tensors.values()) != end:
        raise Damaged("its tensors overlap or leave holes")
    size = 8 + length + end
    if there != size:
        how = f"{size - there:,} bytes are missing" if there < size else f"{there - size:,} bytes too many"
        raise Damaged(f"it has {there:,} bytes and its header asks for {size:,}: {how}")
    return Header(tensors, size)


def _tensor(name: str, item: Any) -> tuple[Tensor, int]:
    try:
        begin, end = item["data_offsets"]
        if any(type(n) is not int or not 0 <= n < 2**63 for n in (begin, end, *item["shape"])):
            raise ValueError
        tensor = Tensor(str(item["dtype"]), tuple(item["shape"]), end - begin)
        bits = BITS[tensor.dtype]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Damaged(f"its header has no proper entry for {name}") from None
    if begin < 0 or tensor.bytes * 8 != bits * tensor.elements:
        raise Damaged(f"{name} takes {tensor.bytes} bytes, which is not {tensor.dtype} x {list(tensor.shape)}")
    return tensor, int(end)
