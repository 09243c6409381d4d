"""Rows under an objective: what few requests tell, searches, and limits that are swept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from results_help import latencies, measured, planned, requests
from test_search_probes import searched

from jobs.core.files import read_json, write_json, write_text
from jobs.core.load import Slo
from jobs.core.rundir import SweepDir
from jobs.measure import objective
from jobs.measure.objective import combine
from jobs.measure.records import RequestRecord, Window
from jobs.measure.saved import save
from jobs.results import slo
from jobs.results.compare import compare, text
from jobs.results.export import vllm_bench
from jobs.results.gather import read_run
from jobs.results.noise import Side
from jobs.results.report import data
from jobs.results.requests import of_row
from jobs.results.verdict import judge
from jobs.sweep.plan import Plan

LENGTHS = "parallel.max_model_len=8192,16384"


def window(ttft_s: float, count: int = 20, chunks: int = 5) -> Window:
    times = np.linspace(1 + ttft_s, 5, chunks)
    one = RequestRecord(0, 1.0, float(times[0]), 5.0, times, 8, 5)
    return Window(0.0, 10.0, 1.0, 0.5, (one,) * count, {}, 0.1, truncated=False)


def kept(measured: Window, limits: Slo) -> bool | None:
    found: bool | None = objective.told(measured, limits, saturated=False)["slo_kept"]
    return found


def test_few_requests_tell_whether_the_objective_is_kept() -> None:
    asked = Slo(ttft_ms=1000.0)
    assert kept(window(0.5), asked) is None
    assert kept(window(0.5, count=299), asked) is True
    assert kept(window(1.5), asked) is False
    assert kept(window(0.5), Slo()) is None
    assert kept(window(0.5, count=0), asked) is None
    assert kept(window(4.0, chunks=1), Slo(tpot_ms=1.0)) is None
    assert combine([{"slo_kept": True}, {"slo_kept": False}])["slo_kept"] is False
    assert combine([{"slo_kept": True}, {"slo_kept": None}])["slo_kept"] is True


def the_search(folder: Path) -> tuple[SweepDir, Plan]:
    """A sweep of two searches from 2, that found 19 and 25 with 60 requests a window."""
    found, made = planned(folder, LENGTHS, "bench.search=concurrency", "bench.concurrency=2", "bench.slo.ttft_ms=1500")
    for point, load, mean in zip(made.points, (19, 25), (100.0, 110.0), strict=True):
        each = latencies(mean, n=60)
        measured(found, point, mean, found_concurrency=load, probes=3, slo_kept=True, completed=60, ttft_ms_p99=None,
                 output_tok_per_s=load * 11e3 / float(np.mean(each)))  # fmt: skip
        requests(found, point, [*each], windows=3)
        table = pq.read_table(found.point(point.point).requests)
        numbers = np.asarray(table["window"])
        pq.write_table(table.append_column("in_row", [numbers == 2]), found.point(point.point).requests)
        lines = [
            {"kind": "probe", "concurrency": one, "request_rate": None, "in_row": one == load, "completed": 60,
             "output_tok_per_s": 1.0 * one, "ttft_ms_mean": 50.0}
            for one in (2, load, 32)
        ]  # fmt: skip
        write_text(found.point(point.point).windows, "".join(json.dumps(line) + "\n" for line in lines))
    return found, made


def test_a_search_stands_for_what_it_found(tmp_path: Path) -> None:
    found, _ = the_search(tmp_path / "a")
    run = read_run(found.path)
    verdict = judge(run)
    said = {one.id: one.values for one in verdict.sentences}
    assert verdict.winner is None, "the window at the found load is one"
    assert said["undecided"]["setting"] == "parallel.max_model_len=16384"
    assert said["under_slo"]["count"] == 2
    shown = data(run)
    [line] = shown["largest"]
    assert (line["key"], line["x"], line["y"]) == ("parallel.max_model_len", [8192, 16384], [19.0, 25.0])
    assert [row["_load"] for row in shown["rows"]] == [19, 25]


def test_a_length_of_which_nothing_is_known_is_a_gap(tmp_path: Path) -> None:
    found, made = the_search(tmp_path / "a")
    for point, told in zip(made.points, (None, False), strict=True):
        path = found.point(point.point).row
        write_json(path, read_json(path) | {"slo_kept": told})
        found.point(point.point).requests.unlink()
    run = read_run(found.path)
    assert data(run)["largest"][0]["y"] == [None, 0]
    said = {one.id: one.values for one in judge(run).sentences}
    assert said["slo_unknown"] == {"count": 1}


def test_rows_of_earlier_versions_are_judged_by_their_requests(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "bench.slo.ttft_ms=55", "bench.slo.itl_ms=6")
    for point, mean in zip(made.points, (100.0, 150.0), strict=True):
        measured(found, point, mean, ttft_ms_p99=None, completed=320)
        requests(found, point, latencies(mean, n=320, spread=0.01))
    run = read_run(found.path)
    assert [slo.kept(run, row) for row in run.rows] == [True, False]
    assert [slo.kept(run, row, {"e2el_ms_p99": 1.0}) for row in run.rows] == [False, False]


def test_each_row_has_its_own_limits(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "bench.slo.ttft_ms=100,1000", "bench.slo.itl_ms=50")
    for point in made.points:
        measured(found, point, 100.0, ttft_ms_p99=450.0, itl_ms_p99=45.0)
        requests(found, point, latencies(900.0, n=320, spread=0.01))
    run = read_run(found.path)
    said = {one.id: one.values for one in judge(run).sentences}
    assert (said["under_slo"]["count"], said["under_slo"]["of"]) == (2, 4)
    assert {one["series"]: max(one["y"]) for one in data(run)["largest"]} == {
        "ttft_ms=100.0": 0, "ttft_ms=1000.0": made.points[0].config.bench.concurrency
    }  # fmt: skip
    requests(found, made.points[1], latencies(1300.0, n=320, spread=0.01))
    said = {one.id: one.values for one in judge(read_run(found.path)).sentences}
    assert said["under_slo"]["count"] == 1, "every limit counts"


def test_only_the_window_that_the_row_shows_is_read(tmp_path: Path) -> None:
    found, _ = the_search(tmp_path / "a")
    run = read_run(found.path)
    held = of_row(run, run.rows[0])
    assert held is not None
    assert held.numbers == (2,)
    assert Side(run, (run.rows[0],), "output_tok_per_s").windows == (19.0,)
    pairs = compare(found.path, found.path, "parallel.max_model_len")
    assert {one.windows for one in pairs[0].figures if one.change} == {1}
    assert "fewer than 3 windows" in text(pairs)
    written = vllm_bench(run, run.rows[0])
    assert written["completed"] == len(written["ttfts"]) == len(written["output_lens"]) == 60
    assert (written["max_concurrency"], written["output_throughput"]) == (19, 19.0)


def test_probes_without_a_mark_are_not_pooled(tmp_path: Path) -> None:
    found, made = the_search(tmp_path / "a")
    path = found.point(made.points[0].point).requests
    pq.write_table(pq.read_table(path).drop_columns(["in_row"]), path)
    run = read_run(found.path)
    assert of_row(run, run.rows[0]) is None


async def test_a_search_marks_the_window_of_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = await searched(monkeypatch, lambda *_: False)
    [number] = point.in_row
    assert point.lines[number - 1]["load"] == point.figures["found_concurrency"] == 20
    assert [line["in_row"] for line in point.lines].count(True) == 1
    found, made = planned(tmp_path / "a")
    folder = found.point(made.points[0].point)
    save(folder, point)
    tagged = pq.read_table(folder.requests).to_pandas()
    assert set(tagged.loc[tagged["in_row"], "window"]) == {number}
    assert tagged["window"].nunique() == len(point.windows) > 3


def test_an_export_of_repeats_is_one_window(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "bench.repeats=3")
    [point] = made.points
    measured(found, point, 100.0, windows=3)
    lines = [{"kind": "repeat", "concurrency": 8, "request_rate": None, "in_row": True, "completed": 200,
              "output_tok_per_s": rate, "failed": number}
             for number, rate in enumerate((90.0, 70.0, 80.0))]  # fmt: skip
    write_text(found.point(point.point).windows, "".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(found.path)
    held = vllm_bench(run, run.rows[0])
    assert (held["output_throughput"], held["failed"], held["completed"]) == (80.0, 2, 200)
    assert len(held["ttfts"]) == 200
    assert held["total_output_tokens"] == sum(held["output_lens"]) == 2200
