"""cluster=slurm: each allocation is a job of its own, submitted with submitit."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from typing import Any

from containers.pyxis import check_strays
from jobs.cluster import squeue
from jobs.cluster.base import ENDED, GONE, SRUN_WAIT_S, UNKNOWN, Job, Request, entry, link_output
from jobs.cluster.nodelist import Task, task_from_slurm
from jobs.cluster.sick_nodes import without_sick
from jobs.cluster.time_limit import SIGNAL_DELAY_S, limit_seconds
from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.core.registry import SCHEDULERS
from jobs.core.rundir import AllocationDir


@SCHEDULERS.register("slurm")
class Slurm:
    """Slurm through submitit, which is imported where a job is submitted: sbatch/ runs where it is not installed."""

    on_loopback = False
    queues = True
    poll_s = 5.0

    def check(self, request: Request) -> None:
        """Refuse a host without sbatch and srun, and a shell whose variables would move every step into a container."""
        check_strays(os.environ)
        if missing := [name for name in ("sbatch", "srun") if not shutil.which(name)]:
            reason = f"there is no {' and no '.join(missing)} on PATH"
            raise ConfigError("cluster.kind", "slurm", reason, "Log in to a Slurm node, or use cluster=local.")

    def submit(self, folder: AllocationDir, request: Request) -> Job:
        """Submit a batch script that runs one task a node."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.slurm.slurm import SlurmExecutor

        folder.submitit.mkdir(parents=True, exist_ok=True)
        executor = SlurmExecutor(folder.submitit)
        config = without_sick(request.config, folder.sweep.root)
        executor.update_parameters(**sbatch_parameters(config, request.nodes, request.name))
        submitted = time.time()
        try:
            # Not its own command, which unpickles what lies at the folder's path when the job starts, days later it
            # may be: whoever owns results.root can exchange that, and a rank looks whose its files are.
            job_id = str(executor._submit_command(shlex.join(entry(folder, "slurm"))).job_id)
        except (FailedJobError, FailedSubmissionError) as error:
            reason = squeue.in_a_line(str(error))
            remedy = "Check the keys of `cluster` against the site's rules."
            raise RunError("sbatch", request.name, reason, remedy) from None
        link_output(folder, job_id, request.nodes)
        return Job(folder, job_id, "slurm", request.nodes, submitted)

    def state(self, job: Job) -> str:
        """Return what squeue, sacct or scontrol says; GONE where Slurm has given the id to another job since."""
        state = squeue.slurm_state(job.job_id)
        lives = state not in (*ENDED, UNKNOWN)
        return GONE if lives and squeue.is_reused(job.job_id, job.submitted) else state

    def queue(self, job: Job) -> dict[str, str]:
        """Return what squeue says."""
        return squeue.queue_words(job.job_id)

    def cancel(self, job: Job) -> None:
        """Call scancel, where the job is of this sweep."""
        squeue.scancel(job.job_id, refused=squeue.stranger(job.job_id, name=f"sweep-{job.folder.sweep.path.name}-"))

    def task(self, env: Mapping[str, str]) -> Task:
        """Return the place that srun gives."""
        return task_from_slurm(env)


def adopted(folder: AllocationDir) -> Job | None:
    """Return the job that Slurm had taken when its launcher died, and write its record; None: there is none.

    Raises:
        RunError: Slurm does not answer.
    """
    if not any(folder.submitit.glob(".submission_file_*.sh")) or not (found := squeue.submitted_from(folder.submitit)):
        return None
    job_id, nodes = found
    job = Job(folder, job_id, "slurm", nodes, squeue.submit_time(job_id) or time.time())
    if folder.sweep.writable:
        link_output(folder, job_id, nodes)
        job.write()
    return job


def sbatch_parameters(config: Config, nodes: int, name: str) -> dict[str, Any]:
    """Return submitit's parameters of one allocation, with one task a node. Pure; a null key is not emitted.

    Jobs of one name run one at a time (--dependency=singleton): so a resubmitted allocation and the next one of the
    sweep never run together.
    """
    cluster = config.cluster
    seconds = limit_seconds(cluster.time_limit)
    # --kill-on-bad-exit fires on a code other than 0 only: --wait ends the step after a rank that exits 0.
    srun = ["--kill-on-bad-exit=1", f"--wait={SRUN_WAIT_S}", *cluster.srun_args]
    parameters: dict[str, Any] = {
        "job_name": name,
        "nodes": nodes,
        "ntasks_per_node": 1,
        # Null: the partition's own default. Zero: no limit is asked for (sbatch(1), --time).
        "time": None if cluster.time_limit is None else math.ceil(seconds / 60) if seconds else 0,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "gres": cluster.gres,
        "constraint": cluster.constraint,
        "nodelist": cluster.nodelist,
        "exclude": cluster.exclude,
        "exclusive": cluster.exclusive or None,
        "mem": cluster.mem,
        "cpus_per_task": cluster.cpus_per_task,
        "dependency": "singleton",
        "setup": list(cluster.setup) or None,
        "wckey": None,
        "stderr_to_stdout": True,
        "signal_delay_s": SIGNAL_DELAY_S,
        "srun_args": srun,
    }
    extra: dict[str, Any] = {"no-requeue": True}
    if cluster.reservation:
        extra["reservation"] = cluster.reservation
    extra |= {key.lstrip("-").replace("_", "-"): value for key, value in cluster.sbatch_args.items()}
    parameters["additional_parameters"] = {key: value for key, value in extra.items() if value not in (None, False)}
    # A None for these two is for submitit, which has a value of its own for a key that is left out.
    return {key: value for key, value in parameters.items() if value is not None or key in ("time", "wckey")}
