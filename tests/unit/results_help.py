"""What the tests of results share: the recorded sweep, and small sweeps that are written as a run leaves them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from core_help import composer

from jobs.core.files import write_json
from jobs.core.rundir import SweepDir
from jobs.core.tasks import write_config
from jobs.results.row import make_row
from jobs.sweep import compose, plan, road
from jobs.sweep.points import Point
from jobs.sweep.record import as_json

RECORDED = Path(__file__).resolve().parents[1] / "fixtures/sweep_vllm_cpu"
"""A sweep of real vLLM on two CPU ranks (its README says how it was recorded)."""


def copied(tmp_path: Path) -> Path:
    """Return a copy of the recorded sweep that a test may change."""
    return Path(shutil.copytree(RECORDED, tmp_path / "recorded"))


def planned(folder: Path, *overrides: str) -> tuple[SweepDir, plan.Plan]:
    """Write a sweep that has not run."""
    made = road.plan(compose.expand(["cluster=local", *overrides]), composer)
    found = SweepDir(folder)
    write_json(found.plan, as_json(made))
    for point in made.points:
        write_config(found, point.point, point.config)
    return found, made


def row(found: SweepDir, point: Point, **known: Any) -> None:
    """Write a row; it is valid unless a reason is given."""
    known = {"valid": "invalid_reason" not in known, "nodes": 2} | known
    write_json(found.point(point.point).row, make_row(point.point, point.service, point.config, **known))


def requests(found: SweepDir, point: Point, e2el_ms: Sequence[float], *, windows: int = 1, **odd: Any) -> None:
    """Write request records: answers of 11 tokens with these end-to-end latencies, one after the other."""
    tables = []
    for window in range(windows):
        n = len(e2el_ms)
        e2el = np.asarray(e2el_ms, dtype=float) * (1 + 0.002 * window)
        ttft = e2el / 2
        starts = np.cumsum(e2el) / 1e3 / (point.config.bench.concurrency or 1)
        columns = {
            "index": np.arange(n),
            "start_s": starts,
            "wait_s": np.zeros(n),
            "ttft_ms": ttft,
            "tpot_ms": (e2el - ttft) / 10,
            "e2el_ms": e2el,
            "prompt_tokens": np.full(n, 100),
            "output_tokens": np.full(n, 11),
            "itl_ms": pa.array([[step] * 10 for step in (e2el - ttft) / 10], pa.list_(pa.float32())),
            "status": ["ok"] * n,
            "in_window": [True] * n,
            "window": np.full(n, window + 1),
        } | odd
        tables.append(pa.table(columns))
    found.point(point.point).path.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), found.point(point.point).requests)


def latencies(mean: float, n: int = 200, seed: int = 0, spread: float = 0.05) -> list[float]:
    """Return n latencies around a mean, ms."""
    return list(np.random.default_rng(seed).normal(mean, spread * mean, n))


def measured(found: SweepDir, point: Point, e2el_ms: float, *, windows: int = 1, seed: int = 0, **known: Any) -> None:
    """Write row and requests of a point in a closed loop, as Little's law has them."""
    each = latencies(e2el_ms, seed=seed)
    requests(found, point, each, windows=windows)
    mean = float(np.mean(each))
    figures = {
        "completed": len(each),
        "failed": 0,
        "output_tok_per_s": (point.config.bench.concurrency or 1) * 11e3 / mean,
        **{f"{name}_ms_{statistic}": mean / share for name, share in (("ttft", 2), ("tpot", 20), ("e2el", 1))
           for statistic in ("mean", "p50", "p99")},
    }  # fmt: skip
    row(found, point, **(figures | known))
    if windows > 1:  # a column of later versions
        path = found.point(point.point).row
        text = path.read_text().replace('"schema_version"', f'"windows": {windows},\n "schema_version"')
        path.write_text(text)
