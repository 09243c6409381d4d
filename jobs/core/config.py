"""All settings of a point in three types by what a change of them needs, registered with Hydra by schema.py.

    SweepSettings  (scope sweep)    a change does not alter what is asked; all points of a sweep have the same
    ServiceConfig  (scope service)  a change needs a restart of the engine (a new weight load)
    Load           (scope point)    a change needs only another measuring window on the same service

Where people see one section (`engine`), some of its keys may not alter what is asked either (a port): the section then
has a part for them, and points that share a service have the same there. Which type holds a key is the one place that
decides what the planner groups, and what identifies a point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypeVar

from jobs.core.fields import Section, section
from jobs.core.load import Load
from jobs.core.service_config import Hccl, Parallel, ServedContainer, ServedEngine, ServedModel
from jobs.core.sweep_settings import (
    ClientSettings,
    Cluster,
    ContainerSettings,
    EngineSettings,
    Launch,
    Limits,
    ModelSettings,
    Preflight,
    Results,
    Tune,
)

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Model(ModelSettings, ServedModel):
    """The checkpoint that is served."""


@dataclass(frozen=True)
class Engine(EngineSettings, ServedEngine):
    """The program that serves."""


@dataclass(frozen=True)
class Container(ContainerSettings, ServedContainer):
    """Where the engine runs. Words in braces in a name or path: {uid}, {user}, {job}, {rank}, {host}."""


@dataclass(frozen=True)
class Bench(ClientSettings, Load):
    """The load of one point."""


@dataclass(frozen=True)
class ServiceConfig:
    """What one service is: points that differ in nothing of it share one start of the engine."""

    model: ServedModel
    engine: ServedEngine
    parallel: Parallel
    hccl: Hccl
    container: ServedContainer


@dataclass(frozen=True)
class SweepSettings:
    """What holds for a sweep as a whole: all its points have the same."""

    cluster: Cluster
    limits: Limits
    preflight: Preflight
    results: Results
    launch: Launch
    tune: Tune


@dataclass(frozen=True)
class Config(Section):
    """All settings of one point, as its overrides and the files of conf/ give them."""

    model: Model = section(Model, "what is served")
    engine: Engine = section(Engine, "the program that serves")
    parallel: Parallel = section(Parallel, "layout and sizes")
    hccl: Hccl = section(Hccl, "network between the nodes")
    container: Container = section(Container, "where the engine runs")
    cluster: Cluster = section(Cluster, "how an allocation is asked for")
    bench: Bench = section(Bench, "the load")
    limits: Limits = section(Limits, "time limits")
    preflight: Preflight = section(Preflight, "checks of the nodes before the first service")
    results: Results = section(Results, "where results go")
    launch: Launch = section(Launch, "what launch.py does")
    tune: Tune = section(Tune, "a search for the best setting")

    @cached_property
    def service(self) -> ServiceConfig:
        """What belongs to the service."""
        return ServiceConfig(
            _part(ServedModel, self.model),
            _part(ServedEngine, self.engine),
            self.parallel,
            self.hccl,
            _part(ServedContainer, self.container),
        )


def _part(kind: type[S], whole: S) -> S:
    """Return the fields of a section that one of its parts has."""
    return kind(**{item.name: getattr(whole, item.name) for item in fields(kind)})  # type: ignore[arg-type]


def usual_windows(bench: Bench) -> int:
    """Predict how many windows a point takes: its repeats, or the probes of a search that ends 8 x higher.

    An external client measures once.
    """
    if bench.search is None:
        return 1 if bench.is_external else bench.repeats
    # At a rate, 299 requests without a miss tell (jobs/measure/bound.py), in at most ten windows a load.
    each = math.ceil(299 / (bench.request_rate * bench.window_s)) if bench.request_rate else 1
    return (3 + math.ceil(math.log2(1 / bench.search_precision)) + 1) * min(10, each)


def in_container(config: Config) -> bool:
    """Return whether the engine runs in a container."""
    return config.container.runtime != "none"
