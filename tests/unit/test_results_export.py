"""Results for other tools, read back as those tools read them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from results_help import copied, measured, planned, row

from jobs.__main__ import main
from jobs.core.errors import RunError
from jobs.results.export import export, vllm_bench
from jobs.results.gather import Run, read_run


def test_the_form_of_vllm_bench(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    assert main(["export", str(folder), "--to", "vllm_bench"]) == 0
    files = sorted((folder / "export/vllm_bench").glob("*.json"))
    assert len(files) == 10, "valid rows only"
    run = read_run(folder)
    for path in files:
        held = json.loads(path.read_text())
        ours = next(one for one in run.rows if one["point"] == path.stem)
        assert held["output_throughput"] == ours["output_tok_per_s"]
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
        assert metrics.get("output_tok_per_s") == one["output_tok_per_s"]
        assert tags["valid"] == str(one["valid"]).lower()
        assert (tags["service"], tags["engine"]) == (one["service"], "vllm_ascend")
        assert tags["invalid_reason"] == (one["invalid_reason"] or "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own libraries
def test_mlflow_reads_a_run_of_each_row(tmp_path: Path) -> None:
    import mlflow  # takes as long as all the rest of this file

    run = two_rows(tmp_path / "a")
    [database] = export(run, "mlflow", None)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{database}")
    [experiment] = [one for one in client.search_experiments() if one.name == "a"]
    held = {one.info.run_name: one.data for one in client.search_runs([experiment.experiment_id])}
    check_mlflow(run, {name: (data.tags, data.params, data.metrics) for name, data in held.items()})
    export(run, "mlflow", None)
    assert len(client.search_runs([experiment.experiment_id])) == 4, "another export goes to the experiment there is"


@pytest.mark.parametrize("package", ["mlflow", "sqlalchemy"])
def test_a_missing_package_is_a_clear_error(tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    found, _ = planned(tmp_path / "a")
    with pytest.raises(RunError, match=rf"{package}.*pip install 'ascend-serving-sweep\[mlflow\]'"):
        export(read_run(found.path), "mlflow", None)
