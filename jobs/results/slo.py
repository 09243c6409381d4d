"""Which rows keep a service-level objective, and the largest load that does at each context length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.core.fields import dotted
from jobs.core.load import Slo
from jobs.measure import bound
from jobs.results.columns import lines_in_row, load_of
from jobs.results.gather import Run
from jobs.results.requests import Floats, Requests, of_row

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE = {"ttft_ms_p99": 2000.0, "tpot_ms_p99": 50.0}
"""Limits that the report begins with where the sweep set none."""

NAMES = tuple(Slo.column(one.name) for one in fields(Slo))
"""Columns that `bench.slo` can limit."""


def limits(run: Run, row: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Return the objective (`bench.slo`) of a row: column to limit; None: of the sweep's first point."""
    shared = dotted(run.config, "bench.slo")
    found = dict(shared) if isinstance(shared, Mapping) else {}
    swept = {key: key.removeprefix("bench.slo.") for key in run.swept if key.startswith("bench.slo.")}
    if row is not None:
        found |= {name: row[key] for key, name in swept.items()}
    return {Slo.column(name): value for name, value in found.items() if isinstance(value, int | float)}


def is_set(run: Run) -> bool:
    """Return whether any row has an objective."""
    return any(limits(run, row) for row in run.rows)


def p99(run: Run, row: Mapping[str, Any]) -> dict[str, float]:
    """Return the 99th percentiles of a row that a limit can be held against, by column; the unknown ones are missing.

    The row's own where it shows one. Else that of its single requests, however few: nearly their maximum. Of several
    windows the worst counts.
    """
    found = {name: float(row[name]) for name in NAMES if isinstance(row.get(name), int | float)}
    missing = [name for name in NAMES if name not in found]
    requests = of_row(run, row) if missing and row.get("completed") else None
    for name in missing if requests is not None else ():
        figure = name.removesuffix("_p99")
        each = [_values(frame, figure) for frame in (requests.windows if requests else ())]
        known = [float(np.percentile(values, 99)) for values in each if values.size]
        if known:
            found[name] = max(known)
    return found


def _values(frame: pd.DataFrame, figure: str) -> Floats:
    if figure == "itl_ms":
        gaps = [np.asarray(one, dtype=np.float64) for one in frame["itl_ms"] if one is not None]
        return np.concatenate(gaps) if gaps else np.empty(0)
    return frame[figure].dropna().to_numpy(dtype=np.float64)


def kept(run: Run, row: Mapping[str, Any], asked: Mapping[str, float] | None = None) -> bool | None:
    """Return whether a row keeps its own objective, or the limits that are asked; None: its figures do not tell.

    A saturated row keeps none. For its own objective stands what was told while its requests were at hand.
    """
    own = limits(run, row)
    asked = own if asked is None else asked
    if not asked:
        return None
    if row.get("saturated"):
        return False
    told = row.get("slo_kept") if asked == own else None
    if told is not None or (asked == own and row.get("slo_requests")):
        return told
    found = of_row(run, row) if row.get("completed") else None
    return None if found is None else _told(run, row, found, asked)  # a p99 alone does not tell


def _told(run: Run, row: Mapping[str, Any], found: Requests, asked: Mapping[str, float]) -> bool | None:
    """Return what the requests of a row say of these limits (as `objective.told` does); those that failed are misses.

    None too where all answers came in one piece, which hides how fast their tokens came.
    """
    names = ("failed", "truncated_requests")
    lines: list[Mapping[str, Any]] = [line for _, line in lines_in_row(run, row)] or [row] * len(found.windows)
    missed = total = sum(line.get(name) or 0 for line in lines for name in names)
    of_pieces = any(name.startswith(("tpot", "itl")) for name in asked)
    hidden, each = [], []
    for frame in found.windows:
        shares = np.zeros(len(frame))
        for name, limit in asked.items():
            figure = name.removesuffix("_p99")
            values = frame[figure].map(_own_p99) if figure == "itl_ms" else frame[figure]
            shares = np.fmax(shares, values.to_numpy(dtype=np.float64) / limit)
        in_one = (frame["tpot_ms"].isna() & (frame["output_tokens"] > 1)).to_numpy(dtype=bool) & of_pieces
        shares[in_one] = np.inf
        hidden.append(in_one)
        came = (frame["start_s"] - frame["wait_s"]).to_numpy(dtype=np.float64)
        each.append(bound.together(came, shares))
        missed, total = missed + int((shares > 1).sum()), total + len(frame)
    if all(one.all() for one in hidden):
        return None
    return bound.decided(missed, total, bound.pooled(each))


def _own_p99(gaps: Any) -> float:
    return float(np.percentile(gaps, 99)) if gaps is not None and len(gaps) else float("nan")


def largest(run: Run, row: Mapping[str, Any], asked: Mapping[str, float] | None = None) -> float | None:
    """Return the load of a row that keeps its own objective, or the limits that are asked, and 0 for one that does not.

    None: it cannot be told.
    """
    verdict = kept(run, row, asked)
    if verdict is None:
        return None
    load = load_of(run, row) if verdict else 0
    return float(load) if isinstance(load, int | float) else None
