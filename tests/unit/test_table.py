"""The sweep table in its files, and what people see of it."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from results_help import planned as made
from rich.console import Console

from jobs.core.files import write_json
from jobs.core.rundir import SweepDir
from jobs.results.row import FIGURES, columns, make_row, tokens_text
from jobs.results.table import PENDING, markdown, read_table, text, write_table
from jobs.sweep import plan, services_text, show
from jobs.sweep.points import Point

ISSUE = [
    "engine", "release", "valid", "invalid_reason", "completed", "failed", "ttft_ms_p50", "output_tok_per_s",
    "tok_per_s_per_user", "engine_tokens", "kv_cache_tokens", "queue_s", "load_s", "warmup_s", "measure_s",
    "teardown_s", "nodes", "job_id", "attempt",
]  # fmt: skip
"""The columns after point, service and the swept keys, without those with dots."""


def result(folder: SweepDir, point: Point, **known: Any) -> None:
    row = make_row(point.point, point.service, point.config, **known)
    write_json(folder.point(point.point).row, row)


def measured(folder: SweepDir, point: Point, rate: float, **known: Any) -> None:
    figures = {
        "completed": 40,
        "failed": 0,
        "ttft_ms_p50": 1000 / rate,
        "output_tok_per_s": rate,
        "tok_per_s_per_user": 4.25,
    }
    service = {"engine_tokens": tokens_text({"0": 5, "1": 7}), "nodes": 2, "job_id": "77", "attempt": 1}
    result(folder, point, **({"valid": True} | figures | service | known))


def test_columns_are_those_of_the_issue_in_its_order() -> None:
    swept = ("parallel.max_model_len", "bench.concurrency")
    names = columns(swept)
    assert names[:4] == ["point", "service", *swept]
    assert [name for name in names[4:] if name in ISSUE] == ISSUE
    assert len(set(names)) == len(names)
    for figure in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "std", "p50", "p90", "p99"):
            assert f"{figure}_ms_{statistic}" in FIGURES


def test_a_point_without_a_result_is_a_row_too(tmp_path: Path) -> None:
    folder, planned = made(tmp_path, "parallel.max_model_len=8192,32768", "bench.concurrency=1,4")
    one, two, three, _ = planned.points
    measured(folder, one, 10.0, kv_cache_tokens=1000)
    measured(folder, three, 20.0, kv_cache_tokens=4000)
    result(folder, two, invalid_reason="rank 1 (headless): NPU out of memory", completed=0, failed=3)
    table = write_table(folder)
    assert list(table["point"]) == [point.point for point in planned.points]
    assert list(table["parallel.max_model_len"]) == [8192, 8192, 32768, 32768]
    assert list(table["bench.concurrency"]) == [1, 4, 1, 4]
    assert list(table["valid"]) == [True, False, True, False]
    assert [text(reason) for reason in table["invalid_reason"]] == [
        "", "rank 1 (headless): NPU out of memory", "", PENDING,
    ]  # fmt: skip
    assert set(table["engine"]) == {"vllm_ascend"}
    # A figure that is whole stays whole beside rows that have none.
    assert folder.table("csv").read_text().splitlines()[1].split(",").count("1000") == 1


def test_a_pending_row_needs_the_plan_alone(tmp_path: Path) -> None:
    """Rank 0 writes the table after every point: a config of each of a thousand pending ones is too much to read."""
    folder, planned = made(tmp_path, "parallel.max_model_len=8192,32768", "engine.release=0.13.0")
    for point in planned.points:
        folder.point(point.point).config.unlink()
    table = read_table(folder)
    assert list(table["service"]) == [point.service for point in planned.points]
    assert set(table["engine"]) == {"vllm_ascend"}
    assert set(table["release"]) == {"0.13.0"}
    assert set(table["invalid_reason"]) == {PENDING}


def test_csv_parquet_and_markdown_agree(tmp_path: Path) -> None:
    folder, planned = made(tmp_path, "bench.concurrency=1,4,null", "bench.request_rate=0.5")
    measured(folder, planned.points[0], 12345.678, load_s=1.25)
    result(folder, planned.points[1], invalid_reason='a | b\nsecond, "line"')
    table = write_table(folder)
    csv = pd.read_csv(folder.table("csv"), dtype={"job_id": "str", "point": "str", "service": "str"})
    parquet = pd.read_parquet(folder.table("parquet"))
    assert list(csv.columns) == list(parquet.columns) == list(table.columns)
    for name in table.columns:
        for one, two, three in zip(table[name], csv[name], parquet[name], strict=True):
            known = [text(value) for value in (one, two, three)]
            assert known[0] == known[1] == known[2], name
    header, rule, *rows = folder.table("md").read_text().splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(table.columns)
    assert set(rule) == {"|", "-"}
    assert len(rows) == 3
    assert len({len(line) for line in (header, rule, *rows)}) == 1, "columns are aligned"
    for line, (_, row) in zip(rows, table.iterrows(), strict=True):
        assert [cell.strip() for cell in line.strip("|").split("|")] == [text(value) for value in row]
    assert list(table["bench.concurrency"].astype(object).map(text)) == ["1", "4", ""]


@pytest.mark.parametrize(
    ("override", "cells"),
    [
        ("parallel.data_parallel_size_local=1,[1,1]", ["1", "[1, 1]"]),
        ("engine.env.A=1,foo,null", ["1", "foo", ""]),
        ("engine.args.x=true,8", ["true", "8"]),
        ("engine.args.x=false,true", ["False", "True"]),
        ("engine.args.x=0.5,2", ["0.5", "2"]),
        ("engine.args.x={a:1},[b]", ['{"a": 1}', '["b"]']),
        ("parallel.max_num_seqs=8,null", ["8", ""]),
    ],
)
def test_values_of_different_kinds_can_be_swept(tmp_path: Path, override: str, cells: list[str]) -> None:
    folder, _ = made(tmp_path, "engine.name=vllm_cpu", override)  # the flags of this engine are not known here
    write_table(folder)
    key = override.partition("=")[0]
    assert [text(value) for value in pd.read_parquet(folder.table("parquet"))[key]] == cells


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        (math.nan, ""),
        (pd.NA, ""),
        (0.0, "0"),
        (0.123456, "0.1235"),
        (12.3456, "12.35"),
        (999.96, "1000"),
        (123456.7, "123457"),
        (1234567, "1234567"),
        ("a|b\nc", "a/b c"),
        (True, "True"),
    ],
)
def test_one_cell_for_people(value: Any, cell: str) -> None:
    assert text(value) == cell


def test_an_unknown_column_is_a_mistake_of_ours(tmp_path: Path) -> None:
    _, planned = made(tmp_path)
    [point] = planned.points
    with pytest.raises(KeyError, match="ttft_s"):
        make_row(point.point, point.service, point.config, ttft_s=1)
    assert make_row(point.point, point.service, point.config)["valid"] is False


def test_tokens_of_each_engine_stand_in_one_cell() -> None:
    assert json.loads(tokens_text({"0": 3, "1": 4}) or "") == {"0": 3, "1": 4}
    assert tokens_text({}) is None


def test_markdown_of_one_column() -> None:
    assert markdown(pd.DataFrame({"a": ["xyz", "b"]})) == "| a   |\n|-----|\n| xyz |\n| b   |\n"


# --- for people


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    folder, planned = made(tmp_path, "bench.concurrency=1,4,16", "engine.env.A='[red]'")
    measured(folder, planned.points[0], 10.0)
    measured(folder, planned.points[1], 20.0)
    result(folder, planned.points[2], invalid_reason="[/x] :smile: lost", output_tok_per_s=99.0)
    return read_table(folder)


def printed(frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    """Return the lines of the header and of the rows."""
    show.console().print(show.table_view(frame, ("bench.concurrency",)))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    [rule] = [n for n, line in enumerate(lines) if set(line.strip()) == {"─"}]
    return lines[:rule], lines[rule + 1 :]


def test_the_terminal_table_is_aligned_and_has_no_colour_codes_in_a_file(
    frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    header, rows = printed(frame, capsys)
    assert [line.split()[0] for line in header] == ["bench.", "concurrency"]
    assert len(rows) == 3
    assert "\x1b" not in "".join([*header, *rows])
    # Right-aligned figures end where their header ends, left-aligned words begin where it begins.
    for name, cells in (
        ("p50", ["100", "50*", ""]),
        ("completed", ["40", "40", ""]),
        (" tok_per_s ", ["10", "20*", "99"]),
    ):
        end = header[-1].index(name) + len(name.rstrip())
        assert [row[:end].split(" ")[-1] for row in rows] == cells
    start = header[-1].index("valid")
    assert [row[start:].split()[0] for row in rows] == ["True", "True", "False"]
    assert [row.split()[0] for row in rows] == ["1", "4", "16"]


def test_the_best_valid_value_is_marked_and_an_invalid_one_never(
    frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    _, (one, two, three) = printed(frame, capsys)
    assert "20*" in two.split()  # most output tokens; 99 is invalid
    assert "50*" in two.split()  # least time to the first token
    assert "10*" not in one
    assert "*" not in three
    # Where both are equal both are the best.
    assert "4.25*" in one
    assert "4.25*" in two


def test_with_one_valid_row_nothing_is_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, planned = made(tmp_path, "bench.concurrency=1,4")
    measured(folder, planned.points[0], 10.0)
    assert "*" not in "".join(printed(read_table(folder), capsys)[1])


def test_colours_only_on_a_terminal(frame: pd.DataFrame) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=300)
    terminal.print(show.table_view(frame, ("bench.concurrency",)))
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"\x1b\[1;32m\s*20\*", shown)
    assert re.search(r"\x1b\[2m\s*99", shown), "invalid rows are dim"


def test_a_wide_table_is_never_cut_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = [f"engine.env.{'A' * 60}{n}" for n in range(12)]
    folder, planned = made(
        tmp_path, *(f"{name}={'x' * 40},y" if n == 0 else f"{name}=z" for n, name in enumerate(long))
    )
    show.console().print(show.table_view(read_table(folder).assign(**dict.fromkeys(long, "v" * 80)), tuple(long)))
    out = capsys.readouterr().out
    assert "…" not in out
    assert out.count("v" * 80) == len(long) * len(planned.points)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_narrow_terminal_shows_fewer_columns_and_says_which(frame: pd.DataFrame, width: int) -> None:
    terminal = Console(file=io.StringIO(), width=width)
    terminal.print(show.table_view(frame, ("bench.concurrency",), width))
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    table, _, caption = shown.partition("more in the file:")
    assert "…" not in shown
    assert all(word in table for word in ("concurrency", "engine", "valid", "vllm_ascend", "tok_per_s"))
    gone = [name for name in show.DROPPED if name in caption]
    assert bool(gone) == (width < 120)
    assert gone == [name for name in show.DROPPED if frame[name].notna().any()][: len(gone)]


def test_columns_that_hold_nothing_are_left_out(frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    header, _ = printed(frame, capsys)
    assert "load_s" not in header[-1]
    assert "tpot" not in header[0]


def test_reasons_are_shown_word_for_word(frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    show.console().print(show.reasons_text(frame, ()))
    line = capsys.readouterr().out.strip()
    assert line == f"invalid {frame['point'][2]}: [/x] :smile: lost"
    assert show.reasons_text(frame[frame["valid"]], ()) == ""


def test_the_plan_in_words(tmp_path: Path) -> None:
    _, planned = made(tmp_path, "parallel.max_model_len=8192,16384", "bench.concurrency=1,4")
    lines = show.plan_text(planned).splitlines()
    assert lines[0].startswith("4 points in 2 services (engine starts) in 1 allocation, about ")
    assert lines[1].startswith("  allocation 0: 2 services on 2 nodes, about ")
    first = planned.points[2]  # the longer context is the first to fail
    assert lines[2].startswith(f"    service {first.service}  parallel.max_model_len=16384  load ")
    assert lines[3] == f"      point {first.point}  bench.concurrency=1"
    assert [line.split()[0] for line in lines[2:8]] == ["service", "point", "point"] * 2
    assert lines[8].startswith("predicted (queue apart): load ")
    assert len(lines) == 9


def test_a_service_has_one_line_by_the_names_of_presets_which_narrow_terminals_fold(tmp_path: Path) -> None:
    _, planned = made(tmp_path, "parallel=dp2_tp8,dp4_tp4", "bench.concurrency=1,4")
    lines = [line for line in show.plan_text(planned).splitlines() if line.startswith("    service")]
    assert sorted(line.split()[2] for line in lines) == ["dp2_tp8", "dp4_tp4"]
    assert "None" not in show.plan_text(planned)
    narrow = services_text.folded(show.plan_text(planned), 44).splitlines()
    folded = [line for line in narrow if line.startswith(("    service", "        "))]
    assert len(folded) > 2 and all(len(line) <= 44 for line in folded)


@pytest.mark.parametrize(("seconds", "words"), [(90.4, "90 s"), (119.0, "119 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations(seconds: float, words: str, tmp_path: Path) -> None:
    one = plan.Plan((), (), (plan.Allocation((), 2, seconds),), ())
    assert show.plan_text(one).endswith(f"about {words}")
