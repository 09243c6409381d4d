"""What the scripts in sbatch/ are to us: a batch job that the user submits, and that runs all services itself.

submitit is not needed there. `python -m jobs prepare` and `python -m jobs rest` use this; it cannot be launched.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from containers.pyxis import check_strays
from jobs.cluster import squeue
from jobs.cluster.base import Job, Request
from jobs.cluster.nodelist import batch_job
from jobs.cluster.slurm import Slurm
from jobs.core import names, process
from jobs.core.errors import ConfigError, RunError
from jobs.core.registry import SCHEDULERS
from jobs.core.rundir import AllocationDir

CARRIED = {
    "Partition": "partition",
    "Account": "account",
    "QOS": "qos",
    "Reservation": "reservation",
    "TimeLimit": "time",
    "NumNodes": "nodes",
    "TresPerNode": "gres",
    "JobName": "job-name",
}
"""What the next job takes over from this one, as `scontrol show job` names it; all else stands in the script."""


@SCHEDULERS.register("script")
class Script(Slurm):
    """The batch job that we run in, and the one that its script submits after it."""

    def check(self, request: Request) -> None:
        """Refuse to prepare outside of a batch job, in one with too few nodes, and in a shell with options of pyxis."""
        if request.config.cluster.kind == "script":
            remedy = "Submit it with the same overrides: sbatch sbatch/sweep.sbatch OVERRIDES."
            raise ConfigError("cluster.kind", "script", "the scripts in sbatch/ use it, launch.py does not", remedy)
        _, nodes = batch_job(os.environ)
        check_strays(os.environ)
        if request.nodes > nodes:
            reason = f"the sweep needs {request.nodes} nodes and the job has {nodes}"
            raise ConfigError("--nodes", nodes, reason, f"Submit it by sbatch --nodes={request.nodes}.")

    def submit(self, folder: AllocationDir, request: Request) -> Job:
        """Take the job that we are in; for what its time limit left, submit its script again."""
        before = request.after
        if before is None:
            job_id, nodes = batch_job(os.environ)
            return Job(folder, str(job_id), "script", nodes, squeue.submit_time(str(job_id)) or time.time())
        shutil.copyfile(before.folder.submission, folder.submission)
        done = process.run(sbatch_command(before.job_id, squeue.job_record(before.job_id), folder))
        remedy = f"Finish it by: python -m jobs resume {folder.sweep.path}"
        if done.returncode:
            raise RunError("sbatch", folder.submission, squeue.in_a_line(done.stderr), remedy)
        try:
            submitted = names.job_id(done.stdout.strip().partition(";")[0])
        except ValueError as error:
            raise RunError("sbatch", folder.submission, str(error), remedy) from None
        return Job(folder, submitted, "script", request.nodes, time.time())

    def cancel(self, job: Job) -> None:
        """Call scancel, where the job was submitted when its record says so: its name is the user's."""
        squeue.scancel(job.job_id, refused=squeue.stranger(job.job_id, submitted=job.submitted))


def sbatch_command(job_id: str, record: str, folder: AllocationDir) -> list[str]:
    """Return the command that submits an allocation, with its script, after job `job_id` has ended. Pure.

    `record` is what `scontrol -o show job` says of that job.
    """
    values = squeue.fields_of(record)
    carried = [
        f"--{option}={values[key].removeprefix('gres:')}"
        for key, option in CARRIED.items()
        if values.get(key) not in (None, "", "(null)", "N/A")
    ]
    # scontrol names the file of this job, with its number for %j (sbatch(1), filename pattern). Directories keep their
    # names, whatever digits they have: a job whose output cannot be opened fails without a word.
    if output := values.get("StdOut"):
        name = re.sub(rf"(?<!\d){re.escape(job_id)}(?!\d)", "%j", Path(output).name)
        carried.append(f"--output={Path(output).with_name(name)}")
    after = f"--dependency=afterany:{job_id}"
    return ["sbatch", "--parsable", after, *carried, str(folder.submission), "--allocation", str(folder.path)]
