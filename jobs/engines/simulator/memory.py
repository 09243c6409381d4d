"""What fits on one NPU of a rehearsal: the sum of roofline.py in the form of jobs/engines/ascend/memory.py."""

from __future__ import annotations

from jobs.core.config import Config
from jobs.engines.ascend import utilization
from jobs.engines.ascend.memory import Allowance, Prediction
from jobs.engines.ascend.weights import GIB, Term
from jobs.engines.simulator.roofline import Layout, kv_bytes, weight_bytes
from jobs.engines.simulator.spec import hardware

_BLOCK = 128
"""Tokens of a KV cache block where `--block-size` is not given (jobs/engines/simulator/settings.py)."""


def predict_rehearsal(config: Config) -> Prediction:
    """Return what the rehearsal engine will find, by the same functions: there is nothing uncertain in it.

    Args:
        config: model.shape, parallel and engine.rehearsal.hardware are used.
    """
    parallel, shape, npu = config.parallel, config.model.shape, hardware(config.engine.rehearsal.hardware)
    layout = Layout(parallel.tensor_parallel_size, parallel.data_parallel_size, parallel.enable_expert_parallel)
    share = utilization(config.engine.release, parallel.gpu_memory_utilization)
    block = parallel.block_size or _BLOCK
    dense, experts = weight_bytes(shape, npu, layout)
    left = int(kv_bytes(shape, npu, layout, share))
    tokens = max(0, left // (shape.kv_bytes_per_token * block)) * block
    source = "allowance_gib of engine.rehearsal.hardware"
    return Prediction(
        terms=(
            Term("dense weights", dense, "a share of model.shape.weight_gib / tp, and what every NPU holds"),
            Term("routed experts", experts, "the rest, over all NPUs with expert parallelism, else / tp"),
            Term("activations", npu.allowance_gib * GIB, source),
        ),
        weights_bytes=dense + experts,
        device_bytes=npu.npu_memory_gib * GIB,
        budget_bytes=share * npu.npu_memory_gib * GIB,
        kv_bytes=left,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        kv_tokens_per_rank=tokens,
        largest_max_model_len=min(tokens, shape.max_position_embeddings),
        block=block,
        allowance=Allowance(npu.allowance_gib, source),
    )
