"""Three clients, one real service on the lab: they must tell the same story (issue 6, Clients)."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from agreement import differ
from lab import Lab
from launching import python

from jobs.rundir import SweepDir

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "launch.py -m cluster=slurm engine=vllm_cpu model=tiny_llama parallel=dp2_tp1 parallel.max_model_len=8192"
    " bench.concurrency=4 bench.input_tokens=128 bench.output_tokens=64 bench.num_requests=60 bench.warmup_s=2"
    " bench.window_s=6 bench.seed=0,1 bench.client=window,vllm_bench,ais_bench results.name=clients"
)

RUNS = 2
"""Of each client, in turn: their scatter is the noise that their agreement is judged by (agreement.py)."""

FIGURES = ("output_tok_s", "request_s", "ttft_ms_p50", "tpot_ms_mean", "e2el_ms_p50")


@pytest.mark.lab
@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_the_clients_agree(lab: Lab, real_vllm: Path, real_ais_bench: Path, tmp_path: Path) -> None:
    lab.wait_idle()
    done = python(lab, *WORDS.split(), f"results.root={tmp_path}", timeout_s=1100)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    sweep = SweepDir(tmp_path / "clients")
    table = pd.read_parquet(sweep.table("parquet"))
    assert table["bench.client"].value_counts().to_dict() == dict.fromkeys(("window", "vllm_bench", "ais_bench"), RUNS)
    assert table["service"].nunique() == 1
    assert table["valid"].all(), table["invalid_reason"].tolist()
    apart = {
        figure: words
        for figure in FIGURES
        if (words := differ({name: rows[figure].tolist() for name, rows in table.groupby("bench.client")}, "window"))
    }
    assert not apart, apart
    assert table["input_tokens_mean"].between(128 * 0.99, 128 * 1.01).all(), table["input_tokens_mean"].tolist()
    assert set(table["output_tokens_mean"]) == {64.0}
    for tokens in table["engine_tokens"]:
        assert min(json.loads(tokens).values()) > 0
    key = next(sweep.allocations()).api_key.read_text()
    told = [path for path in tmp_path.rglob("*") if path.is_file() and key in path.read_text(errors="replace")]
    assert told == [next(sweep.allocations()).api_key]
    lab.wait_idle()
