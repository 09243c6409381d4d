"""The checks of the nodes in a whole run on this machine, with stand-ins of npu-smi and hccn_tool on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs.core.files import read_json
from jobs.core.rundir import SweepDir

pytestmark = pytest.mark.usefixtures("warm")

ROOT = Path(__file__).resolve().parents[2]
TINY = ("engine=simulator", "model=tiny_llama", "parallel=dp2_tp1", "cluster.npus_per_node=2")
NPUS = (*TINY, "preflight.npus=true", "preflight.skip=[npu.files]", "engine.env.HCCL_IF_BASE_PORT=12800")
SHORT = ("bench.warmup_s=0.5", "bench.repeats=1", "bench.window_s=1", "bench.concurrency=2")


def node(folder: Path, state: Mapping[str, Any]) -> dict[str, str]:
    """Make a node's tools in a directory. Returns the environment that finds them."""
    folder.mkdir()
    for name, program in (("npu_smi", "npu-smi"), ("hccn_tool", "hccn_tool")):
        shutil.copy(ROOT / "tests/fakes" / name, folder / program)
    (folder / "npus.json").write_text(json.dumps({"count": 2} | dict(state)))
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def python(env: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=dict(env), capture_output=True, text=True, timeout=180, check=False
    )


def outcome(root: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    sweep = SweepDir((root / "latest").resolve())
    [allocation] = sweep.allocations()
    return pd.read_parquet(sweep.table("parquet")), read_json(allocation.preflight)


def test_a_healthy_node_is_checked_and_measured(tmp_path: Path) -> None:
    env = node(tmp_path / "node", {})
    done = python(env, "launch.py", "-m", *NPUS, *SHORT, f"results.root={tmp_path}/runs")
    assert done.returncode == 0, done.stdout + done.stderr
    table, record = outcome(tmp_path / "runs")
    assert table["valid"].tolist() == [True]
    states = {one["check"]: one["state"] for one in record["findings"]}
    assert (states["npu.health"], states["fabric.tls"], states["fabric.ping"]) == ("pass", "pass", "pass")
    assert states["npu.files"] == "not-run"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            {"npus": {"1": {"processes": [[4711, "python3", 37709]]}}},
            "NPU 1: npu.processes: process 4711 python3 runs on it with 37709 MB. End it if it is yours",
        ),
        ({"ports": {"0": {"link": "DOWN"}}}, "NPU 0: fabric.link: its link is DOWN. Check cable and switch"),
    ],
)
def test_a_sick_device_ends_the_allocation_with_rows_that_say_it(
    tmp_path: Path, state: dict[str, Any], words: str
) -> None:
    env = node(tmp_path / "node", state)
    points = ("parallel.max_model_len=8192,16384", f"results.root={tmp_path}/runs")
    done = python(env, "launch.py", "-m", *NPUS, *SHORT, *points)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    table, record = outcome(tmp_path / "runs")
    assert len(table) == 2
    assert not table["valid"].any()
    for reason in table["invalid_reason"]:
        assert reason.startswith("not run: preflight: localhost "), reason
        assert words in reason
    assert record["state"] == "fail"
    [log] = (tmp_path / "runs/latest/allocations/0/1").glob("stdout-0.log")
    assert "FAIL  " in log.read_text(), "the table is in the log of rank 0"
    assert not (tmp_path / "runs/latest/services").exists(), "no engine was started"


def test_the_verb_prints_a_table_and_fails_for_a_sick_npu(tmp_path: Path) -> None:
    env = node(tmp_path / "node", {"npus": {"1": {"missing": True}}})
    done = python(env, "-m", "jobs", "preflight", *NPUS, f"results.root={tmp_path}")
    assert done.returncode == 1, done.stderr
    assert "npu.devices" in done.stdout
    assert "NPU 1: npu.devices: npu-smi does not show it" in done.stdout
    assert "\x1b" not in done.stdout
