"""The files of an allocation and of its services: what is to be done, where rank 0 is, how it went; and the configs of
the points. `write_json` writes the former.
"""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from jobs.core import masking, names, schema
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.fields import plain
from jobs.core.files import SECRET, write_bytes, write_text
from jobs.core.foreign import SMALL, checked, load_bytes, load_form, load_yaml, parse_json, refused
from jobs.core.rundir import AllocationDir, ServiceDir, SweepDir

Identity = Annotated[str, AfterValidator(names.identity)]
"""Id of a point or a service: it becomes the name of a directory."""


@dataclass(frozen=True)
class ServiceTask:
    """One service and its points, in the order of measuring."""

    service: Identity
    points: tuple[Identity, ...]


@dataclass(frozen=True)
class AllocationTask:
    """The services of one allocation, in order, and the number of this try.

    `checks_only`: the nodes are checked, and no service is started. `serve`: its one service is kept up for hand tests
    and not measured.
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


@dataclass(frozen=True)
class Head:
    """Where rank 0 of an allocation is: its host, and the address and interface that it bound; the ports of its API, of
    the engines' rendezvous and of the ranks' channel.
    """

    host: str
    address: str
    interface: str
    api_port: int
    data_parallel_rpc_port: int
    control_port: int


@dataclass(frozen=True)
class ServiceRecord:
    """How one attempt at a service went. Times in seconds, KV caches in tokens; None: it is not known.

    Attributes:
        failure: why it failed.
        leftovers: what was left behind on the nodes.
        engine_version, driver_version, image_digest, model_digest, host_state: see jobs/results/fingerprint.py.
        others: columns of its rows (docs/report.md).
    """

    service: str = ""
    points: tuple[str, ...] = ()
    failure: str | None = None
    leftovers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    queue_s: float | None = None
    nodes: int | None = None
    job_id: str | None = None
    attempt: int | None = None
    stage_s: float | None = None
    stage_gb_s: float | None = None
    load_s: float | None = None
    load_gb_s: float | None = None
    teardown_s: float | None = None
    kv_cache_tokens: int | None = None
    predicted_kv_tokens: int | None = None
    engine_version: str | None = None
    driver_version: str | None = None
    image_digest: str | None = None
    model_digest: str | None = None
    host_state: str | None = None


def read_outcome(folder: AllocationDir) -> Outcome | None:
    """Return how an allocation ended; None: it has not. Raises RunError where its record cannot be read."""
    return load_form(folder.outcome, Outcome) if folder.outcome.exists() else None


def read_head(folder: AllocationDir) -> Head | None:
    """Return where rank 0 is; None: it has not said so yet."""
    return load_form(folder.head, Head) if folder.head.exists() else None


def read_record(folder: ServiceDir) -> ServiceRecord:
    """Return how an attempt at a service went; nothing is known of one that runs or was killed."""
    return load_form(folder.record, ServiceRecord) if folder.record.exists() else ServiceRecord()


def read_task(folder: AllocationDir, *, ours: bool = False) -> AllocationTask:
    """Read what this allocation has to do. `ours`: it will be done.

    Raises:
        RunError: its record cannot be read, or (`ours`) another user wrote it.
    """
    return load_form(folder.task, AllocationTask, ours=ours)


def write_config(sweep: SweepDir, point: str, config: Config) -> None:
    """Write a point's resolved config. What of `engine.env` is secret stands in a file for this user alone."""
    from omegaconf import OmegaConf  # a rank writes none

    folder, tree = sweep.point(point), plain(asdict(config))
    env = tree["engine"]["env"]
    if secrets := masking.values_in(env):
        masking.learn(map(str, secrets.values()))
        env |= dict.fromkeys(secrets, masking.MASK)
        # In a form that no search and no screen shows by the way.
        write_bytes(folder.secrets, base64.b64encode(json.dumps(secrets).encode()), SECRET)
    write_text(folder.config, OmegaConf.to_yaml(OmegaConf.create(tree)))


def read_config(sweep: SweepDir, point: str, *, ours: bool = False) -> Config:
    """Read a point's resolved config back, validated, with its secrets where this user may read them.

    `ours`: it will be run: whoever could put a directory of his own in the sweep's place would run his command.

    Raises:
        RunError, ConfigError: it cannot be read, is none, or (`ours`) another user wrote it.
    """
    folder = sweep.point(point)
    config = schema.build(load_yaml(folder.config, ours=ours))
    if folder.secrets.exists():
        with contextlib.suppress(RunError):  # a colleague's: it is masked then
            secrets = checked(folder.secrets, dict[str, str | int | float], _secrets_of(folder.secrets))
            masking.learn(map(str, secrets.values()))
            config = replace(config, engine=replace(config.engine, env={**config.engine.env, **secrets}))
    return config


def _secrets_of(path: Path) -> Any:
    try:
        return parse_json(base64.b64decode(load_bytes(path, SMALL, ours=True)))
    except ValueError as error:
        raise refused(path, f"it is not as it was written: {error}") from None
