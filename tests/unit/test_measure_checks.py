"""Loads that cannot be asked are refused before anything is submitted, with the key to change."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.core.config import Bench, Config
from jobs.core.errors import ConfigError
from jobs.core.load import Slo
from jobs.core.service_config import Parallel
from jobs.measure.checks import BENCH_LOOKS

SLO = Slo(ttft_ms=100.0)


def check(**bench: Any) -> None:
    made = Config(bench=Bench(**{"concurrency": 4} | bench), parallel=Parallel(max_model_len=2048))
    for look in BENCH_LOOKS:
        look(made)


@pytest.mark.parametrize(
    "bench",
    [
        {},
        {"concurrency": None, "request_rate": 1.0},
        {"workload": "trace", "concurrency": None, "dataset": "/t.jsonl"},
        {"workload": "sharegpt", "dataset": "datasets/s.json"},
        {"search": "concurrency", "slo": SLO},
        {"search": "request_rate", "request_rate": 2.0, "slo": SLO, "search_most": 2.0},
        {"endpoint": "chat", "input_tokens": 5000},
        {"workload": "needle", "input_tokens": 5000},
        {"client": "vllm_bench", "num_requests": 10},
    ],
)
def test_loads_that_can_be_asked(bench: dict[str, Any]) -> None:
    check(**bench)


@pytest.mark.parametrize(
    ("key", "bench"),
    [
        ("bench.concurrency", {"concurrency": None}),
        ("bench.request_rate", {"workload": "trace", "dataset": "/t", "request_rate": 1.0}),
        ("bench.dataset", {"workload": "trace"}),
        ("bench.dataset", {"dataset": "/t"}),
        ("bench.search", {"search": "concurrency"}),
        ("bench.request_rate", {"search": "request_rate", "slo": SLO}),
        ("bench.request_rate", {"search": "concurrency", "slo": SLO, "request_rate": 1.0}),
        ("bench.request_rate", {"search": "request_rate", "slo": SLO, "request_rate": 0.2, "search_most": 2.0}),
        ("bench.slo.tpot_ms", {"output_tokens": 1, "slo": Slo(ttft_ms=9.0, tpot_ms=9.0)}),
        ("bench.search_most", {"search": "concurrency", "slo": SLO, "search_most": 2.0}),
        ("bench.repeats", {"search": "concurrency", "slo": SLO, "repeats": 2}),
        ("bench.num_requests", {"search": "concurrency", "slo": SLO, "num_requests": 9}),
        ("bench.workload", {"search": "concurrency", "slo": SLO, "workload": "trace", "dataset": "/t"}),
        ("bench.repeats", {"client": "ais_bench", "repeats": 2}),
        ("bench.search", {"client": "vllm_bench", "search": "concurrency", "slo": SLO}),
        ("bench.lengths", {"client": "vllm_bench", "lengths": "uniform"}),
        ("parallel.max_model_len", {"input_tokens": 2000, "output_tokens": 49}),
        ("parallel.max_model_len", {"input_tokens": 1500, "output_tokens": 100, "lengths": "uniform"}),
        ("parallel.max_model_len", {"workload": "multi_turn", "input_tokens": 500, "output_tokens": 100}),
    ],
)
def test_loads_that_cannot_be_asked(key: str, bench: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        check(**bench)
    assert error.value.key == key
