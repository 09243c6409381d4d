"""A point's requests.parquet: its counted requests, by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jobs.core.foreign import regular
from jobs.results.gather import Run

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

_NEEDED = {"start_s", "wait_s", "ttft_ms", "e2el_ms", "itl_ms", "output_tokens", "status", "in_window", "index"}

MOST_VALUES = 200_000_000
"""Values of a file that is read: an hour at 50,000 tokens a second. A small file may stand for many more."""


def _values(metadata: Any) -> int:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    return sum(group.column(index).num_values for group in groups for index in range(metadata.num_columns))


@dataclass(frozen=True, eq=False)
class Requests:
    """The whole answers of one point that came in the windows (from 1) whose figures are its row's.

    `windows`: one table for each of them (a point may be measured in several), in the order of start.
    """

    numbers: tuple[int, ...]
    windows: tuple[pd.DataFrame, ...]


def read_requests(path: Path) -> Requests | None:
    """Read the requests of a point; None: there are none that can be read.

    Args:
        path: requests.parquet. A column `window` tells the windows apart; without it there is one. A column `in_row`
            tells those that stand in the row: the probes of a search do not, but for one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with regular(path) as file:
            columns = pq.ParquetFile(file, read_dictionary=["status"])
            if _values(columns.metadata) > MOST_VALUES:
                return None
            texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
            kept = [one.name for one in columns.schema_arrow if not any(is_text(one.type) for is_text in texts)]
            table = columns.read([*kept, *({"status"} - set(kept))]).to_pandas()
    except (OSError, pa.ArrowException, ValueError, MemoryError):
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
    )


def of_row(run: Run, row: Mapping[str, Any]) -> Requests | None:
    """Return the requests behind a row's figures; None: there are none that can be read, or that can be told.

    A search of earlier versions left its probes without a mark, so which of them the row shows is not known.
    """
    found = read_requests(run.sweep.point(row["point"]).requests)
    unmarked = found is not None and len(found.windows) > 1 and run.value(row, "bench.search")
    return None if unmarked else found
