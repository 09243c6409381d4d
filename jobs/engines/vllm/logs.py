"""What an engine's log says: figures and last words."""

from __future__ import annotations

import re
from dataclasses import dataclass

_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_WEIGHTS = re.compile(r"(?:Loading model weights|Model loading) took ([\d.]+) Gi?B")
_AVAILABLE = re.compile(r"Available KV cache memory: (-?[\d.]+) GiB")
_AVAILABLE_0_9_1 = re.compile(r"Available memory: (-?\d+), total memory: (\d+)")
_SHARDS = re.compile(r"checkpoint shards:\s+\d+% Completed \| (\d+/\d+)")
_MET = re.compile(r"\brank \d+ in world size \d+ is assigned as DP rank")
"""vLLM's parallel_state.py, from 0.9.1 to 0.32: its process group is made, so that every rank of it has come."""


def kv_cache_tokens(text: str) -> int | None:
    """Return the KV cache capacity that the engine printed, tokens of one data-parallel rank; None: not printed."""
    match = _KV_TOKENS.search(text)
    return int(match.group(1).replace(",", "")) if match else None


@dataclass(frozen=True)
class MemoryFigures:
    """What an engine printed about the memory of its devices; None: not printed. Of several ranks the worst.

    Attributes:
        weights_gib: of one device.
        available_gib: for the KV cache of one device.
        device_gib: of one device in all.
        kv_tokens: of one data-parallel rank.
    """

    weights_gib: float | None = None
    available_gib: float | None = None
    device_gib: float | None = None
    kv_tokens: int | None = None


def memory_figures(text: str) -> MemoryFigures:
    """Read the memory lines of a start (vllm-ascend 0.9.1: bytes, worker_v1.py; from 0.11 on: GiB, as in vLLM)."""
    old = [(int(available) / 2**30, int(total) / 2**30) for available, total in _AVAILABLE_0_9_1.findall(text)]
    available = [float(found) for found in _AVAILABLE.findall(text)] + [one for one, _ in old]
    return MemoryFigures(
        weights_gib=max((float(found) for found in _WEIGHTS.findall(text)), default=None),
        available_gib=min(available, default=None),
        device_gib=min((total for _, total in old), default=None),
        kv_tokens=min((int(found.replace(",", "")) for found in _KV_TOKENS.findall(text)), default=None),
    )


def load_progress(text: str) -> str | None:
    """Return how many shards of the checkpoint are loaded, as "20/163"; None: the engine has not said."""
    found = _SHARDS.findall(text)
    return str(found[-1]) if found else None


def ranks_met(text: str) -> bool:
    """Return whether an engine's processes have found each other."""
    return _MET.search(text) is not None
