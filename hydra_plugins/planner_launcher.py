"""The Hydra launcher for what goes through Hydra's own program (jobs/cli/through_hydra.py): it hands all points at once
to the planner. Hydra loads plugins from this namespace only; it is the default of conf/ (`hydra/launcher`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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


class PlannerLauncher(Launcher):
    """Plan, submit and follow all points of one sweep."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over; nothing is composed yet."""
        self._context, self._config = hydra_context, config
        self._best: dict[str, float] = {}  # of a study: its batches come one after the other

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the sweep. Returns one JobReturn a point; sweepers read `return_value`."""
        # Imported late: Hydra loads every plugin at every start.
        from jobs.cli import launch, study
        from jobs.cli.through_hydra import Ended

        def compose(groups: list[str]) -> DictConfig:
            return self._context.config_loader.load_sweep_config(self._config, groups)

        points = [list(overrides) for overrides in job_overrides]
        # Sweepers that learn have a direction; several objectives at once are not offered.
        direction = self._config.hydra.sweeper.get("direction")
        if direction is None:
            outcome = launch.launch(points, compose)
        else:
            Path(self._config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # Optuna leaves its result there
            outcome = study.launch(points, compose, str(getattr(direction, "name", direction)), self._best)
        if outcome.code:
            raise Ended(outcome.code)
        returns = []
        for index, overrides in enumerate(job_overrides):
            job = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            job.return_value = outcome.objective(index)
            returns.append(job)
        return returns
