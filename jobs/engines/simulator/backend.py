"""engine=simulator: the rehearsal engine, which takes the flags of the release and acts like it (see the package)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.layout import span
from jobs.engines.ascend import utilization
from jobs.engines.base import Finding, Traits, caught, register
from jobs.engines.checkpoint.architecture import Architecture
from jobs.engines.placement import Placement
from jobs.engines.prediction import GIB, Allowance, Prediction, Term
from jobs.engines.simulator.faults import parse_faults
from jobs.engines.simulator.roofline import Layout, kv_bytes, weight_bytes
from jobs.engines.simulator.spec import VARIABLE, hardware, spec_json
from jobs.engines.vllm.serve import VllmServe

_BLOCK = 128
"""Tokens of a KV cache block where `--block-size` is not given (settings.py)."""


@register("simulator")
class Simulator(VllmServe):
    """The rehearsal engine."""

    traits = Traits(simulated=True)

    def environment(self, config: Config, place: Placement) -> dict[str, str]:
        """Return the variables of one rank, with what the flags cannot say."""
        return super().environment(config, place) | {VARIABLE: spec_json(config, place.rank)}

    def findings(self, config: Config) -> Iterable[Finding]:
        """Return what is wrong with the rehearsal itself, and what the release would refuse."""
        own = (caught(check, config) for check in (_one_node, _rehearsal))
        return (*(one for one in own if one), *super().findings(config))

    def memory(
        self,
        config: Config,
        load: Callable[[Config], Architecture],
        allowance: Allowance | None = None,
        device_gib: float | None = None,
    ) -> Prediction:
        """Return what the rehearsal will find, by the same functions: there is nothing uncertain in it."""
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


def _one_node(config: Config) -> None:
    if span(config) > 1:
        size = config.parallel.tensor_parallel_size
        reason = "the rehearsal engine keeps each data-parallel rank in one node"
        raise ConfigError("parallel.tensor_parallel_size", size, reason, "Rehearse another layout.")


def _rehearsal(config: Config) -> None:
    parse_faults(config.engine.rehearsal.faults)
    hardware(config.engine.rehearsal.hardware)
