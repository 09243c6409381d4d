"""engine=simulator: the rehearsal engine, which takes the flags of the release and acts like it (see the package)."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.core.config import Config
from jobs.core.layout import Placement
from jobs.engines.ascend import utilization
from jobs.engines.base import Finding, Load, Traits, caught, register
from jobs.engines.prediction import GIB, Allowance, Layout, Prediction, Term
from jobs.engines.simulator.faults import parse_faults
from jobs.engines.simulator.roofline import kv_bytes, kv_bytes_per_token, weight_bytes
from jobs.engines.simulator.settings import BLOCK, VARIABLE, hardware, spec_json
from jobs.engines.vllm.serve import VllmServe


@register("simulator")
class Simulator(VllmServe):
    """The rehearsal engine."""

    traits = Traits(simulated=True)

    def environment(self, config: Config, place: Placement) -> dict[str, str]:
        """Return the variables of one rank, with what the flags cannot say."""
        return super().environment(config, place) | {VARIABLE: spec_json(config, place.rank)}

    def findings(self, config: Config) -> Iterable[Finding]:
        """Return what is wrong with the rehearsal itself, and what the release would refuse."""
        own = caught(_rehearsal, config)
        return (*((own,) if own else ()), *super().findings(config))

    def memory(
        self, config: Config, load: Load, allowance: Allowance | None = None, device_gib: float | None = None
    ) -> Prediction:
        """Return what the rehearsal will find, by the same functions: there is nothing uncertain in it."""
        parallel, shape, npu = config.parallel, config.model.shape, hardware(config.engine.rehearsal.hardware)
        layout = Layout.of(config)
        share = utilization(config.engine.release, parallel.gpu_memory_utilization)
        block = (parallel.block_size or BLOCK) * layout.dcp * layout.pcp
        token = kv_bytes_per_token(shape, layout)
        dense, experts = weight_bytes(shape, npu, layout)
        left = int(kv_bytes(shape, npu, layout, share))
        tokens = max(0, left // (token * block)) * block
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
            kv_bytes_per_token=token,
            kv_tokens_per_rank=tokens,
            largest_max_model_len=min(tokens, shape.max_position_embeddings),
            block=block,
            allowance=Allowance(npu.allowance_gib, source),
        )


def _rehearsal(config: Config) -> None:
    parse_faults(config.engine.rehearsal.faults)
    hardware(config.engine.rehearsal.hardware)
