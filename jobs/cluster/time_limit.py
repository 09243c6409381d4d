"""Slurm's time limits in seconds, and what is kept of them for the end. Pure."""

from __future__ import annotations

import re

from jobs.core.errors import ConfigError

WEEK_MIN = 7 * 24 * 60

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


def limit_seconds(time_limit: int | str | None) -> int | None:
    """Return a Slurm time limit in seconds: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S (sbatch(1), --time).

    None is no limit; so is zero, as in sbatch(1).

    Raises:
        ConfigError: it is none of these.
    """
    if time_limit is None or str(time_limit).upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = _TIME.fullmatch(str(time_limit))
    if not match:
        remedy = "Write minutes, H:MM:SS or D-HH:MM:SS."
        raise ConfigError("cluster.time_limit", time_limit, "it is not a Slurm time", remedy)
    if str(time_limit).isdecimal() and int(str(time_limit)) > WEEK_MIN:
        # YAML reads an unquoted 8:00:00 as the number 28800.
        reason = "it is more than a week of minutes: perhaps YAML read H:MM:SS as a number"
        raise ConfigError("cluster.time_limit", time_limit, reason, 'Quote it ("8:00:00"), or write D-HH:MM:SS.')
    parts = match.group("days", "first", "second", "third")
    days, first, second, third = (int(part) if part else None for part in parts)
    if days is not None:
        return (days * 86400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)) or None
    if third is not None:
        return ((first or 0) * 3600 + (second or 0) * 60 + third) or None
    return ((first or 0) * 60 + (second or 0)) or None


SIGNAL_DELAY_S = 90
"""Slurm sends SIGUSR2 this long before the time limit, so that partial results can be kept."""
