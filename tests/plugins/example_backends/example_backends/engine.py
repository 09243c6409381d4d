"""The rehearsal engine under another name and of one's own memory, for `engine.name=example_engine`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import from_root
from jobs.core.layout import Placement
from jobs.engines.base import Traits, register
from jobs.engines.checkpoint.architecture import Architecture
from jobs.engines.prediction import Allowance, Prediction
from jobs.engines.vllm.command import flags, rendered
from jobs.engines.vllm.serve import VllmServe


@register("example_engine")
class ExampleEngine(VllmServe):
    """It takes the flags of `vllm serve`; what it needs in memory nobody has written down."""

    traits = Traits(simulated=True)

    def argv(self, config: Config, place: Placement) -> list[str]:
        """Return the command line of one rank, with a program of its own."""
        program = [sys.executable, "-m", "jobs.engines.simulator", "serve", from_root(config.model.path)]
        return [*program, *rendered(flags(config, place))]

    def memory(
        self,
        config: Config,
        load: Callable[[Config], Architecture],
        allowance: Allowance | None = None,
        device_gib: float | None = None,
    ) -> Prediction:
        """Say that nothing can be said."""
        raise ConfigError("engine.name", config.engine.name, "its memory is not modelled", "Look at its log.")
