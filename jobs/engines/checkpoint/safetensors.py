"""The header of a `.safetensors` file: what tensors it holds, and how long the file must be.

Format (safetensors, README "Format"): 8 bytes little-endian header length, a JSON header of that length, then the
data; `data_offsets` count from the first byte of the data, and the data has no holes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_HEADER = 100_000_000
"""The reference implementation refuses longer headers, bytes."""

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
}
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
        with path.open("rb") as file:
            there = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if there < 8 or length > LARGEST_HEADER or length > there - 8:
                raise Damaged(f"it has {there} bytes and asks for a header of {length}: cut short, or no safetensors")
            values = json.loads(file.read(length))
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror}") from None
    except ValueError:
        raise Damaged("its header is not JSON") from None
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
        tensor = Tensor(str(item["dtype"]), tuple(int(n) for n in item["shape"]), end - begin)
        bits = BITS[tensor.dtype]
    except (KeyError, TypeError, ValueError):
        raise Damaged(f"its header has no proper entry for {name}") from None
    if begin < 0 or tensor.bytes * 8 != bits * tensor.elements:
        raise Damaged(f"{name} takes {tensor.bytes} bytes, which is not {tensor.dtype} x {list(tensor.shape)}")
    return tensor, int(end)
