"""What a point came to, in its files."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.core.errors import RunError
from jobs.core.files import write_json, write_text
from jobs.core.rundir import PointDir
from jobs.measure import statistics, telemetry
from jobs.measure.point import Measured


def save(folder: PointDir, measured: Measured) -> None:
    """Write requests, series, windows and the canary of one point.

    Raises:
        RunError: the directory cannot be written (full disk, no right).
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        pq.write_table(statistics.requests_table(measured.windows, measured.in_row), folder.requests)
        pq.write_table(statistics.series_table(measured.windows), folder.series)
        if any(measured.readings):
            pq.write_table(telemetry.npu_table(measured.windows, measured.readings), folder.power)
    except (OSError, pa.ArrowException) as error:
        raise RunError(str(folder.path), "(write)", str(error), "Free space, or choose another root.") from None
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in measured.lines]
    write_text(folder.windows, "".join(lines))
    if measured.canary is not None:
        write_json(folder.canary, measured.canary)
    if measured.quality is not None:
        write_json(folder.quality, {"score": measured.quality.score, "questions": list(measured.quality.lines)})
