"""What one allocation has to do: the content of allocation.json, and the configs it points to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import OmegaConf

from jobs.core import schema
from jobs.core.config import Config
from jobs.core.fields import plain
from jobs.core.files import from_yaml, read_json, write_json, write_text
from jobs.core.rundir import AllocationDir, SweepDir


@dataclass(frozen=True)
class ServiceTask:
    """One service and its points, in the order of measuring."""

    service: str
    points: tuple[str, ...]


@dataclass(frozen=True)
class AllocationTask:
    """The services of one allocation, in order.

    Attributes:
        services: what is run.
        attempt: number of this try.
        checks_only: the nodes are checked, and no service is started.
        serve: its one service is kept up for hand tests and not measured.
    """

    services: tuple[ServiceTask, ...]
    attempt: int
    serve: bool = False
    checks_only: bool = False


def write_task(folder: AllocationDir, task: AllocationTask) -> None:
    """Write what the ranks have to do."""
    write_json(folder.task, asdict(task))


def read_task(folder: AllocationDir) -> AllocationTask:
    """Read what this allocation has to do."""
    data: Mapping[str, Any] = read_json(folder.task)
    services = tuple(ServiceTask(item["service"], tuple(item["points"])) for item in data["services"])
    flags = {name: data.get(name, False) for name in ("serve", "checks_only")}
    return AllocationTask(services, data["attempt"], **flags)


def write_config(sweep: SweepDir, point: str, config: Config) -> None:
    """Write a point's resolved config."""
    write_text(sweep.point(point).config, OmegaConf.to_yaml(OmegaConf.create(plain(asdict(config)))))


def read_config(sweep: SweepDir, point: str) -> Config:
    """Read a point's resolved config back, validated."""
    return schema.build(from_yaml(sweep.point(point).config.read_text()))
