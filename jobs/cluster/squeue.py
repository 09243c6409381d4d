"""What the cluster says of a job: squeue, then sacct, then scontrol. An empty queue is never a success."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from datetime import datetime
from pathlib import Path

from jobs.cluster.base import UNKNOWN
from jobs.cluster.time_limit import limit_seconds
from jobs.core import names, process
from jobs.core.errors import ConfigError, RunError

DAY_S = 24 * 3600.0
"""Slurm gives an id again after all others: not within a day."""

FOR_NODES = ("Resources", "Priority")
"""Reasons of pending jobs that would run on nodes that are given back (squeue(1), job reason codes)."""

_NEVER = re.compile(
    r"PartitionNodeLimit|PartitionTimeLimit|(?:QOS|Assoc\w*?)Max\w*PerJob\w*|MaxMemPerLimit|BadConstraints"
    r"|DependencyNeverSatisfied|InvalidAccount|InvalidQOS|JobHeld\w+|launch failed requeued held"
)


def may_never_start(reason: str) -> bool:
    """Return whether a pending job waits for something that does not pass by itself (squeue(1), job reason codes)."""
    return _NEVER.match(reason.strip("()")) is not None


def slurm_state(job_id: str) -> str:
    """Return the state of a Slurm job."""
    answered = False
    for argv, pattern in (
        (["squeue", "-h", "-j", job_id, "-o", "%T"], r"^(\w+)"),
        (["sacct", "-n", "-P", "-X", "-j", job_id, "-o", "State"], r"^(\w+)"),
        (["scontrol", "-o", "show", "job", job_id], r"JobState=(\w+)"),
    ):
        try:
            done = process.run(argv, timeout_s=30)
        except RunError:
            continue
        match = re.search(pattern, done.stdout, re.MULTILINE)
        if match:
            return match.group(1)
        answered = answered or done.returncode == 0 or "Invalid job id" in done.stderr
    return "GONE" if answered else UNKNOWN


def in_a_line(said: str) -> str:
    """Return the last words of a command that failed, in one line; some say nothing."""
    return " ".join(said.split())[-400:] or "it failed and said nothing"


def submitted_from(folder: Path) -> tuple[str, int] | None:
    """Return id and nodes of this user's job whose batch script lies in a directory; None: there is none.

    Raises:
        RunError: nobody answered.
    """
    done = process.run(["squeue", "-h", "-u", str(os.geteuid()), "-o", "%i|%D|%o"], timeout_s=30)
    if done.returncode:
        raise RunError("squeue", "(all jobs)", in_a_line(done.stderr), "Try again later.")
    for job_id, nodes, script in (line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") > 1):
        if script.startswith(f"{folder}/") and nodes.isdecimal():
            return names.job_id(job_id), int(nodes)
    return None


def steps(job_id: str) -> dict[str, str] | None:
    """Return the steps of a job that run, id by name; None: nobody answered. A job that is over has none."""
    with contextlib.suppress(RunError):
        done = process.run(["squeue", "-h", "-s", "-j", job_id, "-o", "%i|%j"], timeout_s=30)
        if done.returncode == 0 or "Invalid job id" in done.stderr:
            lines = [line.partition("|") for line in done.stdout.split()]
            return {name: step for step, _, name in lines}
    return None


def queue_words(job_id: str) -> dict[str, str]:
    """Return what squeue says of a job that has not ended: why it waits, its nodes, its start, the time left."""
    with contextlib.suppress(RunError):
        done = process.run(["squeue", "-h", "-j", job_id, "-o", "%T|%r|%N|%S|%L"], timeout_s=30)
        state, *words = (*done.stdout.strip().split("|"), "", "", "", "")[:5]
        reason, nodelist, starts, left = words
        if state == "PENDING":
            # Before Slurm has looked at a job it has no reason to give: the word None.
            return {"reason": "" if reason == "None" else reason, "starts": "" if starts == "N/A" else starts}
        return {"nodelist": nodelist, "left": left} if state else {}
    return {}


def seconds_left(job_id: str, timeout_s: float = 30) -> float | None:
    """Return the seconds until a running Slurm job's time limit; infinity: no limit; None: nobody answered."""
    with contextlib.suppress(RunError, ConfigError):
        answer = process.run(["squeue", "-h", "-j", job_id, "-o", "%L"], timeout_s=timeout_s).stdout.strip()
        if answer == "UNLIMITED":
            return math.inf
        return limit_seconds(answer) or 0 if answer[:1].isdecimal() else None
    return None


def job_record(job_id: str) -> str:
    """Return what `scontrol` says of a job, on one line; an empty string where nobody answers."""
    with contextlib.suppress(RunError):
        return process.run(["scontrol", "-o", "show", "job", job_id], timeout_s=30).stdout
    return ""


def fields_of(record: str) -> dict[str, str]:
    """Return the fields of what `job_record` said. A name or a path may have spaces: a field ends at the next one."""
    return dict(re.findall(r"(\w+)=(.*?)(?= [\w:/]+=|$)", record.strip()))


def submit_time(job_id: str, record: str | None = None) -> float | None:
    """Return when a job was submitted, Unix seconds; None where nobody answers. Slurm tells local time.

    `record`: what `job_record` said; None: it is asked.
    """
    match = re.search(r"\bSubmitTime=(\S+)", job_record(job_id) if record is None else record)
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(match.group(1)).timestamp() if match else None
    return None


def stranger(job_id: str, *, name: str | None = None, submitted: float | None = None) -> str | None:
    """Return why a job is not the one that a record means, or None. Slurm gives ids again, and a run can be copied.

    `name`: how the job's name begins. `submitted`: Unix seconds; a job that was requeued has a later time.
    """
    if not (record := job_record(job_id)):
        return "Slurm does not say what it is"
    values = fields_of(record)
    owner, own, began = values.get("UserId", ""), values.get("JobName", ""), submit_time(job_id, record)
    if not owner.endswith(f"({os.geteuid()})"):
        return f"it belongs to {owner or 'nobody'}"
    if name is not None and not own.startswith(name):
        return f"its name is {own!r} and not {name}..."
    late = submitted is not None and began is not None and abs(began - submitted) > 3600
    return f"it was submitted at {values['SubmitTime']}" if late and values.get("Restarts", "0") == "0" else None


def is_reused(job_id: str, submitted: float) -> bool:
    """Return whether a living job was submitted more than a day after a record of its id says (Unix seconds)."""
    if time.time() - submitted < DAY_S:
        return False
    record = job_record(job_id)
    began = submit_time(job_id, record)
    return began is not None and began - submitted > DAY_S and "Restarts=0" in record.split()


def others_wait(partition: str, user: str) -> bool:
    """Return whether jobs of other users wait in a partition for what we hold.

    A job that is held, that depends on another one or that can never run would not start if we gave way.
    """
    with contextlib.suppress(RunError):
        waiting = process.run(["squeue", "-h", "-t", "PENDING", "-p", partition, "-o", "%u|%r"], timeout_s=30)
        jobs = (line.strip().rpartition("|") for line in waiting.stdout.splitlines())
        return any(name != user and reason in FOR_NODES for name, _, reason in jobs)
    return False


def scancel(job: str, *options: str, refused: str | None = None) -> None:
    """Cancel a job, or a step of one (JOB.STEP), and nothing else.

    Raises:
        RunError: it is `refused` because it is not the job that is meant, or by scancel in its own words.
    """
    if refused:
        raise RunError("job_id", job, f"this is not the job of this sweep: {refused}", "Look at it: squeue -j ID.")
    done = process.run(["scancel", *options, job])
    if done.returncode:
        raise RunError("scancel", job, " ".join(done.stderr.split()), "Is it your own job?")
