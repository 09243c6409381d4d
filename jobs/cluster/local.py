"""cluster=local: all ranks are processes of this host, on loopback, under submitit's controller of local tasks."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Mapping

from jobs.cluster.base import Job, Request, entry, link_output
from jobs.cluster.nodelist import Task
from jobs.cluster.time_limit import SIGNAL_DELAY_S, limit_seconds
from jobs.core import process
from jobs.core.registry import SCHEDULERS
from jobs.core.rundir import AllocationDir

UNLIMITED_S = 365 * 24 * 3600
"""The controller wants a number of seconds."""


@SCHEDULERS.register("local")
class Local:
    """Processes that outlive their launcher and its terminal. The job is their controller."""

    on_loopback = True
    queues = False
    poll_s = 0.5

    def check(self, request: Request) -> None:
        """Nothing can be wrong: what the engine needs of this host is looked for elsewhere."""

    def submit(self, folder: AllocationDir, request: Request) -> Job:
        """Start a controller in a session of its own, so that Ctrl-C in the launcher does not reach it."""
        folder.submitit.mkdir(parents=True, exist_ok=True)
        env = {
            "SUBMITIT_LOCAL_NTASKS": str(request.nodes),
            "SUBMITIT_LOCAL_COMMAND": shlex.join(entry(folder, "local")),
            "SUBMITIT_LOCAL_TIMEOUT_S": str(limit_seconds(request.config.cluster.time_limit) or UNLIMITED_S),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(SIGNAL_DELAY_S),
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
        }
        argv = process.python("submitit.local._local", str(folder.submitit.resolve()))
        with process.detached(argv, dict(os.environ) | env, folder.submitit / "controller.log") as started:
            link_output(folder, str(started.pid), request.nodes)
            job = Job(folder, str(started.pid), "local", request.nodes, time.time())
            job.write()
        return job

    def state(self, job: Job) -> str:
        """Return whether the controller or a rank lives, else whether rank 0 came to its end."""
        if process.alive(int(job.job_id), str(job.folder.submitit.resolve())) or self._ranks(job):
            return "RUNNING"
        return "COMPLETED" if job.folder.outcome.exists() else "FAILED"

    def queue(self, job: Job) -> dict[str, str]:
        """Nothing waits here."""
        return {}

    def cancel(self, job: Job) -> None:
        """End the ranks, and the controller at once while it starts them: its handler tells those that are there.

        A rank that it has just started ends with it.
        """
        ranks = self._ranks(job)
        for pid in ranks:
            process.terminate(pid)
        if process.alive(int(job.job_id), str(job.folder.submitit.resolve())):
            process.terminate(int(job.job_id), signal.SIGTERM if len(ranks) == job.nodes else signal.SIGKILL)

    def _ranks(self, job: Job) -> list[int]:
        """Return the ranks that live: for a moment they outlive a controller that was killed."""
        return process.with_arguments(entry(job.folder, "local")[-3:])

    def task(self, env: Mapping[str, str]) -> Task:
        """Return the place that the controller gives."""
        ranks, rank = int(env["SUBMITIT_LOCAL_NTASKS"]), int(env["SUBMITIT_LOCAL_GLOBALID"])
        job_id, hosts = int(env["SUBMITIT_LOCAL_JOB_ID"]), ("localhost",) * ranks
        head = process.child_with(job_id, "SUBMITIT_LOCAL_GLOBALID", "0")
        return Task(rank, ranks, job_id, hosts, "localhost", on_loopback=True, head_pid=head)
