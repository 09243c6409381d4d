"""The part of the scripts in sbatch/ that is not shell: what comes before `python -m jobs.allocation.rank`, and after.

A batch script is one Slurm job that the user submits by sbatch: it makes plan and run directory itself, on its first
node, and runs all services one after the other. submitit is not needed there.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.allocation import serving, submission
from jobs.cluster import slurm
from jobs.cluster.nodelist import batch_job
from jobs.cluster.sbatch import check_shell
from jobs.core import process
from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.core.rundir import AllocationDir, SweepDir
from jobs.core.tasks import ServiceTask
from jobs.sweep import compose, grammar, road
from jobs.sweep.plan import Allocation, Plan
from jobs.sweep.record import record
from jobs.sweep.resume import together
from jobs.sweep.start import tasks_of

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


def one_service(overrides: Sequence[str]) -> Plan:
    """Plan a service for hand tests.

    Raises:
        ConfigError: there are several points.
    """
    points = compose.expand(overrides)
    if len(points) > 1:
        raise ConfigError("overrides", " ".join(overrides), f"these are {len(points)} points", "Serve one at a time.")
    given = any(item.get_key_element() == serving.IDLE_KEY for item in grammar.parse(overrides))
    return road.plan([[*points[0], *([] if given else [serving.NEVER_IDLE])]])


def prepare(overrides: Sequence[str], env: Mapping[str, str], script: Path | None, *, serve: bool) -> AllocationDir:
    """Make the run directory of the batch job that we run in, and the allocation that its ranks will carry out.

    Args:
        overrides: as launch.py takes them.
        env: the environment of the batch script.
        script: the batch script; kept with the record, and submitted again for what the time limit leaves.
        serve: keep one service up for hand tests.

    Raises:
        ConfigError: the question cannot be asked, or needs more nodes than the job has; or the shell would move the
            ranks into a container.
        RunError: this is no batch job, or the run directory cannot be written.
    """
    job_id, nodes = batch_job(env)
    check_shell(env, local=False)
    made = one_service(overrides) if serve else road.plan(compose.expand(overrides))
    made = _in_slurm(made)
    if not made.allocations:
        run = record(made)
        reasons = "; ".join(sorted(set(made.refused.values())))
        raise ConfigError("overrides", " ".join(overrides), f"no point can be run: {reasons}", f"See {run.path}.")
    [allocation] = together(made.allocations)
    if allocation.nodes > nodes:
        reason = f"the sweep needs {allocation.nodes} nodes and the job has {nodes}"
        raise ConfigError("--nodes", nodes, reason, f"Submit it by sbatch --nodes={allocation.nodes}.")
    run = record(made)
    tasks = tasks_of(made, Allocation(allocation.services, nodes, allocation.seconds))
    folder = submission.new_allocation(run, 0, 1, tasks, local=False, serve=serve)
    submitted = slurm.submit_time(str(job_id)) or time.time()
    submission.write_job(folder, str(job_id), "slurm", nodes, submitted)
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
    nodes = submission.nodes_of(folder)
    return submission.submit_rest(folder, nodes, lambda *words: _again(folder, *words))


def _again(
    before: AllocationDir,
    run: SweepDir,
    index: int,
    attempt: int,
    services: Sequence[ServiceTask],
    _: Config,
    nodes: int,
) -> submission.Submitted:
    folder = submission.new_allocation(run, index, attempt, services, local=False)
    shutil.copyfile(before.submission, folder.submission)
    job_id = submission.job_of(before)
    done = process.run(sbatch_command(job_id, slurm.job_record(job_id), folder))
    if done.returncode:
        reason = " ".join(done.stderr.split())[-400:]
        raise RunError("sbatch", folder.submission, reason, f"Finish it by: python -m jobs resume {run.path}")
    number = done.stdout.strip().partition(";")[0]
    submission.write_job(folder, number, "slurm", nodes, time.time())
    return submission.Submitted(number, "slurm")


def sbatch_command(job_id: str, record: str, folder: AllocationDir) -> list[str]:
    """Return the command that submits an allocation after a job has ended. Pure.

    Args:
        job_id: the job that is to end before.
        record: what `scontrol -o show job` says of it.
        folder: the new allocation, with its script.
    """
    # A name or a path may have spaces; a field ends where the next one begins.
    values = dict(re.findall(r"(\w+)=(.*?)(?= [\w:/]+=|$)", record.strip()))
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
