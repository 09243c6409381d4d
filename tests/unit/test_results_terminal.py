"""The table on narrow terminals, with wide letters, and with several kinds of work."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from results_help import measured, planned, row
from rich.cells import cell_len
from rich.console import Console

from jobs.results.report import write_report
from jobs.results.table import read_table
from jobs.sweep import show


def printed(frame: pd.DataFrame, swept: tuple[str, ...], width: int) -> list[str]:
    terminal = Console(file=io.StringIO(), width=width)
    terminal.print(show.table_view(frame, swept, width))
    return [line.rstrip() for line in terminal.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.fixture
def wide(tmp_path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A table with a swept key of Chinese values."""
    found, made = planned(tmp_path / "a", "bench.concurrency=4,16", "engine.env.note='长上下文测试','短'")
    for place, point in enumerate(made.points[:3]):
        measured(found, point, 100.0 + 20 * place)
    row(found, made.points[3], invalid_reason="内存不足")
    return read_table(found), ("bench.concurrency", "engine.env.note")


@pytest.mark.parametrize("width", [40, 48, 60, 72, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(
    wide: tuple[pd.DataFrame, tuple[str, ...]], width: int
) -> None:
    lines = printed(*wide, width)
    text = "\n".join(lines)
    assert max(cell_len(line) for line in lines) <= width
    assert "…" not in text
    assert text.count("长上下文测试") == 2
    rates = [f"{rate:.4g}" for rate in wide[0]["output_tok_per_s"].dropna()]
    assert all(rate in text for rate in rates)
    assert text.count("False") == 1


def test_wide_letters_keep_columns_aligned(wide: tuple[pd.DataFrame, tuple[str, ...]]) -> None:
    lines = printed(*wide, 200)
    rows = [line for line in lines if "vllm_ascend" in line]
    assert len({cell_len(line[: line.index("vllm_ascend")]) for line in rows}) == 1


def test_a_very_narrow_terminal_has_a_block_for_each_row(wide: tuple[pd.DataFrame, tuple[str, ...]]) -> None:
    lines = printed(*wide, 30)
    blocks = "\n".join(lines).strip("\n").split("\n\n")
    assert len(blocks) == 4
    assert blocks[0].split()[:4] == ["concurrency", "4", "note", "长上下文测试"]
    assert "ttft_ms_p50" not in blocks[3]


def test_each_kind_of_work_has_its_best(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "parallel.max_model_len=8192,32768", "bench.input_tokens=64,512")
    for point, mean in zip(made.points, (50.0, 200.0, 60.0, 300.0), strict=True):
        measured(found, point, mean)
    lines = printed(read_table(found), ("parallel.max_model_len", "bench.input_tokens"), 300)
    rows = [line.split() for line in lines if "vllm_ascend" in line]
    assert [any(cell.endswith("*") for cell in one) for one in rows] == [True, True, False, False]


def test_a_note_is_marked_in_its_row_and_stands_below(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "bench.concurrency=4,16")
    measured(found, made.points[0], 100.0, notes="the canary answered otherwise after the window")
    measured(found, made.points[1], 120.0)
    frame = read_table(found)
    rows = [line for line in printed(frame, ("bench.concurrency",), 200) if "vllm_ascend" in line]
    assert ["True*" in line for line in rows] == [True, False]
    named = f"{made.points[0].point} (bench.concurrency=4)"
    said = show.reasons_text(frame, ("bench.concurrency",))
    assert said == f"True* {named}: the canary answered otherwise after the window"


def test_a_latency_of_nothing_has_no_star(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "parallel.max_model_len=8192,16384,32768")
    for point, tpot in zip(made.points, (0.0, 5.0, 6.0), strict=True):
        measured(found, point, 100.0, tpot_ms_p50=tpot)
    rows = [line.split() for line in printed(read_table(found), ("parallel.max_model_len",), 300)]
    assert "5*" in rows[-2] or any("5*" in row for row in rows)
    assert not any("0*" in row for row in rows)


def test_simulated_rows_do_not_compete_with_measured_ones(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "engine=vllm_cpu,simulator")
    for point in made.points:
        measured(found, point, 50.0)
    swept = tuple(made.swept)
    assert "*" not in "".join(printed(read_table(found), swept, 2000))


def test_saturated_rows_have_no_star(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "parallel.max_model_len=8192,16384,32768")
    for point, mean in zip(made.points, (100.0, 110.0, 120.0), strict=True):
        measured(found, point, mean, saturated=mean == 100.0)
    rows = [line.split() for line in printed(read_table(found), ("parallel.max_model_len",), 300) if "vllm" in line]
    assert [any(cell.endswith("*") for cell in one) for one in rows] == [False, True, False]


def test_the_first_sentence_of_the_report_is_said(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "parallel.max_model_len=8192,16384")
    for point, mean in zip(made.points, (100.0, 200.0), strict=True):
        measured(found, point, mean)
    said: list[str] = []
    write_report(found, said.append)
    [sentence] = said
    assert sentence.startswith("Not decided: one window.")
