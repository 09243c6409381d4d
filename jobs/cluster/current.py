"""cluster=current: a step of the allocation that the user holds already (`salloc -N2`), started by srun.

Nothing is submitted, and the allocation is never cancelled: only our own step is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping

from containers.pyxis import check_strays
from jobs.cluster import squeue
from jobs.cluster.base import ENDED, SRUN_WAIT_S, UNKNOWN, Job, Request, entry
from jobs.cluster.nodelist import Task, task_from_slurm
from jobs.core import process
from jobs.core.errors import ConfigError, RunError
from jobs.core.fields import ROOT
from jobs.core.log import read_tail
from jobs.core.registry import SCHEDULERS
from jobs.core.rundir import AllocationDir

HOLD = "Hold nodes first (salloc --nodes={}), and start it from that shell."


@SCHEDULERS.register("current")
class Current:
    """One allocation runs all services, as a step in a session of its own: Ctrl-C in the launcher does not reach it."""

    on_loopback = False
    queues = False
    poll_s = 5.0

    def check(self, request: Request) -> None:
        """Refuse a shell without an allocation, or with one that is too small or over."""
        check_strays(os.environ)
        hold = HOLD.format(request.nodes)
        job, nodes = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_NUM_NODES", "")
        if not job or not nodes.isdecimal():
            name = "SLURM_JOB_NUM_NODES" if job else "SLURM_JOB_ID"
            raise ConfigError("cluster.kind", "current", f"this shell is in no allocation: {name} is not set", hold)
        if request.nodes > int(nodes):
            reason = f"the sweep needs {request.nodes} nodes and allocation {job} has {nodes}"
            raise ConfigError("cluster.kind", "current", reason, hold)
        if request.config.cluster.yield_to_others:
            reason = "an allocation that you hold is not given back"
            raise ConfigError("cluster.yield_to_others", True, reason, "Leave it out, or use cluster=slurm.")
        if not shutil.which("srun"):
            raise ConfigError("cluster.kind", "current", "there is no srun on PATH", "Log in to a Slurm node.")
        if request.after or squeue.slurm_state(job) in ENDED:
            raise RunError("SLURM_JOB_ID", job, "this allocation is over", f"{hold[:-1]}: python -m jobs resume RUN.")

    def submit(self, folder: AllocationDir, request: Request) -> Job:
        """Start the step. Where another step has the nodes, srun waits for its end."""
        job, nodes = os.environ["SLURM_JOB_ID"], request.nodes
        argv = ["srun", f"--jobid={job}", f"--job-name={step_name(folder)}", f"--nodes={nodes}", f"--ntasks={nodes}"]
        argv += ["--ntasks-per-node=1", "--kill-on-bad-exit=1", f"--wait={SRUN_WAIT_S}"]
        argv += ["--unbuffered", f"--output={folder.path}/stdout-%t.log", f"--chdir={ROOT}"]
        command = [*argv, *request.config.cluster.srun_args, *entry(folder, "current")]
        with process.detached(command, os.environ, folder.srun_log) as started:
            step = Job(folder, job, "current", nodes, time.time(), started.pid)
            step.write()
        return step

    def state(self, job: Job) -> str:
        """Return whether the step runs, or srun waits for it; else how it ended."""
        steps = squeue.steps(job.job_id)
        if steps is None:
            return UNKNOWN
        if step_name(job.folder) in steps:
            return "RUNNING"
        if _lives(job):
            return "RUNNING" if job.folder.stdout(0).exists() else "PENDING"
        if job.folder.outcome.exists():
            return "COMPLETED"
        state = squeue.slurm_state(job.job_id)
        return state if state in (*ENDED, UNKNOWN) else "FAILED"

    def queue(self, job: Job) -> dict[str, str]:
        """Return why srun waits, in its own words, or what squeue says of the allocation."""
        if job.folder.stdout(0).exists():
            return squeue.queue_words(job.job_id)
        said = read_tail(job.folder.srun_log).strip()
        return {"reason": said.splitlines()[-1]} if said else {}

    def cancel(self, job: Job) -> None:
        """End our step, in good order as Slurm ends a job: a step would be killed at once. While it waits, end srun."""
        if step := (squeue.steps(job.job_id) or {}).get(step_name(job.folder)):
            squeue.scancel(step, "--signal=TERM")
        elif _lives(job):
            process.terminate(job.pid or 0)

    def task(self, env: Mapping[str, str]) -> Task:
        """Return the place that srun gives."""
        return task_from_slurm(env)


def step_name(folder: AllocationDir) -> str:
    """Return the name of an allocation's step: no other step of the job that the user holds has it."""
    return f"sweep-{hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:8]}"


def _lives(job: Job) -> bool:
    return process.alive(job.pid or 0, str(job.folder.path))
