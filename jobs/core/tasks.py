"""What one allocation has to do and how it ended (allocation.json, outcome.json), and the configs of its points."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from omegaconf import OmegaConf
from pydantic import TypeAdapter

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


@dataclass(frozen=True)
class Outcome:
    """How an allocation ended.

    Attributes:
        ended: why it could not go on; None: it went through.
        valid: whether every row that it wrote is valid.
        time: when it ended, Unix seconds.
        left: what another allocation is to do.
        yielded: it was stopped for others that wait.
        too_short: why no job of this time limit can begin what is left; None: one can.
        resubmitted: id of the job that does what is left.
    """

    ended: str | None = None
    valid: bool = False
    time: float = 0.0
    left: tuple[ServiceTask, ...] = ()
    yielded: bool = False
    too_short: str | None = None
    resubmitted: str | None = None


_TASK, _OUTCOME = TypeAdapter(AllocationTask), TypeAdapter(Outcome)


def write_outcome(folder: AllocationDir, outcome: Outcome) -> None:
    """Write how an allocation ended."""
    write_json(folder.outcome, asdict(outcome))


def read_outcome(folder: AllocationDir) -> Outcome | None:
    """Return how an allocation ended; None: it has not."""
    return _OUTCOME.validate_python(read_json(folder.outcome)) if folder.outcome.exists() else None


def write_task(folder: AllocationDir, task: AllocationTask) -> None:
    """Write what the ranks have to do."""
    write_json(folder.task, asdict(task))


def read_task(folder: AllocationDir) -> AllocationTask:
    """Read what this allocation has to do."""
    return _TASK.validate_python(read_json(folder.task))


def write_config(sweep: SweepDir, point: str, config: Config) -> None:
    """Write a point's resolved config."""
    write_text(sweep.point(point).config, OmegaConf.to_yaml(OmegaConf.create(plain(asdict(config)))))


def read_config(sweep: SweepDir, point: str) -> Config:
    """Read a point's resolved config back, validated."""
    return schema.build(from_yaml(sweep.point(point).config.read_text(encoding="utf-8")))
