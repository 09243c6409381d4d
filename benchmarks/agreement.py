"""Whether clients agree on a figure: within the noise that their own repeated runs show, and no wider. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

FLOOR = 0.15
"""Difference that is never held against a client, however steady the runs: clients start their clocks at other lines
of their code, and count the ramps of some dozens of requests otherwise."""

CEILING = 1.0
"""Difference that no noise excuses: on a machine that is busy elsewhere the runs would else agree on anything."""

CONFIDENCE = 0.99


def tolerance(runs: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Return the largest difference of two clients' means that is noise, as a share.

    Half the width of the interval of a difference of two means, in logarithms, by the scatter of the runs of every
    client around its own mean: they meet the same machine in turn.
    """
    logs = {client: np.log(values) for client, values in runs.items()}
    freedom = sum(len(values) - 1 for values in logs.values())
    spread = math.sqrt(sum(float(((values - values.mean()) ** 2).sum()) for values in logs.values()) / freedom)
    width = spread * math.sqrt(1 / len(logs[one]) + 1 / len(logs[other]))
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    return min(CEILING, max(FLOOR, math.expm1(quantile * width)))


def differ(runs: Mapping[str, Sequence[float]], base: str) -> dict[str, str]:
    """Return words for each client whose mean differs from that of `base` by more than noise."""
    found = {}
    for client in runs.keys() - {base}:
        apart = abs(float(np.log(runs[client]).mean() - np.log(runs[base]).mean()))
        allowed = tolerance(runs, client, base)
        if math.expm1(apart) > allowed:
            shown = {name: [round(value, 3) for value in values] for name, values in runs.items()}
            found[client] = f"{math.expm1(apart):.0%} apart, {allowed:.0%} are noise: {shown}"
    return found
