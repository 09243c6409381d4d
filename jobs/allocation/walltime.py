"""The time limit of an allocation: when the job ends (what Slurm says, else what it told at the start, else the limit
that was asked for), and whether something can end before it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jobs.cluster.squeue import seconds_left
from jobs.cluster.time_limit import SIGNAL_DELAY_S, limit_seconds
from jobs.core.waiting import aside

EARLY_S, LATE_S = 5.0, 60.0
"""Around the time limit that we know, in which Slurm ends a job for it: it tells the time left in whole seconds, and
looks at limits every 30 s. After that it is something else: somebody has extended the limit."""

PAUSES_S = (0.0, 2.0, 5.0)
"""Before each question to squeue: slurmctld is busy most of all where many jobs start at once."""

ANSWER_S = 10.0
"""A rank that waits longer for an answer makes the others wait too."""

Ask = Callable[[str, float], float | None]
"""Asks for the seconds that a job has left (jobs/cluster/squeue.py)."""

TIME_IS_UP = "the time limit is near"
"""Reason for ending early after which the rest is submitted again."""


@dataclass(frozen=True)
class Walltime:
    """When the allocation ends, on the monotonic clock in seconds; None: it has no end."""

    ends_at: float | None

    @staticmethod
    def of(seconds_left: float | None) -> Walltime:
        """Return the walltime of an allocation that ends in so many seconds."""
        return Walltime(None if seconds_left is None else time.monotonic() + seconds_left)

    @property
    def is_over(self) -> bool:
        """Whether the time limit is reached, as far as we know it."""
        return self.ends_at is not None and -LATE_S <= self.ends_at - time.monotonic() <= EARLY_S

    def lacks(self, needed_s: float) -> str | None:
        """Return None if work of this length ends before the signal that precedes the limit, else a sentence."""
        if self.ends_at is None:
            return None
        left = self.ends_at - SIGNAL_DELAY_S - time.monotonic()
        if needed_s <= left:
            return None
        return f"it needs about {needed_s:.0f} s, and {max(0.0, left):.0f} s are left before the time limit"


@dataclass(frozen=True)
class Deadline:
    """Seconds that are left, None: there is no limit; and who says so."""

    left_s: float | None
    source: str

    def __str__(self) -> str:
        left = "no end" if self.left_s is None else f"{self.left_s:.0f} s left"
        return f"time limit: {left} ({self.source})"


async def find(job_id: str, env: Mapping[str, str], configured: int | str | None, ask: Ask = seconds_left) -> Deadline:
    """Return when this Slurm job ends. One unanswered question must not let a service begin that cannot end.

    Args:
        job_id: of this job.
        env: of this task: SLURM_JOB_END_TIME and SLURM_JOB_START_TIME (newer releases set them; Unix seconds).
        configured: `cluster.time_limit`.
        ask: blocks; it is called beside the event loop.
    """
    for pause in PAUSES_S:
        await asyncio.sleep(pause)
        left = await aside(ask, job_id, ANSWER_S)
        if left is not None:
            return Deadline(None if math.isinf(left) else left, "squeue")
    silent = "squeue does not answer"
    end = env.get("SLURM_JOB_END_TIME", "")
    if end.isdecimal():
        return Deadline(int(end) - time.time(), f"SLURM_JOB_END_TIME; {silent}")
    limit = limit_seconds(configured)
    if limit is None:
        return Deadline(None, f"{silent}, and cluster.time_limit is not set: nothing is held back")
    start = env.get("SLURM_JOB_START_TIME", "")
    ran = time.time() - int(start) if start.isdecimal() else 0.0
    return Deadline(limit - ran, f"cluster.time_limit; {silent}")
