"""engine=vllm_cpu: the CPU build of vLLM, for tiny models. Its releases are vLLM's, which are not described here."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines.ascend.memory import asked, fixed, whole_number
from jobs.engines.base import Finding, Load, Traits, register
from jobs.engines.prediction import GIB, Allowance, Prediction
from jobs.engines.vllm.serve import VllmServe

_KV_CACHE = "VLLM_CPU_KVCACHE_SPACE"
"""Variable with the size of the KV cache, GiB."""


@register("vllm_cpu")
class VllmCpu(VllmServe):
    """vLLM without an accelerator."""

    traits = Traits(released=False)

    def findings(self, config: Config) -> Iterable[Finding]:
        """Return what speaks against a config, and that the executor of one worker holds no second one."""
        parallel, key = config.parallel, "distributed-executor-backend"
        workers = parallel.tensor_parallel_size * (parallel.pipeline_parallel_size or 1)
        found = [*super().findings(config)]
        if workers > 1 and config.engine.args.get(key) == "uni":
            reason = f"uni runs one worker, and this layout has {workers} in a data-parallel rank"
            remedy = (
                f"Set engine.args.{key}=mp engine.env.VLLM_ENABLE_V1_MULTIPROCESSING=null (experiment=pipeline_demo)."
            )
            source = "vllm 0.32, v1/executor/uniproc_executor.py"
            found.append(Finding("C2", "warning", f"engine.args.{key}", "uni", reason, remedy, source))
        return found

    def memory(
        self, config: Config, load: Load, allowance: Allowance | None = None, device_gib: float | None = None
    ) -> Prediction:
        """Return what a KV cache of the size that is set holds."""
        arch = load(config)
        layout, sizes = asked(config)
        size = whole_number(config.engine.env, _KV_CACHE, 0, "engine.env") * GIB
        if not size:
            value = config.engine.env.get(_KV_CACHE)
            reason = "the CPU engine's KV cache has no size"
            raise ConfigError(f"engine.env.{_KV_CACHE}", value, reason, "Set it, in GiB.")
        return fixed(arch, layout, sizes, size)
