"""Start a sweep: look at what this host can tell, write the run directory, submit every allocation."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from jobs.allocation import submission
from jobs.allocation.node import container
from jobs.cluster.base import Request, scheduler
from jobs.core.config import Config, in_container
from jobs.core.errors import RunError
from jobs.core.fields import from_root
from jobs.core.files import is_there, write_json
from jobs.core.rundir import SweepDir, check_root
from jobs.forecast.search import Search
from jobs.results.pairs import Question
from jobs.sweep import reuse
from jobs.sweep.plan import Plan, tasks_of, together
from jobs.sweep.record import place, record
from jobs.sweep.resume import alone, submit_left
from jobs.sweep.reuse import Past


def start(
    made: Plan,
    reused: Sequence[Past] = (),
    *,
    serve: bool = False,
    search: Search | None = None,
    question: Question | None = None,
) -> SweepDir:
    """Write the run directory and submit every allocation, at most `cluster.max_allocations` at a time.

    Args:
        reused: rows of other sweeps that stand for points of this one; these points are not run.
        serve: keep the one service up for hand tests, and measure nothing.
        search: what chooses from the services of the plan, in one allocation after the other.
        question: what it is to decide, so that it ends with the answer.

    Raises:
        ConfigError: this host has no Slurm.
        RunError: nothing was submitted, or (after some were) which allocation the cluster refused.
    """
    settings = made.points[0].config
    check_root(Path(settings.results.root).absolute())
    cluster = scheduler(settings.cluster.kind)
    allocations = made.allocations if cluster.queues and not search else together(made.allocations)
    cluster.check(Request(settings, max((one.nodes for one in allocations), default=0)))
    for service in made.services:
        container.check_submission(service.config)
    if cluster.on_loopback:
        for service in made.services:
            _check_here(service.config)
    sweep = place(made)
    with alone(sweep):  # before there is a plan that a resume could find
        record(made, search, {past.point for past in reused}, into=sweep)
        if question:
            write_json(sweep.question, question)
        if reused:
            reuse.take(sweep, reused)
            submit_left(sweep, retry_failed=False)
            return sweep
        for index, allocation in enumerate(allocations):
            request = Request(settings, allocation.nodes)
            tasks = tasks_of(made, allocation)
            job = submission.submit_allocation(sweep, index, 1, tasks, request, serve=serve)
            logging.info("allocation %s: job %s (%s)", index, job.job_id, job.kind)
    return sweep


ELSEWHERE = "ask for nodes that have it (cluster=slurm)"


def _check_here(config: Config) -> None:
    """For local processes this machine is the node: say before the start what is missing."""
    if in_container(config):
        return  # its runtime was looked for (container.check_submission); the rest is inside
    program = from_root(config.engine.command[0])
    if not config.engine.source and program != "{python}" and not shutil.which(program):
        reason, remedy = (
            "there is no such program here",
            f"Give its path, or {ELSEWHERE} (`make setup` installs vLLM for the CPU).",
        )
        raise RunError("engine.command", program, reason, remedy)
    path = Path(from_root(config.model.path))
    if config.engine.checks_model_path and not (there := is_there(path)):
        reason = "there is no such directory here" if there is False else "this user cannot see it"
        remedy = f"Say where it is, or {ELSEWHERE}. python -m jobs model fetch gets it, `make setup` the tiny one."
        raise RunError("model.path", path, reason, remedy)
