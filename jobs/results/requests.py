"""A point's requests.parquet: latencies of its counted requests, and its token rate over the window."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SLICES = 40
"""The window is cut into so many equal parts; the rates of the parts tell its noise."""

BLOCK = 8
"""Slices that are drawn together: long enough to hold several rounds of requests that run in step."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Requests:
    """The whole answers of one point's window, in the order of their start."""

    frame: pd.DataFrame
    rates: Floats
    """Output tokens a second in each slice of the window, shape (SLICES,); of all windows where it was repeated."""

    def values(self, name: str) -> Floats:
        """Return a column's known values, in the order of time."""
        return self.frame[name].dropna().to_numpy(dtype=np.float64)


def read_requests(path: Path, window_s: float) -> Requests | None:
    """Read the requests of a point; None: there are none that can be read.

    Args:
        path: requests.parquet.
        window_s: length of the window, s.
    """
    try:
        table = pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException):
        return None
    if not {"start_s", "ttft_ms", "itl_ms", "status", "in_window", "index"} <= set(table.columns):
        return None
    windows = [part for _, part in table.groupby("repeat")] if "repeat" in table else [table]
    rates = np.concatenate([_rates(part, window_s) for part in windows]) if windows else np.empty(0)
    counted = table[table["in_window"] & (table["status"] == "ok")]
    return Requests(counted.sort_values("start_s", ignore_index=True), rates)


def _rates(table: pd.DataFrame, window_s: float) -> Floats:
    """Return the tokens a second of each slice; an answer's tokens are shared out evenly over its chunks."""
    counts = np.zeros(SLICES)
    columns = ["start_s", "ttft_ms", "output_tokens", "itl_ms"]
    for start, ttft, output, itl in table.loc[table["status"] != "failed", columns].to_numpy(dtype=object):
        if ttft is None or np.isnan(ttft):
            continue
        gaps = np.asarray([] if itl is None else itl, dtype=np.float64)
        times = start + np.concatenate([[ttft], ttft + np.cumsum(gaps)]) / 1e3
        tokens = output / len(times) if output and not np.isnan(output) else 1.0
        inside = times[(times >= 0) & (times < window_s)]
        np.add.at(counts, (inside / window_s * SLICES).astype(int), tokens)
    return counts / (window_s / SLICES)
