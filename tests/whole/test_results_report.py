"""The data of the report (golden), and that its page is one whole file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from core_help import check_golden_figures
from results_help import RECORDED, copied, measured, planned, row

from jobs.__main__ import main
from jobs.core import chinese
from jobs.core.files import read_json, write_json, write_text
from jobs.core.rundir import SweepDir
from jobs.diagnose import explain
from jobs.results import page
from jobs.results.gather import read_run
from jobs.results.report import data, write_report
from jobs.results.sections import time_by_phase

FAILED = """\
(Worker_TP3 pid=7) ERROR 11-24 10:00:08 [mp.py:9] WorkerProc failed to start.
(Worker_TP3 pid=7) ERROR 11-24 10:00:08 [mp.py:9] KeyError: 'model.layers.3.mlp.experts.7.gate_proj.weight'
"""
FOLLOWS = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"


def test_the_data_of_the_recorded_sweep(tmp_path: Path) -> None:
    found = data(read_run(RECORDED))
    # The config and command lines of the run stand in the fixture already; the rows are its row files.
    found["provenance"] = {key: value for key, value in found["provenance"].items() if key not in ("config", "ranks")}
    found["rows"] = [
        {key: value for key, value in one.items() if key.startswith("_") or key in ("point", "valid")}
        for one in found["rows"]
    ]
    check_golden_figures("report_vllm_cpu.json", found, tmp_path)


def test_the_page_is_one_file_that_asks_no_network(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    text = write_report(SweepDir(folder)).read_text()
    ours = text.replace((page.FOLDER / "plotly-basic.min.js").read_text(), "")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", ours)
    assert "http" not in re.sub(r'<script type="application/json".*?</script>', "", ours, flags=re.S)
    assert "{{" not in ours
    assert text.count("</script>") == len(page.SCRIPTS) + 2
    held = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert held
    assert json.loads(held.group(1)) == json.loads(json.dumps(data(read_run(folder))))


def test_words_of_a_run_cannot_break_the_page(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a<b><script>x")
    evil = "</script><script>alert('{{SCRIPTS}}')</script> \u2028"
    row(found, made.points[0], invalid_reason=evil)
    text = page.render(data(read_run(found.path)))
    assert text.count("</script>") == len(page.SCRIPTS) + 2
    assert "<title>a&lt;b&gt;&lt;script&gt;x</title>" in text
    held = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert held
    assert json.loads(held.group(1))["failures"][0]["reason"] == evil.replace("\u2028", "\\u2028")


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from leaves(child)
    else:
        yield value


@pytest.mark.parametrize("torn", ["service.json", "outcome.json", "effective.json", "state.jsonl", "row.json"])
@pytest.mark.parametrize("content", [None, "[1, 2]", '{"load_s":'])
def test_a_half_written_run_still_has_a_report(tmp_path: Path, torn: str, content: str | None) -> None:
    folder = copied(tmp_path)
    for path in folder.rglob(torn):
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
    found = data(read_run(folder))
    assert len(found["rows"]) == 15
    assert page.render(found)


def test_time_goes_to_phases_and_the_rest_is_between_them(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "bench.concurrency=1,4")
    measured(found, made.points[0], 50.0, warmup_s=10.0, measure_s=60.0)
    measured(found, made.points[1], 50.0, warmup_s=10.0, measure_s=60.0, reused_from="elsewhere")
    service = found.service(made.points[0].service, 1)
    write_json(service.record, {"load_s": 100.0, "teardown_s": 5.0, "nodes": 2, "job_id": "7", "queue_s": 30.0})
    job = found.allocation(0, 1)
    write_json(job.job, {"job_id": 7, "submitted": 1000.0, "nodes": 2})
    write_json(job.outcome, {"time": 1230.0})
    time = time_by_phase(read_run(found.path))
    hours = {one["phase"]: one["node_hours"] * 3600 for one in time["phases"]}
    # 200 s were held by two nodes; a row that was taken over from another sweep cost nothing here.
    assert hours == pytest.approx(
        {"load_s": 200, "failed_start_s": 0, "warmup_s": 20, "measure_s": 120, "teardown_s": 10, "other_s": 50}
    )
    assert time["node_hours"] * 3600 == pytest.approx(400)
    assert time["queue_s"] == 30
    assert time["useful_share"] == pytest.approx(0.3)
    assert sum(one["share"] for one in time["phases"]) == pytest.approx(1)


def test_simulated_series_say_so(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "engine=vllm_cpu,simulator", "bench.input_tokens=64,128")
    for point in made.points:
        measured(found, point, 50.0)
    shown = data(read_run(found.path))
    for one in shown["rows"]:
        assert ("(simulator)" in one["_series"]) == (one["engine"] == "simulator")
    assert {"(simulator)" in one["series"] for one in shown["curves"]} == {True, False}


def test_predicted_memory_stands_beside_the_measured_one(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    for path in folder.rglob("service.json"):
        write_json(path, read_json(path) | {"predicted_kv_tokens": 1000})
    found = data(read_run(folder))["memory"]
    assert len(found) == 3
    assert {one["predicted"] for one in found} == {1000}
    assert sum(one["measured"] is not None for one in found) == 2


def test_nothing_in_the_data_is_no_number(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a")
    measured(found, made.points[0], 50.0, ttft_ms_p50=float("nan"))
    assert all(value == value for value in leaves(data(read_run(found.path))))


def test_report_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(tmp_path)
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"report: {folder / 'report.html'}" in said
    assert "5 of 15 rows are not valid" in said
    assert main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["valid"] == 10


def test_a_failure_is_said_in_one_text_wherever_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The row, the table of failures, the page of both languages and `diagnose` quote one diagnosis."""
    found, made = planned(tmp_path / "a", "bench.concurrency=1,4")
    point = made.points[0]
    folder = found.service(point.service, 1)
    for rank, text in enumerate((FOLLOWS, FAILED)):
        folder.rank(rank).path.mkdir(parents=True)
        folder.rank(rank).log.write_text(text)
    diagnosis, reason = explain(folder, "rank 1 (headless): engine exited with code 1: see its log")
    write_text(folder.diagnosis, diagnosis.text() + "\n")
    for one in made.points:
        row(found, one, invalid_reason=reason)
    assert reason == diagnosis.summary()
    told = data(read_run(found.path))
    assert {one["invalid_reason"] for one in told["rows"]} == {reason}
    (failure,) = told["failures"]
    assert (failure["reason"], failure["diagnosis"]) == (reason, diagnosis.text() + "\n")
    assert main(["diagnose", str(folder.path)]) == 0
    assert diagnosis.text() in capsys.readouterr().out
    shown = page.render(told)
    assert (
        shown.count(json.dumps(reason)[1:-1]) == len(told["rows"]) + 2
    )  # once a row, among the failures and in Chinese
    head = chinese.diagnosis(diagnosis.text()).split("\n")[0]
    assert told["zh"][reason].startswith(head.removesuffix(")")) and head != diagnosis.text().split("\n")[0]
    assert not [text for texts in page.words().values() for text in texts.values() if diagnosis.cause in text]
