"""`launch.py -m hydra/sweeper=tune`: the search of `python -m jobs tune`.

Hydra loads plugins from this namespace only.
"""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="tune",
    node={"_target_": "hydra_plugins.tune_sweeper.TuneSweeper"},
    provider="jobs",
)


class TuneSweeper(Sweeper):
    """Search `tune.space` within `tune.budget_node_hours`; what is swept beside it belongs to the space."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep nothing: the search composes by itself."""

    def sweep(self, arguments: list[str]) -> None:
        """Start the search and follow it; it ends with its own exit code."""
        # Imported late: Hydra loads every plugin at every start.
        from jobs.cli import tune
        from jobs.cli.through_hydra import Ended

        GlobalHydra.instance().clear()  # the search composes with one of its own
        raise Ended(tune.tune(arguments))
