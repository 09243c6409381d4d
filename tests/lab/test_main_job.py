"""The main job on real parts: submitit, Slurm with two nodes, real vLLM, one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from batching import engines_of
from lab import Lab
from launching import python

from jobs.allocation.node.cleanup import unused
from jobs.core.files import read_json, read_lines
from jobs.core.rundir import AllocationDir, RankDir, SweepDir
from jobs.measure.speculation import NOT_TEXT

ROOT = Path(__file__).resolve().parents[2]
PROMPT = 256
COMMAND = (
    "launch.py -m cluster=slurm engine=vllm_cpu model=tiny_llama parallel=dp2_tp1"
    " parallel.max_model_len=8192,32768 bench.concurrency=1,4"
)
SPECULATING = (
    f"bench.workload=text bench.input_tokens={PROMPT}"
    " engine.args.speculative-config={method:ngram,num_speculative_tokens:3,prompt_lookup_max:3}"
)
"""Prompts of real text: the service's own tokenizer makes them, and its counters tell of drafts."""

SHORT = "bench.window_s=3"
"""The engine computes through the whole of a window."""

PIPELINE = "launch.py experiment=pipeline_demo cluster=slurm bench.repeats=1 " + SHORT
REPLICAS = (
    "launch.py engine=vllm_cpu model=tiny_llama parallel=dp2_tp1 cluster=slurm bench.repeats=1"
    f" parallel.data_parallel_size=1 parallel.data_parallel_size_local=[1,1] {SHORT}"
)


@pytest.mark.lab
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_two_services_four_rows(lab: Lab, real_vllm: Path, tmp_path: Path) -> None:
    lab.wait_idle()
    before = {p.name for p in Path("/dev/shm").iterdir()}
    done = python(
        lab, *COMMAND.split(), *SPECULATING.split(), "bench.repeats=2", f"results.root={tmp_path}", timeout_s=850
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    sweep = SweepDir(next(p for p in tmp_path.iterdir() if (p / "plan.json").exists() and not p.is_symlink()))
    plan = read_json(sweep.plan)
    assert len(plan["services"]) == 2
    assert len(plan["allocations"]) == 1

    table = pd.read_parquet(sweep.table("parquet"))
    assert len(table) == 4
    assert table["valid"].all(), table["invalid_reason"].tolist()
    assert set(table["engine"]) == {"vllm_cpu"}
    assert table["service"].nunique() == 2
    assert sorted(zip(table["parallel.max_model_len"], table["bench.concurrency"], strict=True)) == [
        (8192, 1),
        (8192, 4),
        (32768, 1),
        (32768, 4),
    ]
    for _, row in table.iterrows():
        tokens = json.loads(row["engine_tokens"])
        assert set(tokens) == {"0", "1"}
        assert min(tokens.values()) > 0, f"both data-parallel engines must serve: {tokens}"
        assert row["completed"] > 0
        assert row["failed"] == 0
        assert row["output_tok_per_s"] > 0
        assert row["predicted_kv_tokens"] == pytest.approx(row["kv_cache_tokens"], rel=0.01)
        requests = pd.read_parquet(sweep.point(row["point"]).requests)
        assert len(requests) >= row["completed"]
        assert set(requests.query("in_window and status == 'ok'")["prompt_tokens"]) == {PROMPT}
        assert (row["spec_tokens"], row["spec_text"]) == (3, True) and NOT_TEXT not in str(row["notes"])
        by_place = json.loads(row["spec_by_position"])
        assert 0 <= row["spec_acceptance"] <= 1 and by_place == sorted(by_place, reverse=True)
        assert row["spec_tokens_per_step"] == pytest.approx(1 + sum(by_place), abs=0.01)

    [allocation] = sweep.allocations()
    assert hosts_of(allocation) == ["npu-node1", "npu-node2"]
    assert read_json(allocation.head)["address"] == "10.213.0.11", "the master address is that of the interface"
    for service in plan["services"]:
        for rank in (0, 1):
            folder = sweep.service(service["service"], 1).rank(rank)
            command = read_json(folder.command)
            assert ("--headless" in command["argv"]) == (rank == 1)
            assert command["env"]["GLOO_SOCKET_IFNAME"] == "eth0"
            last = read_lines(folder.states)[-1]
            assert (last["state"], last["leftovers"]) == ("done", [])

    lab.wait_idle()  # fails unless the allocation is released and both nodes are idle
    assert engines_of(read_json(allocation.job)["job_id"]) == [], "no process of an engine may be left"
    assert unused({p.name for p in Path("/dev/shm").glob("psm_*")} - before) == []


@pytest.mark.lab
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_pipeline_over_two_nodes(lab: Lab, real_vllm: Path, tmp_path: Path) -> None:
    """A stage of one data-parallel rank on each node: the other rank is headless, and only computes."""
    row, ranks = one_row(lab, PIPELINE, tmp_path)
    assert list(json.loads(row["engine_tokens"])) == ["0"] and row["completed"] > 0 and row["failed"] == 0
    assert row["predicted_kv_tokens"] == pytest.approx(row["kv_cache_tokens"], rel=0.01), "half of the layers a stage"
    for rank, folder in enumerate(ranks):
        assert f"PP rank {rank}, " in folder.log.read_text(), "each node holds the stage of its number"
        argv = read_json(folder.command)["argv"]
        assert argv[argv.index("--node-rank") + 1] == str(rank) and ("--headless" in argv) == (rank == 1)


@pytest.mark.lab
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_whole_service_on_each_of_two_nodes(lab: Lab, real_vllm: Path, tmp_path: Path) -> None:
    """Two replicas, which know nothing of each other: one row, and both have made its tokens."""
    row, ranks = one_row(lab, REPLICAS, tmp_path)
    tokens = json.loads(row["engine_tokens"])
    assert sorted(tokens) == ["0", "1"] and min(tokens.values()) > 0 and row["failed"] == 0
    for folder in ranks:
        assert "--headless" not in read_json(folder.command)["argv"] and "POST /v1/" in folder.log.read_text()


def one_row(lab: Lab, command: str, root: Path) -> tuple[dict[str, Any], list[RankDir]]:
    """Run a sweep of one point over both nodes; return its row, which is valid, and its ranks, which left nothing."""
    lab.wait_idle()
    done = python(lab, *command.split(), f"results.root={root}", timeout_s=550)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    sweep = SweepDir((root / "latest").resolve())
    [row] = pd.read_parquet(sweep.table("parquet")).to_dict("records")
    assert row["valid"], row["invalid_reason"]
    [allocation] = sweep.allocations()
    assert hosts_of(allocation) == ["npu-node1", "npu-node2"]
    ranks = [sweep.service(row["service"], 1).rank(rank) for rank in (0, 1)]
    for folder in ranks:
        last = read_lines(folder.states)[-1]
        assert (last["state"], last["leftovers"]) == ("done", [])
    lab.wait_idle()
    assert engines_of(read_json(allocation.job)["job_id"]) == [], "no process of an engine may be left"
    return row, ranks


def hosts_of(allocation: AllocationDir) -> list[str]:
    """Return the host on which each rank said that it runs."""
    return [allocation.stdout(rank).read_text().split(" on ")[1].split(",")[0] for rank in (0, 1)]
