"""The Hydra launcher that hands all points of `-m` to the planner at once, and a sweeper that lets it check them.

Hydra loads plugins from this namespace only. Both are the default of conf/ (`hydra/launcher`, `hydra/sweeper`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/launcher",
    name="planner",
    node={"_target_": "hydra_plugins.planner_launcher.PlannerLauncher"},
    provider="jobs",
)
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="planner",
    node={"_target_": "hydra_plugins.planner_launcher.PlannerSweeper", "max_batch_size": None, "params": None},
    provider="jobs",
)


class PlannerSweeper(BasicSweeper):
    """Hydra's basic sweeper without its trial composition of every point (70 ms each): the planner checks them all."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Leave it to the launcher."""


class PlannerLauncher(Launcher):
    """Plan, submit and follow all points of one sweep."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over; nothing is composed yet."""
        self._context, self._config = hydra_context, config
        self._best: dict[str, float] = {}  # of a study: its batches come one after the other

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the sweep. Returns one JobReturn a point; sweepers read `return_value`."""
        from jobs.sweep import launch as sweep  # imported late: Hydra loads every plugin at every start
        from jobs.sweep import study

        def compose(groups: list[str]) -> DictConfig:
            return self._context.config_loader.load_sweep_config(self._config, groups)

        points = [list(overrides) for overrides in job_overrides]
        # Sweepers that learn have a direction; several objectives at once are not offered.
        direction = self._config.hydra.sweeper.get("direction")
        if direction is None:
            outcome = sweep.launch(points, compose)
        else:
            Path(self._config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # Optuna leaves its result there
            outcome = study.launch(points, compose, str(getattr(direction, "name", direction)), self._best)
        returns = []
        for index, overrides in enumerate(job_overrides):
            job = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            job.return_value = outcome.objective(index)
            returns.append(job)
        return returns
