"""Results for tools that people use: `vllm bench serve` JSON and MLflow."""

from __future__ import annotations

import importlib
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.core.errors import RunError
from jobs.core.files import open_append, public, write_json
from jobs.core.load import OWN_CLIENT
from jobs.results.columns import key_of, lines_in_row, load_of
from jobs.results.gather import Run
from jobs.results.requests import of_row

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]

_LATENCIES = ("ttft", "tpot", "itl", "e2el")


def export(run: Run, target: str, out: Path | None) -> list[Path]:
    """Write a sweep's results for another tool of TARGETS, by default to `export/<target>` in the run directory.

    Returns what was written.

    Raises:
        RunError: the tool's package is missing, or the directory cannot be written.
    """
    if out is None and not run.sweep.writable:
        reason = "this sweep is another user's, or cannot be written"
        raise RunError("--out", "(none)", reason, "Name a directory of yours: --out DIR.")
    return _EXPORTERS[target](run, out or run.sweep.exported(target))


def vllm_bench(run: Run, row: Row) -> dict[str, Any]:
    """Return a row under the names of the result file of `vllm bench serve` (vllm/benchmarks/serve.py).

    Latencies in ms. The single requests stand in seconds, as they do there with --save-detailed. That file is of one
    run: of a row of several windows it is the window with the median rate, all its figures and requests.
    """
    window = run.value(row, "bench.window_s")
    number, shown = _one_window(run, row)
    requests = _requests(run, row, number)
    load = {key_of(run, row): load_of(run, row)}
    found: dict[str, Any] = {
        "backend": "vllm",
        "model_id": run.value(row, "model.served_model_name") or run.value(row, "model.path"),
        "num_prompts": sum(shown.get(name) or 0 for name in ("completed", "failed", "truncated_requests")),
        "request_rate": load.get("bench.request_rate") or "inf",
        "max_concurrency": load.get("bench.concurrency") or run.value(row, "bench.concurrency"),
        "duration": window if run.value(row, "bench.client") == OWN_CLIENT else None,
        "completed": shown.get("completed"),
        "failed": shown.get("failed"),
        "request_throughput": shown.get("request_per_s"),
        "output_throughput": shown.get("output_tok_per_s"),
        "total_token_throughput": shown.get("total_tok_per_s"),
    }
    for name in _LATENCIES:
        for statistic, ours in (("mean", "mean"), ("median", "p50"), ("std", "std"), ("p90", "p90"), ("p99", "p99")):
            found[f"{statistic}_{name}_ms"] = shown.get(f"{name}_ms_{ours}")
    if requests is not None:
        found["total_input_tokens"] = int(requests["prompt_tokens"].sum())
        found["total_output_tokens"] = int(requests["output_tokens"].sum())
        found["ttfts"] = [value / 1e3 for value in requests["ttft_ms"]]
        found["itls"] = [[float(gap) / 1e3 for gap in gaps] for gaps in requests["itl_ms"]]
        found["output_lens"] = [int(value) for value in requests["output_tokens"].dropna()]
        found["input_lens"] = [int(value) for value in requests["prompt_tokens"].dropna()]
    return found | {"sweep_point": row["point"], "engine": row["engine"]} | {key: row[key] for key in run.swept}


def _one_window(run: Run, row: Row) -> tuple[int | None, Row]:
    """Return number and figures of the window that stands for a row; None and the row where there is no line of it."""
    lines = [
        (number, line) for number, line in lines_in_row(run, row) if isinstance(line.get("output_tok_per_s"), float)
    ]
    if not lines:
        return None, row
    middle = statistics.median_low([line["output_tok_per_s"] for _, line in lines])
    return next((number, line) for number, line in lines if line["output_tok_per_s"] == middle)


def _requests(run: Run, row: Row, number: int | None) -> pd.DataFrame | None:
    """Return the requests of this window; None: there are none, or it is not known which of several are meant."""
    found = of_row(run, row)
    if found is None or (number is None and len(found.windows) > 1):
        return None
    of_number = dict(zip(found.numbers, found.windows, strict=True))
    return found.windows[0] if number is None else of_number.get(number)


def _write_vllm_bench(run: Run, out: Path) -> list[Path]:
    paths = []
    for row in run.rows:
        if row["valid"]:
            paths.append(out / f"{row['point']}.json")
            write_json(paths[-1], vllm_bench(run, row), public())
    return paths


def figures(row: Row) -> dict[str, float]:
    """Return the figures of a row: every number that is known, without its numbers that are names."""
    names = {
        name: value for name, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {name: float(value) for name, value in names.items() if "." not in name and name not in ("schema_version",)}


def _labels(run: Run, row: Row) -> dict[str, str]:
    return {
        "run": run.name,
        "point": str(row["point"]),
        "service": str(row["service"]),
        "engine": str(row["engine"]),
        "valid": str(bool(row["valid"])).lower(),
    } | {key: str(row[key]) for key in run.swept}


def _write_mlflow(run: Run, out: Path) -> list[Path]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers
    mlflow = _package("mlflow")
    _package("sqlalchemy")  # what MLflow keeps its file with
    try:
        open_append(out / "mlflow.db", public()).close()  # SQLite would follow a link
    except OSError as error:
        raise RunError("--out", out, str(error), "Name another directory: --out DIR.") from None
    mlflow.set_tracking_uri(f"sqlite:///{(out / 'mlflow.db').resolve()}")
    if mlflow.get_experiment_by_name(run.name) is None:
        mlflow.create_experiment(run.name, artifact_location=(out / "artifacts").resolve().as_uri())
    mlflow.set_experiment(run.name)
    for row in run.rows:
        with mlflow.start_run(run_name=str(row["point"])):
            mlflow.set_tags(_labels(run, row) | {"invalid_reason": str(row["invalid_reason"] or "")})
            mlflow.log_params({key: row[key] for key in run.swept})
            mlflow.log_metrics(figures(row))
    return [out / "mlflow.db"]


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        remedy = "Install it: pip install 'ascend-serving-sweep[mlflow]'."
        raise RunError("export", name, f"the package {name} is not installed", remedy) from None


_EXPORTERS: Mapping[str, Callable[[Run, Path], list[Path]]] = {"vllm_bench": _write_vllm_bench, "mlflow": _write_mlflow}
TARGETS = tuple(_EXPORTERS)
