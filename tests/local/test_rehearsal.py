"""The whole path on this machine with the rehearsal engine: two ranks on loopback, real processes, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from jobs.core.files import read_json, read_lines
from jobs.core.process import TAG
from jobs.core.rundir import SweepDir

pytestmark = pytest.mark.usefixtures("warm")

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("bench.warmup_s=0.5", "bench.repeats=1", "bench.window_s=2", "bench.concurrency=4")


def start(root: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start launch.py with the rehearsal engine, its results under `root`."""
    return subprocess.Popen(
        [sys.executable, "launch.py", "-m", "engine=simulator", f"results.root={root}", *overrides],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hears_ctrl_c,
    )


def hears_ctrl_c() -> None:
    """A shell starts background work, such as a test run, with SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str], code: int) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output[-3000:]
    return output


def verb(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "jobs", *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def until(ask: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    """Wait for something that files tell."""
    end = time.monotonic() + limit_s
    while not ask():
        assert time.monotonic() < end, f"waited {limit_s:g} s for {what}"
        time.sleep(0.05)


def the_sweep(root: Path) -> SweepDir:
    return SweepDir((root / "latest").resolve())


def entered(root: Path, state: str) -> bool:
    """Return whether the service has come to this state."""
    states = (root / "latest").glob("services/*/*/rank0/state.jsonl")
    return any(entry["state"] == state for path in states for entry in read_lines(path))


def measuring(root: Path) -> bool:
    """Return whether a window is open."""
    return entered(root, "measuring")


def engines(root: Path) -> list[int]:
    """Return the pids of living engine processes that write under `root`."""
    found = []
    for process in psutil.process_iter():
        try:
            if TAG in process.environ() and any(str(root) in file.path for file in process.open_files()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def check_r1(root: Path, output: str) -> None:
    """Look at what the README's first command left: the R1 configuration, rehearsed (test_readme.py runs it)."""
    sweep = the_sweep(root)
    table = pd.read_parquet(sweep.table("parquet"))
    assert table["parallel.max_model_len"].tolist() == [8192, 32768]
    assert table["valid"].all()
    assert set(table["engine"]) == {"simulator"}
    assert all(min(json.loads(tokens).values()) > 0 for tokens in table["engine_tokens"])
    assert (table["kv_cache_tokens"] == 130_048).all(), "facts of the memory table: TP8 DP2 at 0.9"
    assert (table["predicted_kv_tokens"] == table["kv_cache_tokens"]).all(), "the plan adds up what the engine adds up"
    assert str(sweep.table("csv")) in output
    tuned = read_json(sweep.provenance)["host_states"]
    assert set(table["host_state"]) == set(tuned), "the row has the digest, provenance.json what it stands for"
    assert all("cpus" in node for nodes in tuned.values() for node in nodes.values())
    for service in table["service"]:
        argv = [read_json(sweep.service(service, 1).rank(rank).command)["argv"] for rank in (0, 1)]
        assert "--headless" not in argv[0]
        assert argv[1][argv[1].index("--data-parallel-start-rank") + 1] == "1"
        effective = read_json(sweep.service(service, 1).rank(1).effective)
        assert effective["differences"] == []
    assert engines(root) == []


def test_what_cannot_fit_is_a_row_and_a_run_teaches_the_next_plan(tmp_path: Path) -> None:
    grid = ("parallel.max_model_len=131072,8192", "parallel.gpu_memory_utilization=0.85", "launch.infeasible=drop")
    output = finish(start(tmp_path, *grid, *SHORT), 1)
    sweep = the_sweep(tmp_path)
    table = pd.read_parquet(sweep.table("parquet"))
    assert table["valid"].tolist() == [False, True]
    assert table["invalid_reason"][0].startswith("does not fit: one request of 131,072 tokens needs 8.58 GiB")
    assert output.count(table["invalid_reason"][0]) == 2, "in the plan and under the table"
    [service] = read_json(sweep.plan)["services"]
    record = read_json(sweep.service(service["service"], 1).record)
    assert record["predicted_kv_tokens"] == record["kv_cache_tokens"] == 83_456
    done = verb(
        "plan", "--json", "engine=simulator", "parallel.gpu_memory_utilization=0.85", f"results.root={tmp_path}"
    )
    phases = json.loads(done.stdout)["services"][0]["phases"]
    assert phases["source"] == "past runs of this model and layout"
    assert phases["load_s"] == round(record["load_s"])
    # A resume does not run it either.
    assert "0 points are left" in verb("resume", str(sweep.path), "--retry-failed").stdout


def test_a_sweep_of_which_nothing_can_run_is_a_table(tmp_path: Path) -> None:
    finish(start(tmp_path, "parallel.enable_expert_parallel=false", "launch.infeasible=drop"), 1)
    sweep = the_sweep(tmp_path)
    assert not (sweep.path / "allocations").exists()
    assert pd.read_parquet(sweep.table("parquet"))["invalid_reason"][0].startswith("does not fit: ")


def test_load_points_share_one_engine_start(tmp_path: Path) -> None:
    finish(start(tmp_path, "bench.concurrency=4,1,2", "bench.warmup_s=0.5", "bench.repeats=1", "bench.window_s=2"), 0)
    sweep = the_sweep(tmp_path)
    [service] = read_json(sweep.plan)["services"]
    noted = read_lines(sweep.service(service["service"], 1).rank(0).states)
    # A load that is seen to go on is noted again, with its shards.
    states = [entry["state"] for entry in noted if not entry.get("shards")]
    assert states.count("loading") == 1
    assert states.count("measuring") == 3
    table = pd.read_parquet(sweep.table("parquet")).set_index("point")
    assert [int(table.loc[p, "bench.concurrency"]) for p in service["points"]] == [1, 2, 4], "from low to high load"


@pytest.mark.parametrize("rank", [0, 1])
def test_an_engine_that_exits_0_ends_the_service(tmp_path: Path, rank: int) -> None:
    fault = f"engine.rehearsal.faults=[{{rank: {rank}, kind: exit, code: 0, when: window}}]"
    output = finish(start(tmp_path, fault, "parallel.max_model_len=8192,16384", *SHORT), 1)
    table = pd.read_parquet(the_sweep(tmp_path).table("parquet"))
    assert len(table) == 2, "nothing is dropped"
    assert not table["valid"].any()
    assert all(reason.startswith(f"rank {rank}:") for reason in table["invalid_reason"]), table[
        "invalid_reason"
    ].tolist()
    assert "Traceback" not in output
    assert engines(tmp_path) == []


def test_ctrl_c_detaches_and_the_table_comes(tmp_path: Path) -> None:
    process = start(tmp_path, *SHORT)
    until(lambda: measuring(tmp_path), "the window")
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole foreground group
    output = finish(process, 130)
    assert "detached" in output
    sweep = the_sweep(tmp_path)
    [allocation] = sweep.allocations()
    until(allocation.outcome.exists, "the end of the sweep")
    assert pd.read_csv(sweep.table("csv"))["valid"].tolist() == [True]
    until(lambda: engines(tmp_path) == [], "the engines' end")


def test_a_killed_launcher_loses_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, *SHORT)
    until(lambda: measuring(tmp_path), "the window")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    sweep = the_sweep(tmp_path)
    [allocation] = sweep.allocations()
    until(allocation.outcome.exists, "the end of the sweep")
    done = verb("follow", "--json", str(sweep.path))
    assert done.returncode == 0, done.stderr
    assert [row["valid"] for row in json.loads(done.stdout)] == [True]


def test_cancel_keeps_the_partial_window_and_resume_finishes(tmp_path: Path) -> None:
    for window_s in (5, 25):  # a busy machine takes longer than the first to start the program that cancels
        root = tmp_path / str(window_s)
        short = ("bench.warmup_s=0.5", "bench.repeats=1", f"bench.window_s={window_s}")
        process = start(root, "parallel.max_model_len=8192,16384", *short)
        until(lambda root=root: measuring(root), "the window")
        sweep = the_sweep(root)
        cancelled = verb("cancel", "--json", str(sweep.path))
        assert len(json.loads(cancelled.stdout)["cancelled"]) == 1
        finish(process, 1)
        table = pd.read_parquet(sweep.table("parquet"))
        if not table["valid"].any():
            break
    assert table["valid"].tolist() == [False, False]
    assert table["truncated"].tolist() == [False, True]  # the largest context is run first
    assert engines(tmp_path) == []

    resumed = verb("resume", str(sweep.path))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    table = pd.read_parquet(sweep.table("parquet"))
    assert table["valid"].all()
    assert table["attempt"].tolist() == [2, 2]

    again = verb("resume", "--json", str(sweep.path))
    assert again.returncode == 0
    assert len(list(sweep.allocations())) == 2, "finished points are never run again"


def test_what_is_missing_here_is_said_before_the_start(tmp_path: Path) -> None:
    for override, words in (
        ("engine.command=[/nowhere/vllm]", "engine.command = /nowhere/vllm"),
        ("engine.checks_model_path=true", "model.path = /models/DeepSeek-R1-0528-W8A8"),
    ):
        output = finish(start(tmp_path, override, "cluster=local"), 1)
        assert words in output
        assert "Traceback" not in output
    assert not (tmp_path / "latest").exists()


def test_optuna_looks_for_the_best_and_survives_a_trial_that_cannot_be_asked(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.sampler.seed=1",
    ]
    words += ["hydra.sweeper.direction=maximize", "bench.input_tokens=choice(64,9000)", "bench.concurrency=range(1,5)"]
    output = finish(start(tmp_path, *words, "bench.warmup_s=0.2", "bench.repeats=1", "bench.window_s=1"), 0)
    assert "not asked:" in output and "parallel.max_model_len" in output
    assert "best so far: output_tok_per_s = " in output
    best = yaml.safe_load((tmp_path / ".hydra" / "optimization_results.yaml").read_text())
    assert best["best_params"]["bench.input_tokens"] == 64 and best["best_value"] > 0


def test_a_pipeline_over_two_ranks(tmp_path: Path) -> None:
    """One data-parallel rank whose second stage is on the other rank: that one serves nothing and is needed."""
    output = finish(start(tmp_path, "parallel=pp2_tp8", "engine.release=0.23.0", *SHORT), 0)
    sweep = the_sweep(tmp_path)
    [row] = pd.read_parquet(sweep.table("parquet")).to_dict("records")
    assert row["valid"], output
    assert row["predicted_kv_tokens"] == row["kv_cache_tokens"] and json.loads(row["engine_tokens"]).keys() == {"0"}
    for rank in (0, 1):
        assert f"PP rank {rank}, " in sweep.service(row["service"], 1).rank(rank).log.read_text()


def test_a_lost_stage_ends_the_service(tmp_path: Path) -> None:
    faults = "engine.rehearsal.faults=[{rank: 1, kind: exit, code: 0, when: ready}]"
    finish(start(tmp_path, "parallel=pp2_tp8", "engine.release=0.23.0", faults, *SHORT), 1)
    [row] = pd.read_parquet(the_sweep(tmp_path).table("parquet")).to_dict("records")
    assert not row["valid"] and "rank 1" in row["invalid_reason"]
