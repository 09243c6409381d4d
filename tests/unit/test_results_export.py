"""Results for other tools, read back as those tools read them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from results_help import copied, measured, planned, row

from jobs.__main__ import main
from jobs.errors import RunError
from jobs.results.export import export, prometheus, vllm_bench
from jobs.results.gather import read_run

SAMPLE = re.compile(
    r'(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)\{(?P<labels>(?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (?P<value>\S+)'
)
"""A sample with labels by the text format 0.0.4."""


def test_prometheus_text(tmp_path: Path) -> None:
    found, made = planned(tmp_path / 'a"b\\', "bench.concurrency=1,4")
    measured(found, made.points[0], 100.0)
    row(found, made.points[1], invalid_reason="lost", completed=0)
    text = prometheus(read_run(found.path))
    assert text.endswith("\n")
    seen: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in seen, "one TYPE line a metric"
            seen.add(name)
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert match["name"] == name, "samples of a metric stand together"
        float(match["value"])
    rates = [line for line in text.splitlines() if line.startswith("sweep_output_tok_s{")]
    assert len(rates) == 1
    assert 'bench_concurrency="1"' in rates[0]
    assert 'run="a\\"b\\\\"' in rates[0]
    assert 'valid="false",bench_concurrency="4"} 0.0' in text


def test_the_form_of_vllm_bench(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    assert main(["export", str(folder), "--to", "vllm_bench"]) == 0
    files = sorted((folder / "export/vllm_bench").glob("*.json"))
    assert len(files) == 10, "valid rows only"
    run = read_run(folder)
    for path in files:
        held = json.loads(path.read_text())
        ours = next(one for one in run.rows if one["point"] == path.stem)
        assert held["output_throughput"] == ours["output_tok_s"]
        assert held["median_ttft_ms"] == ours["ttft_ms_p50"]
        assert held["completed"] == len(held["ttfts"]) == len(held["itls"]) == len(held["output_lens"])
        assert held["total_output_tokens"] == sum(held["output_lens"]) == 16 * held["completed"]
        assert held["max_concurrency"] == 4
        assert held["request_rate"] == "inf"
        assert sum(held["ttfts"]) / len(held["ttfts"]) * 1e3 == pytest.approx(held["mean_ttft_ms"])


def test_a_row_without_records_has_its_figures(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a")
    measured(found, made.points[0], 100.0)
    found.point(made.points[0].point).requests.unlink()
    run = read_run(found.path)
    held = vllm_bench(run, run.rows[0])
    assert held["mean_e2el_ms"] == pytest.approx(100, abs=2)
    assert "ttfts" not in held


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_missing_package_is_a_clear_error(tmp_path: Path, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    found, _ = planned(tmp_path / "a")
    with pytest.raises(RunError, match=rf"pip install 'ascend-serving-sweep\[{package}\]'"):
        export(read_run(found.path), package, None)
