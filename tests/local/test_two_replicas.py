"""Two replicas as real processes of the rehearsal engine, each a whole service: one row, made by both."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from test_rehearsal import SHORT, engines, finish, start, the_sweep

pytestmark = pytest.mark.usefixtures("warm")

TWO = ("model=deepseek_v3_1_w4a8", "parallel=replicas2_tp8", *SHORT)  # what fits one node


def test_both_replicas_make_the_row(tmp_path: Path) -> None:
    finish(start(tmp_path, *TWO), 0)
    sweep = the_sweep(tmp_path)
    row = pd.read_parquet(sweep.table("parquet")).iloc[0]
    tokens = json.loads(row["engine_tokens"])
    assert row["valid"] and row["nodes"] == 2 and row["failed"] == 0
    assert sorted(tokens) == ["0", "1"] and min(tokens.values()) > 0
    commands = [path.read_text() for path in sorted(sweep.path.glob("services/*/*/rank*/command.json"))]
    assert len(commands) == 2 and not any("--headless" in text for text in commands)
    assert engines(tmp_path) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_replica_that_ends_ends_both(tmp_path: Path, rank: int) -> None:
    fault = f"engine.rehearsal.faults=[{{rank: {rank}, kind: exit, code: 0, when: window}}]"
    finish(start(tmp_path, fault, *TWO), 1)
    row = pd.read_parquet(the_sweep(tmp_path).table("parquet")).iloc[0]
    assert not row["valid"] and row["invalid_reason"].startswith(f"rank {rank}:")
    assert engines(tmp_path) == []


def test_a_replica_that_stands_still_is_named(tmp_path: Path) -> None:
    fault = "engine.rehearsal.faults=[{rank: 1, kind: hang, when: window}]"
    finish(start(tmp_path, fault, *TWO, "limits.heartbeat_s=4", "limits.probe_s=1"), 1)
    row = pd.read_parquet(the_sweep(tmp_path).table("parquet")).iloc[0]
    assert not row["valid"] and row["invalid_reason"].startswith("rank 1")
