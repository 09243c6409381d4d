"""Stand-ins for `mlflow` and `wandb`: as strict as the real ones, or stricter. The real packages have 60 MB and more.

Parameters have the names of mlflow 3.17 and wandb 0.31, and only those that the export may use: any other argument is a
TypeError. What the real ones do silently (a run that starts by itself, a name that is changed) is an error here.
tests/unit/test_results_export.py compares these signatures with the real packages where they are installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

NAME = re.compile(r"[/\w.\- :]+")
"""Names that MLflow takes for parameters, metrics and tags (mlflow/utils/validation.py)."""

TEXT_MOST = 6000
"""Characters of the value of a parameter that MLflow takes."""


@dataclass
class MlflowRun:
    """A run that was logged; a context manager, as MLflow's ActiveRun is."""

    owner: FakeMlflow
    run_name: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    status: str = "RUNNING"

    def __enter__(self) -> MlflowRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.status = "FAILED" if kind else "FINISHED"
        self.owner.active = None


class FakeMlflow:
    """The functions of the module `mlflow`."""

    def __init__(self) -> None:
        self.uri = ""
        self.experiments: dict[str, str | None] = {}
        self.runs: dict[str, list[MlflowRun]] = {}
        self.active: MlflowRun | None = None
        self._chosen = ""

    def set_tracking_uri(self, uri: str) -> None:
        assert re.fullmatch(r"sqlite:////.+\.db", uri), uri
        self.uri = uri

    def get_experiment_by_name(self, name: str) -> str | None:
        return name if self.uri and name in self.experiments else None

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        assert self.uri and name not in self.experiments, "MLflow refuses an experiment that there is"
        self.experiments[name] = artifact_location
        return str(len(self.experiments))

    def set_experiment(self, experiment_name: str) -> None:
        assert experiment_name in self.experiments, "MLflow would make one, with artifacts in ./mlruns"
        self._chosen = experiment_name

    def start_run(self, *, run_name: str) -> MlflowRun:
        assert self._chosen and self.active is None, "MLflow refuses a run inside a run"
        self.active = MlflowRun(self, run_name)
        self.runs.setdefault(self._chosen, []).append(self.active)
        return self.active

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self._run().tags |= {_named(name): str(value) for name, value in tags.items()}

    def log_params(self, params: Mapping[str, Any]) -> None:
        assert all(len(str(value)) <= TEXT_MOST for value in params.values())
        self._run().params |= {_named(name): str(value) for name, value in params.items()}

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        assert all(type(value) is float for value in metrics.values())
        self._run().metrics |= {_named(name): value for name, value in metrics.items()}

    def _run(self) -> MlflowRun:
        assert self.active, "MLflow would start a run of its own"
        return self.active


def _named(name: str) -> str:
    assert NAME.fullmatch(name), name
    return name


@dataclass
class WandbRun:
    """A run that was logged."""

    project: str
    name: str
    config: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    finished: bool = False

    def log(self, data: Mapping[str, Any]) -> None:
        assert not self.finished
        self.history.append(dict(data))

    def finish(self, exit_code: int | None = None) -> None:
        assert not self.finished
        self.finished, self.exit_code = True, exit_code


class FakeWandb:
    """The functions of the module `wandb`. A run writes a directory below `dir`/wandb."""

    def __init__(self) -> None:
        self.runs: list[WandbRun] = []

    def init(
        self, *, project: str, name: str, dir: str, mode: str, config: Mapping[str, Any], reinit: bool
    ) -> WandbRun:
        assert mode == "offline", "anything else asks the network"
        assert re.fullmatch(r"[^/\\#?%:]{1,128}", project), "W&B refuses these characters in a project's name"
        assert Path(dir).is_dir(), "W&B would write to a temporary directory instead"
        assert all(run.finished for run in self.runs) and reinit
        (Path(dir) / f"wandb/offline-run-20261125_000000-{len(self.runs):08d}").mkdir(parents=True)
        self.runs.append(WandbRun(project, name, dict(config)))
        return self.runs[-1]
