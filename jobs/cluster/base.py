"""What brings an allocation to its nodes: the seam, and what all its back ends share.

A back end is one file of this room, or a module of a site's own distribution (docs/extending.md).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Protocol

from pydantic import AfterValidator, Field

from jobs.cluster.nodelist import Task
from jobs.core import names, process
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import write_json
from jobs.core.foreign import SMALL, load_form, refused
from jobs.core.lock import holder, is_free
from jobs.core.records import Number
from jobs.core.registry import SCHEDULERS
from jobs.core.rundir import AllocationDir

ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
        *("REVOKED", "TIMEOUT", GONE := "GONE"),
    )
)
"""Slurm's final states (squeue(1)), and GONE: no source knows the job any more. All back ends use these words."""

UNKNOWN = "UNKNOWN"
"""Nobody answered: ask again."""

SRUN_WAIT_S = 60
"""srun --wait: from the first task's end to the end of the step, as in sbatch/."""

ENTRY = "jobs.allocation.rank"
"""What every task runs, with the allocation's directory and the kind of cluster. By name, as on a command line: this
room knows no rank."""


@dataclass(frozen=True)
class Request:
    """What an allocation asks for, with any config of the sweep and one task on each of its nodes.

    `after`: the job whose rest this one does.
    """

    config: Config
    nodes: int
    name: str = ""
    after: Job | None = None


@dataclass(frozen=True)
class Job:
    """A submitted allocation, as status, follow and cancel find it (job.json).

    Attributes:
        job_id: as the cluster gives it; of local processes the process id of their controller.
        kind: name of the back end.
        submitted: Unix seconds.
        pid: of the process here that runs the tasks, where that is not the job itself.
    """

    folder: AllocationDir
    job_id: str
    kind: str
    nodes: int
    submitted: float
    pid: int | None = None

    def write(self) -> None:
        """Write the record."""
        record = {"job_id": self.job_id, "kind": self.kind, "nodes": self.nodes, "submitted": self.submitted}
        write_json(self.folder.job, record | ({} if self.pid is None else {"pid": self.pid}))


@dataclass(frozen=True)
class _Record:
    """job.json as it is read: the id becomes a word of scancel's command line, the pid is sent a signal."""

    job_id: Annotated[str, AfterValidator(names.job_id)]
    kind: str
    nodes: Annotated[int, Field(ge=1, le=100_000)]
    submitted: Number
    pid: Annotated[int, Field(gt=1)] | None = None


def entry(folder: AllocationDir, kind: str) -> list[str]:
    """Return the command line of every task."""
    return process.python(ENTRY, str(folder.path), kind)


class Scheduler(Protocol):
    """How one kind of cluster is asked.

    Attributes:
        on_loopback: all ranks are processes of this host.
        queues: each allocation waits for nodes that the cluster chooses; else one allocation runs all services.
        poll_s: the state of a job may be asked this often, seconds.
    """

    on_loopback: bool
    queues: bool
    poll_s: float

    def check(self, request: Request) -> None:
        """Say before anything is written why this can't be submitted from here. A plan can be made anywhere.

        Raises:
            ConfigError, RunError: key, value, reason, remedy.
        """

    def submit(self, folder: AllocationDir, request: Request) -> Job:
        """Let `ENTRY` run on all nodes; the output of task k goes to `folder.stdout(k)`.

        Raises:
            RunError: the cluster refused it; its own words are the reason.
        """

    def state(self, job: Job) -> str:
        """Return the state of a job in Slurm's words; UNKNOWN if nobody answered."""

    def queue(self, job: Job) -> dict[str, str]:
        """Return what is known of a job that has not ended: reason, starts; nodelist, left."""

    def cancel(self, job: Job) -> None:
        """End this job and nothing else. RunError: the cluster refused, in its own words."""

    def task(self, env: Mapping[str, str]) -> Task:
        """Return the place of a task, from its environment. RunError: it is none."""


def scheduler(kind: str) -> Scheduler:
    """Return the back end of this name."""
    found: Scheduler = SCHEDULERS.get(kind)
    return found


def settled(kind: str) -> str:
    """Return the name of a back end; `auto` is Slurm where sbatch is on PATH, else this host."""
    return kind if kind != "auto" else "slurm" if shutil.which("sbatch") else "local"


def read_job(folder: AllocationDir) -> Job | None:
    """Return the record of an allocation; None: it was not submitted.

    Raises:
        RunError: its record cannot be read, or names what is no job.
    """
    if not folder.job.exists():
        return None
    found = load_form(folder.job, _Record, SMALL)
    if found.kind not in SCHEDULERS:
        raise refused(folder.job, f"there is no kind of cluster {found.kind[:40]!r}")
    return Job(folder, found.job_id, found.kind, found.nodes, found.submitted, found.pid)


def _adopted(folder: AllocationDir) -> Job | None:
    """Return the job that Slurm had taken when its launcher died; None: it is being submitted just now, or never was.

    Raises:
        RunError: Slurm does not answer.
    """
    if not folder.submitit.is_dir() or not is_free(folder.submitting):
        return None
    adopted: Job | None = import_module("jobs.cluster.slurm").adopted(folder)  # it knows this room's words
    return adopted


def job_state(folder: AllocationDir) -> str:
    """Return the state of an allocation's job; UNKNOWN if nobody answered, or it is being submitted just now.

    GONE if it never was: its launcher ended before that, and no rank of it has begun.
    """
    job = read_job(folder)
    try:
        job = job or _adopted(folder)
    except RunError:
        return UNKNOWN
    return _state(folder, job)


def _state(folder: AllocationDir, job: Job | None) -> str:
    if job is None:
        begun = folder.head.exists() and not folder.outcome.exists()
        return UNKNOWN if begun or not is_free(folder.submitting) else GONE
    return scheduler(job.kind).state(job)


def queue_words(folder: AllocationDir) -> dict[str, str]:
    """Return what is known of an allocation that waits or runs."""
    job = read_job(folder)
    return scheduler(job.kind).queue(job) if job else {}


def cancel(folder: AllocationDir) -> str | None:
    """Cancel an allocation's own job and nothing else. Returns its id; None: there was nothing to cancel.

    Raises:
        RunError: it is another user's, whose record may name any job of ours; it is not this job any more (Slurm gives
            ids again); it is being submitted just now; or the cluster refused, in its own words.
    """
    job = read_job(folder) or _adopted(folder)
    if _state(folder, job) in ENDED:
        return None
    if job is None:
        reason, remedy = (
            f"it is being submitted by {holder(folder.submitting)}",
            "Try again, or end that process first.",
        )
        raise RunError("RUN", folder.path, reason, remedy)
    folder.sweep.check_owner("cancel it")
    scheduler(job.kind).cancel(job)
    return job.job_id


def link_output(folder: AllocationDir, job_id: str, nodes: int) -> None:
    """Give submitit's files the names of the run directory."""
    files = {folder.stdout(task): folder.submitit / f"{job_id}_{task}_log.out" for task in range(nodes)}
    script = folder.submitit / f"{job_id}_submission.sh"
    for name, target in (files | ({folder.submission: script} if script.exists() else {})).items():
        name.unlink(missing_ok=True)
        name.symlink_to(target.relative_to(folder.path))
