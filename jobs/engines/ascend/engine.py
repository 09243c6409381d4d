"""engine=vllm_ascend: vLLM with the plugin vllm-ascend, on NPUs."""

from __future__ import annotations

from jobs.core.config import Config
from jobs.engines.ascend.memory import predict_config
from jobs.engines.base import Load, Traits, register
from jobs.engines.prediction import Allowance, Prediction
from jobs.engines.vllm.serve import VllmServe


@register("vllm_ascend")
class VllmAscend(VllmServe):
    """vLLM-Ascend."""

    traits = Traits(npus=True)

    def memory(
        self, config: Config, load: Load, allowance: Allowance | None = None, device_gib: float | None = None
    ) -> Prediction:
        """Return what fits on an NPU."""
        return predict_config(config, arch=load(config), device_gib=device_gib, allowance=allowance)
