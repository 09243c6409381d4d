"""A stand-in for torch_npu, so that the real vllm-ascend starts without NPUs: every name exists, none works.

It is on the path of the process that `jobs/engines/ascend/real/run.py` is, and of no other. It tells of eight NPUs of
an A2.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
from standin import AnyModule, Finder, stand_in

NPUS = 8
SOC_OF_A2 = 220
"""What torch_npu says for an Atlas 800I A2 (vllm-ascend, utils.py, `get_ascend_device_type`)."""
BYTES = 65_452_113_920
"""Memory of such an NPU as torch_npu reports it (vllm-ascend issue 13439)."""

OF_NPUS = ("torchair", "acl", "mooncake", "memcache_hybrid", "fla_npu")
"""Packages that only an Ascend machine has; those of an image look for its driver, which is not there."""

ABSENT = ("gguf", "diskcache")
"""Packages that an older release's environment has; the real one is taken where it is."""


def _device_module() -> types.ModuleType:
    """Return what `torch.npu` is."""
    module: types.ModuleType = AnyModule("torch.npu")
    module.__path__ = []
    told: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "device_count": lambda: NPUS,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "Ascend910B3",
        "get_soc_version": lambda: SOC_OF_A2,
        "mem_get_info": lambda *_: (BYTES, BYTES),
    }
    for name, value in told.items():
        setattr(module, name, value)
    return module


__getattr__ = stand_in
sys.meta_path.insert(0, Finder(lambda name: name.split(".")[0] in OF_NPUS or name.startswith("torch_npu.")))
sys.meta_path.append(Finder(lambda name: name.split(".")[0] in ABSENT))
npu = _device_module()
sys.modules["torch_npu.npu"] = npu
get_soc_version = npu.get_soc_version
torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", npu)
torch.distributed.is_hccl_available = lambda: True
