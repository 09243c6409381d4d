"""Three clients, one real service on the lab: they must tell the same story (issue 6, Clients)."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from lab import Lab
from launching import python

from jobs.rundir import SweepDir

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "launch.py -m cluster=slurm engine=vllm_cpu model=tiny_llama parallel=dp2_tp1 parallel.max_model_len=8192"
    " bench.concurrency=4 bench.input_tokens=128 bench.output_tokens=64 bench.num_requests=200 bench.warmup_s=3"
    " bench.window_s=8 bench.client=window,vllm_bench,ais_bench results.name=clients"
)

NOISE = 2.5
"""Two cores run both ranks, the client and the lab: means of one client differ by up to this from run to run."""


@pytest.mark.lab
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_the_clients_agree(lab: Lab, real_vllm: Path, real_ais_bench: Path, tmp_path: Path) -> None:
    lab.wait_idle()
    done = python(lab, *WORDS.split(), f"results.root={tmp_path}", timeout_s=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    sweep = SweepDir(tmp_path / "clients")
    table = pd.read_parquet(sweep.table("parquet")).set_index("bench.client")
    assert set(table.index) == {"window", "vllm_bench", "ais_bench"}
    assert table["service"].nunique() == 1
    assert table["valid"].all(), table["invalid_reason"].tolist()
    for figure in ("output_tok_s", "request_s", "ttft_ms_p50", "tpot_ms_mean", "e2el_ms_p50"):
        values = table[figure]
        assert values.max() / values.min() < NOISE, f"{figure}: {values.to_dict()}"
    for tokens in table["engine_tokens"]:
        assert min(json.loads(tokens).values()) > 0
    key = next(sweep.allocations()).api_key.read_text()
    told = [path for path in tmp_path.rglob("*") if path.is_file() and key in path.read_text(errors="replace")]
    assert told == [next(sweep.allocations()).api_key]
    lab.wait_idle()
