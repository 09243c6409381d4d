"""What vLLM's log says of a start."""

from __future__ import annotations

import re

from jobs.engines.base import EngineLog

_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_WEIGHTS = re.compile(r"(?:Loading model weights|Model loading) took ([\d.]+) Gi?B")
_AVAILABLE = re.compile(r"Available KV cache memory: (-?[\d.]+) GiB")
_AVAILABLE_0_9_1 = re.compile(r"Available memory: (-?\d+), total memory: (\d+)")
_SHARDS = re.compile(r"checkpoint shards:\s+\d+% Completed \| (\d+/\d+)")
_MET = re.compile(r"\brank \d+ in world size \d+ is assigned as DP rank")
"""vLLM's parallel_state.py, from 0.9.1 to 0.32: its process group is made, so that every rank of it has come."""


def read(text: str) -> EngineLog:
    """Read the lines of a start (memory: bytes in vllm-ascend 0.9.1, worker_v1.py; from 0.11 on GiB, as in vLLM)."""
    old = [(int(available) / 2**30, int(total) / 2**30) for available, total in _AVAILABLE_0_9_1.findall(text)]
    available = [float(found) for found in _AVAILABLE.findall(text)] + [one for one, _ in old]
    tokens = [int(found.replace(",", "")) for found in _KV_TOKENS.findall(text)]
    shards = _SHARDS.findall(text)
    return EngineLog(
        kv_tokens=min(tokens, default=None),
        first_kv_tokens=tokens[0] if tokens else None,
        weights_gib=max((float(found) for found in _WEIGHTS.findall(text)), default=None),
        available_gib=min(available, default=None),
        device_gib=min((total for _, total in old), default=None),
        load_progress=shards[-1] if shards else None,
        ranks_met=_MET.search(text) is not None,
    )
