"""Three clients, one real service on the lab: each row is whole, and holds what was asked of it.

How near their latencies are is a matter of the machine: benchmarks/clients_agree.py measures that.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from lab import Lab
from launching import python

from jobs.core.rundir import SweepDir

PROMPT, ANSWER, REQUESTS = 2048, 32, 8
CLIENTS = ("window", "vllm_bench", "ais_bench")
WORDS = (
    "launch.py -m cluster=slurm engine=vllm_cpu model=tiny_llama parallel=dp2_tp1 parallel.max_model_len=8192"
    f" bench.concurrency=1 bench.input_tokens={PROMPT} bench.output_tokens={ANSWER} bench.num_requests={REQUESTS}"
    f" bench.warmup_s=2 bench.repeats=1 bench.client={','.join(CLIENTS)} results.name=clients"
)

UNIT = 30
"""Figures of two clients are never that many times apart: another unit is a thousand, a busy machine is some."""

FIGURES = ("ttft_ms_p50", "ttft_ms_mean", "tpot_ms_mean", "e2el_ms_p50", "output_tok_per_s", "request_per_s")


@pytest.mark.lab
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_three_clients_measure_one_service(lab: Lab, real_vllm: Path, real_ais_bench: Path, tmp_path: Path) -> None:
    lab.wait_idle()
    done = python(lab, *WORDS.split(), f"results.root={tmp_path}", timeout_s=550)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    sweep = SweepDir(tmp_path / "clients")
    rows = pd.read_parquet(sweep.table("parquet")).set_index("bench.client")
    assert sorted(rows.index) == sorted(CLIENTS)
    assert rows["service"].nunique() == 1
    assert rows["valid"].all(), rows["invalid_reason"].tolist()
    assert rows["input_tokens_mean"].between(PROMPT * 0.99, PROMPT * 1.01).all(), rows["input_tokens_mean"].tolist()
    assert set(rows["output_tokens_mean"]) == {float(ANSWER)}
    for tokens in rows["engine_tokens"]:
        assert min(json.loads(tokens).values()) > 0
    for figure in FIGURES:
        assert rows[figure].max() < UNIT * rows[figure].min(), rows[figure].to_dict()
    taken = rows["ttft_ms_mean"] + (ANSWER - 1) * rows["tpot_ms_mean"]
    assert (taken / rows["e2el_ms_mean"]).between(0.98, 1.02).all(), "a request is its first token and the rest"
    key = next(sweep.allocations()).api_key.read_text()
    told = [path for path in tmp_path.rglob("*") if path.is_file() and key in path.read_text(errors="replace")]
    assert told == [next(sweep.allocations()).api_key]
    lab.wait_idle()
