"""Allocations to the cluster: what one has to do is written, then its back end is asked to submit it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace

from jobs.cluster.base import Job, Request, read_job, scheduler
from jobs.core.errors import UserError
from jobs.core.files import write_json
from jobs.core.lock import exclusive
from jobs.core.planfile import begun_services
from jobs.core.records import tolerant
from jobs.core.rundir import AllocationDir, SweepDir
from jobs.core.sharing import let_group_read
from jobs.core.tasks import AllocationTask, ServiceTask, read_config, read_outcome
from jobs.results.row import NOT_RUN, make_row, write_rows
from jobs.results.table import write_table


def submit_allocation(
    sweep: SweepDir,
    index: int,
    attempt: int,
    services: Sequence[ServiceTask],
    request: Request,
    *,
    kind: str | None = None,
    serve: bool = False,
) -> Job:
    """Write what an allocation has to do, and submit it; at most `cluster.max_allocations` of a sweep run at a time.

    `serve` keeps its one service up for hand tests. The request's name is made here.

    Raises:
        ConfigError: it can't be submitted from here; nothing is written then.
        RunError: the cluster refused it.
    """
    cluster = request.config.cluster
    request = replace(request, name=job_name(sweep, index % cluster.max_allocations))
    kind = kind or cluster.kind
    scheduler(kind).check(request)
    if cluster.share_group:
        let_group_read()  # Slurm takes the umask over for the job and its output
    return submit(sweep.allocation(index, attempt), AllocationTask(tuple(services), attempt, serve), request, kind)


def submit(folder: AllocationDir, work: AllocationTask, request: Request, kind: str) -> Job:
    """Make the directory of an allocation with its secret and its work, submit it, and write its record.

    While that goes on a lock is held: an allocation without a record and with a free lock was never submitted.

    Raises:
        RunError: the cluster refused it; its directory is taken away again.
    """
    folder.path.mkdir(parents=True)
    with exclusive(folder.submitting, required=False):
        folder.new_key()
        write_json(folder.task, work)
        try:
            job = scheduler(kind).submit(folder, request)
        except UserError:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        job.write()
    return job


def job_name(sweep: SweepDir, slot: int) -> str:
    """Return the name of the jobs that run one at a time: of this sweep alone, also where another one is named alike.

    Under two roots two sweeps may have one name: that of the second in which they began, or a `results.name`.
    """
    tag = hashlib.sha256(str(sweep.path.resolve()).encode()).hexdigest()[:4]
    return f"sweep-{sweep.path.name}-{tag}-{slot}"


def submit_rest(folder: AllocationDir, kind: str | None = None) -> str | None:
    """Submit what the time limit left of an allocation as a new job, up to `limits.attempts`.

    Returns the id of the new job, or None. `kind` as for `submit_allocation`.

    Where that is not possible, the points get rows that say so: nothing is lost silently.
    """
    outcome, before = read_outcome(folder), read_job(folder)
    if not outcome or not outcome.left or before is None:
        return None
    config = read_config(folder.sweep, outcome.left[0].points[0], ours=True)
    reason = f"the time limit came first, in {folder.tries} attempts (limits.attempts)"
    if outcome.too_short:
        limit = f"cluster.time_limit={config.cluster.time_limit}"
        reason = f"{outcome.too_short}; no job of {limit} can begin it: start the sweep again with a longer one"
    # Giving way to others is no failed try, and a search that got a row has made its way.
    elif folder.tries < config.limits.attempts or outcome.yielded or _gained(folder, before.job_id):
        try:
            request, attempt = Request(config, before.nodes, after=before), folder.attempt + 1
            job = submit_allocation(folder.sweep, folder.index, attempt, outcome.left, request, kind=kind)
        except UserError as error:
            reason = f"the time limit came first, and the rest could not be submitted: {error.reason}"
        else:
            write_json(folder.outcome, replace(outcome, resubmitted=job.job_id))
            print(f"the rest is submitted again as job {job.job_id}", flush=True)
            return job.job_id
    begun = {point for service in begun_services(folder) for point in service.points}
    for service in outcome.left:
        for point in service.points:
            if point in begun and not folder.sweep.point(point).row.exists():
                config = read_config(folder.sweep, point)
                write_rows(folder.sweep, [make_row(point, service.service, config, invalid_reason=NOT_RUN + reason)])
    write_table(folder.sweep)
    return None


def _gained(folder: AllocationDir, job_id: str) -> bool:
    """Return whether a job has given its search a valid row."""
    if not folder.sweep.search.exists():
        return False
    rows = (tolerant(folder.sweep.point(p).row) for one in begun_services(folder) for p in one.points)
    return any(row.get("valid") and str(row.get("job_id")) == job_id for row in rows)
