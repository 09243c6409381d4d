"""Allocation to executor: Slurm, or local processes.

submitit is imported only where a job is submitted. What a task runs is handed in: this file knows no rank.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.cluster.sbatch import NOT_FOR_SRUN, QUEUE_S, UNLIMITED_MIN, check_shell, kind_of, sbatch_parameters
from jobs.cluster.sick_nodes import without_sick
from jobs.cluster.time_limit import limit_seconds
from jobs.core import process
from jobs.core.config import Config
from jobs.core.errors import RunError, UserError
from jobs.core.fields import ROOT
from jobs.core.files import read_json, write_json
from jobs.core.rundir import AllocationDir, SweepDir
from jobs.core.sharing import let_group_read
from jobs.core.tasks import AllocationTask, ServiceTask, read_config, write_task
from jobs.results.row import NOT_RUN, make_row
from jobs.results.table import write_table

Entry = Callable[[str, str], None]
"""What a task runs, by the allocation's directory and the kind of cluster (jobs/allocation/entry.py)."""


@dataclass(frozen=True)
class Submitted:
    """A submitted allocation: job id as Slurm (or the local controller's process id) gives it."""

    job_id: str
    kind: str


def new_allocation(
    sweep: SweepDir,
    index: int,
    attempt: int,
    services: Sequence[ServiceTask],
    *,
    local: bool,
    serve: bool = False,
) -> AllocationDir:
    """Make the directory of an allocation: its secrets, and what it has to do.

    Raises:
        ConfigError: the shell would move its ranks into a container.
    """
    check_shell(local=local)
    folder = sweep.allocation(index, attempt)
    folder.path.mkdir(parents=True)
    folder.new_keys()
    write_task(folder, AllocationTask(tuple(services), attempt, local, serve))
    return folder


def submit_allocation(
    sweep: SweepDir,
    index: int,
    attempt: int,
    services: Sequence[ServiceTask],
    config: Config,
    nodes: int,
    entry: Entry,
    *,
    serve: bool = False,
) -> Submitted:
    """Write what an allocation has to do, and submit it; at most `cluster.max_allocations` of a sweep run at a time.

    `entry` is what each of its tasks runs.

    Raises:
        RunError: the cluster refused it.
    """
    local = config.cluster.kind == "local"
    if config.cluster.share_group:
        let_group_read()  # Slurm takes the umask over for the job and its output
    folder = new_allocation(sweep, index, attempt, services, local=local, serve=serve)
    config = without_sick(config, sweep.root)
    return submit(folder, config, nodes, job_name(sweep, index % config.cluster.max_allocations), entry)


def job_name(sweep: SweepDir, slot: int) -> str:
    """Return the name of the jobs that run one at a time: of this sweep alone, also where another one is named alike.

    Under two roots two sweeps may have one name: that of the second in which they began, or a `results.name`.
    """
    tag = hashlib.sha256(str(sweep.path.resolve()).encode()).hexdigest()[:4]
    return f"sweep-{sweep.path.name}-{tag}-{slot}"


def submit(folder: AllocationDir, config: Config, nodes: int, name: str, entry: Entry) -> Submitted:
    """Submit one allocation and write its job.json, submission.sh and links to its output.

    `entry` is what each of its tasks runs.

    Raises:
        RunError: the cluster refused it; its own words are the reason.
    """
    kind = kind_of(config.cluster)
    folder.submitit.mkdir(parents=True, exist_ok=True)
    from jobs.cluster import executors  # only here: the batch scripts of sbatch/ run where submitit is not installed

    if kind == "slurm":
        executor = executors.slurm(folder.submitit, sbatch_parameters(config, nodes, name))
    else:
        seconds = limit_seconds(config.cluster.time_limit)
        executor = executors.local(folder.submitit, nodes, seconds / 60 if seconds else UNLIMITED_MIN)
    submitted = time.time()
    try:
        job = executor.submit(entry, str(folder.path), kind)
    except executors.REFUSED as error:
        reason = " ".join(str(error).split())[-400:]
        raise RunError("sbatch", name, reason, "Check the keys of `cluster` against the site's rules.") from None
    write_job(folder, str(job.job_id), kind, nodes, submitted)
    _link(folder, job, nodes)
    return Submitted(str(job.job_id), kind)


def write_job(folder: AllocationDir, job_id: str, kind: str, nodes: int, submitted: float) -> None:
    """Write the record by which status, follow and cancel find the job. `submitted`: Unix seconds."""
    write_json(folder.job, {"job_id": job_id, "kind": kind, "nodes": nodes, "submitted": submitted})


def srun(folder: AllocationDir, config: Config, nodes: int, name: str, seconds: float) -> str:
    """Run an allocation at once by srun, as `cluster` asks for nodes, and wait for its end; it may queue first.

    Args:
        folder: what to do is written there already.
        config: any config of it.
        nodes: one task each.
        name: of the job.
        seconds: its time limit.

    Returns:
        What srun itself says; the output of the tasks is in the folder.

    Raises:
        ConfigError: the shell would move its ranks into a container.
    """
    check_shell(local=False)
    wanted = sbatch_parameters(without_sick(config, folder.sweep.root), nodes, name)
    extra = {key: value for key, value in wanted.pop("additional_parameters").items() if key != "no-requeue"}
    options = {key.replace("_", "-"): value for key, value in wanted.items() if key not in NOT_FOR_SRUN} | extra
    words = [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items() if value is not None]
    words += [f"--time={math.ceil(seconds / 60) + 1}", f"--output={folder.path}/stdout-%t.log", f"--chdir={ROOT}"]
    argv = ["srun", *words, *wanted["srun_args"], sys.executable, "-m", "jobs.allocation.rank", str(folder.path)]
    return process.run(argv, timeout_s=QUEUE_S).stderr.strip()


def _link(folder: AllocationDir, job: Any, nodes: int) -> None:
    """Give submitit's files the names of the run directory."""
    for task in range(nodes):
        target = folder.submitit / f"{job.job_id}_{task}_log.out"
        folder.stdout(task).unlink(missing_ok=True)
        folder.stdout(task).symlink_to(target.relative_to(folder.path))
    script = folder.submitit / f"{job.job_id}_submission.sh"
    if script.exists():
        folder.submission.unlink(missing_ok=True)
        folder.submission.symlink_to(script.relative_to(folder.path))


Again = Callable[[SweepDir, int, int, Sequence[ServiceTask], Config, int], Submitted]
"""Submits an allocation once more: sweep, index, attempt, services, config, nodes."""


def submit_rest(folder: AllocationDir, nodes: int, again: Again) -> str | None:
    """Submit what the time limit left of an allocation as a new job, up to `limits.attempts`.

    Returns the id of the new job, or None.

    Where that is not possible, the points get rows that say so: nothing is lost silently.
    """
    left = [ServiceTask(item["service"], tuple(item["points"])) for item in _outcome(folder).get("left", [])]
    if not left:
        return None
    config = read_config(folder.sweep, left[0].points[0])
    reason = f"the time limit came first, in {folder.tries} attempts (limits.attempts)"
    too_short = _outcome(folder).get("too_short")
    if too_short:
        limit = f"cluster.time_limit={config.cluster.time_limit}"
        reason = f"{too_short}; no job of {limit} can begin it: start the sweep again with a longer one"
    # Giving way to others is no failed try.
    elif folder.tries < config.limits.attempts or _outcome(folder).get("yielded"):
        try:
            job = again(folder.sweep, folder.index, folder.attempt + 1, left, config, nodes)
        except UserError as error:
            reason = f"the time limit came first, and the rest could not be submitted: {error.reason}"
        else:
            write_json(folder.outcome, _outcome(folder) | {"resubmitted": job.job_id})
            print(f"the rest is submitted again as job {job.job_id}", flush=True)
            return job.job_id
    for service in left:
        for point in service.points:
            row = make_row(point, service.service, read_config(folder.sweep, point), invalid_reason=NOT_RUN + reason)
            if not folder.sweep.point(point).row.exists():
                write_json(folder.sweep.point(point).row, row)
    write_table(folder.sweep)
    return None


def job_of(folder: AllocationDir) -> str:
    """Return the job id of a submitted allocation."""
    return str(read_json(folder.job)["job_id"])


def nodes_of(folder: AllocationDir) -> int:
    """Return the nodes of a submitted allocation."""
    return int(read_json(folder.job)["nodes"])


def _outcome(folder: AllocationDir) -> dict[str, Any]:
    return dict(read_json(folder.outcome)) if folder.outcome.exists() else {}
