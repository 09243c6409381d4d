"""The time limit of an allocation: do not begin what cannot end before it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from jobs.cluster.time_limit import SIGNAL_DELAY_S, limit_seconds
from jobs.core.config import Config
from jobs.core.files import read_json
from jobs.core.rundir import SweepDir
from jobs.forecast import history
from jobs.forecast.duration import load_seconds, measure_seconds

EARLY_S, LATE_S = 5.0, 60.0
"""Around the time limit that we know, in which Slurm ends a job for it: it tells the time left in whole seconds, and
looks at limits every 30 s. After that it is something else: somebody has extended the limit."""

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


def point_seconds(config: Config) -> float:
    """Predict the seconds of one point and of the stop after it."""
    return measure_seconds(config) + config.limits.stop_s


def never_fits(config: Config, load_s: float) -> str | None:
    """Return why no job of this time limit can begin a service, or None.

    Args:
        config: of the service's first point.
        load_s: its predicted load, seconds.
    """
    limit = limit_seconds(config.cluster.time_limit)
    needed = load_s + point_seconds(config) + SIGNAL_DELAY_S
    if limit is None or needed <= limit:
        return None
    return (
        f"cluster.time_limit={config.cluster.time_limit} is too short for any point: load and first point need about "
        f"{load_s + point_seconds(config):.0f} s, and {SIGNAL_DELAY_S} s are kept for the end: give at least "
        f"{math.ceil(needed / 60)} minutes"
    )


def service_seconds(sweep: SweepDir, service: str, config: Config, last_load_s: float | None) -> float:
    """Predict seconds from the start of a service to the end of its first point.

    The load time is learnt, in this order: earlier attempts at this very service in any sweep beside this one,
    the service that this allocation ran last, earlier runs of this model and layout, else the plan's estimate.
    """
    past = []
    for record in sweep.service_records(service):
        load = read_json(record).get("load_s")
        past += [float(load)] if load else []
    load = max(past) if past else last_load_s
    if not load:
        alike, _ = history.recall(sweep.root, config)
        load = max(alike.load_s) if alike and alike.load_s else load_seconds(config)
    return load + point_seconds(config)
