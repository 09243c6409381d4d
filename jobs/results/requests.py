"""A point's requests.parquet: latencies of its counted requests, and its token rate over each window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jobs.results.gather import Run

if TYPE_CHECKING:
    import pandas as pd

SLICES = 40
"""A window is cut into so many equal parts; the rates of the parts tell its noise."""

BLOCK = 8
"""Slices that are drawn together: long enough to hold several rounds of requests that run in step."""

Floats = NDArray[np.float64]

_NEEDED = {"start_s", "ttft_ms", "e2el_ms", "itl_ms", "output_tokens", "status", "in_window", "index"}


@dataclass(frozen=True, eq=False)
class Requests:
    """The whole answers of one point that started in the windows whose figures are its row's.

    Args:
        numbers: of these windows, from 1.
        windows: one table for each window (a point may be measured in several), in the order of start.
        rates: output tokens a second in each slice, one array of shape (SLICES,) for each window.
    """

    numbers: tuple[int, ...]
    windows: tuple[pd.DataFrame, ...]
    rates: tuple[Floats, ...]

    def values(self, *names: str) -> list[Floats]:
        """Return for each window the rows in which these columns are known, shape (n,) or (n, columns)."""
        found = [frame[list(names)].dropna().to_numpy(dtype=np.float64) for frame in self.windows]
        return [data[:, 0] for data in found] if len(names) == 1 else found

    @property
    def frame(self) -> pd.DataFrame:
        """All windows in one table."""
        import pandas as pd

        return pd.concat(self.windows, ignore_index=True)


def read_requests(path: Path, window_s: float) -> Requests | None:
    """Read the requests of a point; None: there are none that can be read.

    Args:
        path: requests.parquet. A column `window` tells the windows apart; without it there is one. A column `in_row`
            tells those that stand in the row: the probes of a search do not, but for one.
        window_s: length of a window, s.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException):
        return None
    if table.empty or not set(table.columns) >= _NEEDED:
        return None
    if "in_row" in table:
        table = table[table["in_row"]]
    by_number = list(table.groupby("window")) if "window" in table else [(1, table)]
    if not by_number:
        return None
    numbers, parts = zip(*by_number, strict=True)
    counted = [part[part["in_window"] & (part["status"] == "ok")] for part in parts]
    return Requests(
        tuple(int(number) for number in numbers),
        tuple(part.sort_values("start_s", ignore_index=True) for part in counted),
        tuple(_rates(part, window_s) for part in parts),
    )


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


def of_row(run: Run, row: Mapping[str, Any]) -> Requests | None:
    """Return the requests behind a row's figures; None: there are none that can be read, or that can be told.

    A search of earlier versions left its probes without a mark, so which of them the row shows is not known.
    """
    window = run.value(row, "bench.window_s")
    found = read_requests(run.sweep.point(row["point"]).requests, float(window)) if window else None
    unmarked = found is not None and len(found.windows) > 1 and run.value(row, "bench.search")
    return None if unmarked else found
