"""A scheduler of a site's own: the ranks are background jobs of one shell on this host."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from jobs.cluster.base import Job, Request, entry
from jobs.cluster.nodelist import Task
from jobs.core import process
from jobs.core.registry import SCHEDULERS
from jobs.core.rundir import AllocationDir

SHELL = """trap 'kill $(jobs -p)' TERM
for ((rank = 0; rank < $2; rank++)); do
  EXAMPLE_JOB=$$ EXAMPLE_RANKS=$2 EXAMPLE_RANK=$rank "${@:3}" >"$1/stdout-$rank.log" 2>&1 &
done
wait
wait
"""

STEP = {"EXAMPLE_JOB": "4711", "EXAMPLE_RANKS": "2", "EXAMPLE_RANK": "1"}
"""Environment of a second task, for the conformance suite."""


@SCHEDULERS.register("example_shell")
class ExampleShell:
    """The job is the shell, in a session of its own."""

    on_loopback = True
    queues = False
    poll_s = 0.5

    def check(self, request: Request) -> None:
        """Every host has a shell."""

    def submit(self, folder: AllocationDir, request: Request) -> Job:
        """Start the shell."""
        command = ["bash", "-c", SHELL, "example", str(folder.path), str(request.nodes)]
        command += entry(folder, "example_shell")
        with process.detached(command, os.environ, folder.path / "shell.log") as started:  # its record comes first
            job = Job(folder, str(started.pid), "example_shell", request.nodes, time.time())
            job.write()
        return job

    def state(self, job: Job) -> str:
        """Return whether the shell lives, else whether rank 0 came to its end."""
        if process.alive(int(job.job_id), str(job.folder.path)):
            return "RUNNING"
        return "COMPLETED" if job.folder.outcome.exists() else "FAILED"

    def queue(self, job: Job) -> dict[str, str]:
        """Nothing waits."""
        return {}

    def cancel(self, job: Job) -> None:
        """End the shell, which ends its ranks."""
        process.terminate(int(job.job_id))

    def task(self, env: Mapping[str, str]) -> Task:
        """Return the place that the shell gives."""
        job, ranks = int(env["EXAMPLE_JOB"]), int(env["EXAMPLE_RANKS"])
        head = process.child_with(job, "EXAMPLE_RANK", "0")
        hosts = ("localhost",) * ranks
        return Task(int(env["EXAMPLE_RANK"]), ranks, job, hosts, "localhost", on_loopback=True, head_pid=head)
