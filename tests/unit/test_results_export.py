"""Results for other tools, read back as those tools read them."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from results_help import copied, measured, planned, row
from trackers import FakeMlflow, FakeWandb, WandbRun

from jobs.__main__ import main
from jobs.core.errors import RunError
from jobs.results.export import export, prometheus, vllm_bench
from jobs.results.gather import Run, read_run

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


def two_rows(folder: Path) -> Run:
    """Return a sweep of a valid row, and of one that is not."""
    found, made = planned(folder, "bench.concurrency=1,4")
    measured(found, made.points[0], 100.0)
    row(found, made.points[1], invalid_reason="lost", completed=0)
    return read_run(found.path)


def check_mlflow(run: Run, held: dict[str, tuple[dict[str, str], dict[str, str], dict[str, float]]]) -> None:
    """Compare runs (tags, parameters, metrics) with the rows, by point."""
    assert held.keys() == {one["point"] for one in run.rows}
    for one in run.rows:
        tags, params, metrics = held[one["point"]]
        assert params == {"bench.concurrency": str(one["bench.concurrency"])}
        assert metrics["completed"] == one["completed"]
        assert metrics.get("output_tok_s") == one["output_tok_s"]
        assert tags["valid"] == str(one["valid"]).lower()
        assert (tags["service"], tags["engine"]) == (one["service"], "vllm_ascend")
        assert tags["invalid_reason"] == (one["invalid_reason"] or "")


def test_mlflow_gets_a_run_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, run = FakeMlflow(), two_rows(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    assert export(run, "mlflow", None) == [run.sweep.exported("mlflow") / "mlflow.db"]
    assert fake.uri == f"sqlite:///{run.sweep.exported('mlflow').resolve()}/mlflow.db"
    assert fake.experiments == {"a": (run.sweep.exported("mlflow") / "artifacts").resolve().as_uri()}
    assert {one.status for one in fake.runs["a"]} == {"FINISHED"}
    check_mlflow(run, {one.run_name: (one.tags, one.params, one.metrics) for one in fake.runs["a"]})
    export(run, "mlflow", None)
    assert len(fake.runs["a"]) == 4, "another export goes to the experiment that there is"


def test_the_real_mlflow_reads_it_back(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install '.[mlflow]'")
    run = two_rows(tmp_path / "a")
    [database] = export(run, "mlflow", None)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{database}")
    [experiment] = [one for one in client.search_experiments() if one.name == "a"]
    held = {one.info.run_name: one.data for one in client.search_runs([experiment.experiment_id])}
    check_mlflow(run, {name: (data.tags, data.params, data.metrics) for name, data in held.items()})


def test_wandb_gets_an_offline_run_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, run = FakeWandb(), two_rows(tmp_path / "a sweep: odd/name #1")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    written = export(run, "wandb", None)
    assert [path.parent for path in written] == [run.sweep.exported("wandb") / "wandb"] * 2
    for one, held in zip(run.rows, fake.runs, strict=True):
        assert (held.name, held.exit_code) == (one["point"], 0 if one["valid"] else 1)
        assert held.config["bench"]["concurrency"] == one["bench.concurrency"]
        [logged] = held.history
        assert logged["completed"] == one["completed"]
        assert logged.get("output_tok_s") == one["output_tok_s"]
        assert held.summary == {"valid": one["valid"], "invalid_reason": one["invalid_reason"]}


def test_the_real_wandb_writes_its_files_and_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install '.[wandb]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = two_rows(tmp_path / "a")
    written = export(run, "wandb", None)
    assert len(written) == 2
    for one, path in zip(run.rows, written, strict=True):
        [record] = path.glob("run-*.wandb")
        assert one["point"].encode() in record.read_bytes()


@pytest.mark.parametrize(
    ("package", "fake", "names"),
    [
        ("mlflow", FakeMlflow, [name for name in vars(FakeMlflow) if not name.startswith("_")]),
        ("wandb", FakeWandb, ["init"]),
        ("wandb.sdk.wandb_run:Run", WandbRun, ["log", "finish"]),
    ],
    ids=["mlflow", "wandb", "run"],
)
def test_the_stand_ins_take_nothing_that_the_real_ones_do_not(package: str, fake: Any, names: list[str]) -> None:
    module, _, inside = package.partition(":")
    real = pytest.importorskip(module)
    real = getattr(real, inside) if inside else real
    for name in names:
        taken = set(inspect.signature(getattr(fake, name)).parameters) - {"self"}
        assert taken <= set(inspect.signature(getattr(real, name)).parameters), name


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_missing_package_is_a_clear_error(tmp_path: Path, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    found, _ = planned(tmp_path / "a")
    with pytest.raises(RunError, match=rf"pip install 'ascend-serving-sweep\[{package}\]'"):
        export(read_run(found.path), package, None)
