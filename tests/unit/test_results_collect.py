"""One table of many sweeps: whole and half-written ones, of all versions, in every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from results_help import RECORDED, copied, measured, planned, row

from jobs.__main__ import main
from jobs.core.files import read_json, write_json
from jobs.core.rundir import SweepDir
from jobs.core.sweep_settings import Launch
from jobs.results.gather import collect, read_run, read_runs
from jobs.results.report import data
from jobs.results.row import SCHEMA_VERSION, price
from jobs.results.table import FORMATS, PENDING, read_table, render
from jobs.sweep import reuse


def test_sweeps_of_different_keys_share_one_table(tmp_path: Path) -> None:
    one, first = planned(tmp_path / "one", "bench.concurrency=1,4")
    two, second = planned(tmp_path / "two", "bench.concurrency=8", "parallel.max_model_len=8192,32768")
    measured(one, first.points[0], 100.0)
    measured(two, second.points[1], 100.0)
    runs, skipped = read_runs([one.path, two.path, one.path])
    table = collect(runs)
    assert not skipped
    assert list(table["run"]) == ["one", "one", "two", "two"]
    # What is fixed in a sweep stands in the other's column with its value.
    assert list(table["bench.concurrency"]) == [1, 4, 8, 8]
    assert list(table["parallel.max_model_len"]) == [8192, 8192, 8192, 32768]
    assert list(table["valid"]) == [True, False, False, True]
    assert set(table["owner"]) == {tmp_path.owner()}
    assert table["schema_version"].eq(SCHEMA_VERSION).all()


def test_two_sweeps_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [planned(tmp_path / user / "sweep")[0].path for user in ("a", "b")]
    table = collect(read_runs(paths)[0])
    assert list(table["run"]) == [str(path.resolve()) for path in paths]


def test_what_is_half_written_is_said_and_nothing_is_dropped(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "half", "bench.concurrency=1,2,4,8")
    measured(found, made.points[0], 50.0)
    for point, content in zip(made.points[1:3], ('{"valid": tr', "[1]"), strict=True):
        found.point(point.point).row.write_text(content)
    found.point(made.points[0].point).config.unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/plan.json").write_text('{"points": 3}')
    runs, skipped = read_runs([found.path, tmp_path / "empty", tmp_path / "torn", tmp_path / "none"])
    table = collect(runs)
    reasons = list(table["invalid_reason"].astype(object).where(table["invalid_reason"].notna(), None))
    assert reasons[0] is None
    assert reasons[1].startswith("its row cannot be read: ")
    assert reasons[2:] == ["its row cannot be read: it is not a row", PENDING]
    assert set(table["engine"]) == {"vllm_ascend"}
    what = [Path(one.what).name for one in skipped]
    assert what == ["config.yaml", "row.json", "row.json", "empty", "torn", "none"]
    assert all(one.reason for one in skipped)


def test_a_plan_that_cannot_be_opened_is_skipped_with_the_systems_words(tmp_path: Path) -> None:
    (tmp_path / "closed/plan.json").mkdir(parents=True)
    runs, [one] = read_runs([tmp_path / "closed"])
    assert not runs
    assert "Is a directory" in one.reason


def test_rows_of_older_and_newer_versions(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "old", "bench.concurrency=1,2")
    for point in made.points:
        measured(found, point, 50.0)
    bare = found.point(made.points[0].point).row
    write_json(bare, {"valid": True})
    assert data(read_run(found.path))["plan"]["valid"] == 2, "a row of another version may lack columns"
    measured(found, made.points[0], 50.0)
    old, new = (read_json(found.point(point.point).row) for point in made.points)
    del old["price_per_m_output_tok"]
    write_json(found.point(made.points[0].point).row, old)
    write_json(found.point(made.points[1].point).row, new | {"schema_version": 99, "joules": 7})
    table = collect([read_run(found.path)])
    assert list(table["schema_version"]) == [SCHEMA_VERSION, 99]
    assert table.columns[-1] == "joules"
    assert list(table["joules"].astype(object))[1] == 7
    assert list(read_table(found)["schema_version"]) == [SCHEMA_VERSION, 99]


def test_rows_of_an_older_version_are_refused_with_the_version_that_wrote_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, made = planned(tmp_path / "old", "bench.concurrency=1,2")
    for point in made.points:
        measured(found, point, 50.0)
        path = found.point(point.point).row
        write_json(path, read_json(path) | {"schema_version": SCHEMA_VERSION - 1})
    write_json(found.provenance, {"packages": {"ascend-serving-sweep": "0.1.0"}, "commit": "abcdef0123456789"})
    where = str(found.path)
    for command in ("collect", "report", "compare", "table", "resume"):
        assert main([command, where, where] if command == "compare" else [command, where]) == 1
        [line] = [one for one in capsys.readouterr().err.splitlines() if one]
        assert "written by version 0.1.0 of the tool (commit abcdef0123)" in line, command
    past = reuse.find(made.points, [tmp_path])
    [line] = reuse.offer_text(past, taken=True)
    assert "version 0.1.0 of the tool" in line
    assert not reuse.taken(past, Launch(reuse=True))
    assert len(list((found.path / "points").glob("*/row.json"))) == 2, "nothing was changed"


def test_the_price_of_tokens(tmp_path: Path) -> None:
    # Two nodes at 36 an hour are 0.02 a second; at 10 tokens a second a million takes 100,000 s.
    assert price(36.0, 2, 10.0) == pytest.approx(2000.0)
    assert [price(None, 2, 10.0), price(36.0, None, 10.0), price(36.0, 2, 0.0)] == [None] * 3
    found, made = planned(tmp_path / "priced", "results.price_node_hour=36.0")
    row(found, made.points[0], output_tok_per_s=10.0)
    assert list(read_table(found)["price_per_m_output_tok"]) == [pytest.approx(2000.0)]


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_holds_every_row(form: str, tmp_path: Path, capfdbinary: Any) -> None:
    out = tmp_path / f"all.{form}"
    assert main(["collect", str(RECORDED), "--format", form, "--out", str(out)]) == 0
    assert main(["collect", str(RECORDED), "--format", form]) == 0
    assert capfdbinary.readouterr().out == out.read_bytes()
    points = {point["point"] for point in read_json(RECORDED / "plan.json")["points"]}
    if form == "parquet":
        assert set(pd.read_parquet(out)["point"]) == points
    elif form == "json":
        assert {one["point"] for one in json.loads(out.read_text())} == points
    else:
        assert all(point in out.read_text() for point in points)


def test_words_of_an_engine_are_no_markup(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "x")
    row(found, made.points[0], invalid_reason="<script>alert(1)</script> & more")
    page = render(read_table(found), "html").decode()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    with pytest.raises(ValueError, match="xml is none of csv"):
        render(read_table(found), "xml")


def test_collect_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", str(RECORDED), str(tmp_path / "none"), "--json"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == len(read_json(RECORDED / "plan.json")["points"])
    assert f"skipped {tmp_path / 'none'}: " in said.err
    assert main(["collect", str(RECORDED)]) == 0
    assert "vllm_cpu" in capsys.readouterr().out
    assert main(["collect", str(tmp_path / "none")]) == 1


def test_table_in_a_form(tmp_path: Path, capfdbinary: Any) -> None:
    folder = copied(tmp_path)
    assert main(["table", str(folder), "--format", "csv"]) == 1, "some rows are invalid"
    assert capfdbinary.readouterr().out == SweepDir(folder).table("csv").read_bytes()
