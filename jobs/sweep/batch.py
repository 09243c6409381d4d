"""The part of the scripts in sbatch/ that is not shell: what comes before `python -m jobs.allocation.rank`, and after.

A batch script is one Slurm job that the user submits by sbatch: it makes plan and run directory itself, on its first
node, and runs all services one after the other. submitit is not needed there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.allocation import serving, submission
from jobs.cluster.base import Request, scheduler
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.rundir import AllocationDir
from jobs.sweep import compose, grammar, road
from jobs.sweep.plan import Allocation, Plan, tasks_of, together
from jobs.sweep.record import record

KIND = "script"


def one_service(overrides: Sequence[str]) -> Plan:
    """Plan a service for hand tests. ConfigError: there are several points."""
    points = compose.expand(overrides)
    if len(points) > 1:
        raise ConfigError("overrides", " ".join(overrides), f"these are {len(points)} points", "Serve one at a time.")
    given = any(item.get_key_element() == serving.IDLE_KEY for item in grammar.parse(overrides))
    return road.plan([[*points[0], *([] if given else [serving.NEVER_IDLE])]])


def prepare(overrides: Sequence[str], script: Path | None, *, serve: bool) -> AllocationDir:
    """Make the run directory of the batch job that we run in, and the allocation that its ranks will carry out.

    The batch `script` is kept with the record, and submitted again for what the time limit leaves. `serve` keeps one
    service up for hand tests.

    Raises:
        ConfigError: the question cannot be asked, or needs more nodes than the job has; or the shell would move the
            ranks into a container.
        RunError: this is no batch job, or the run directory cannot be written.
    """
    made = _in_slurm(one_service(overrides) if serve else road.plan(compose.expand(overrides)))
    allocation = next(iter(together(made.allocations)), Allocation((), 0, 0.0))
    request = Request(made.points[0].config, allocation.nodes)
    scheduler(KIND).check(request)
    run = record(made)
    if not made.allocations:
        reasons = "; ".join(sorted(set(made.refused.values())))
        raise ConfigError("overrides", " ".join(overrides), f"no point can be run: {reasons}", f"See {run.path}.")
    tasks = tasks_of(made, allocation)
    folder = submission.submit_allocation(run, 0, 1, tasks, request, kind=KIND, serve=serve).folder
    if script:
        shutil.copyfile(script, folder.submission)
    return folder


def _in_slurm(made: Plan) -> Plan:
    """Return the plan for the job that we are in, whatever `cluster` says of how a job would be submitted."""

    def ours(config: Config) -> Config:
        return replace(config, cluster=replace(config.cluster, kind="slurm"))

    points = tuple(replace(point, config=ours(point.config)) for point in made.points)
    services = tuple(replace(service, config=ours(service.config)) for service in made.services)
    return replace(made, points=points, services=services)


def rest(folder: AllocationDir) -> str | None:
    """Submit what the time limit left as a new job with the same script. Returns its id; None: nothing is left.

    Where it cannot be submitted again, the points get rows that say so.
    """
    return submission.submit_rest(folder, KIND)
