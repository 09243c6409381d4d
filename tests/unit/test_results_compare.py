"""Comparisons: what is paired, what is refused, and what is said of a difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from results_help import RECORDED, measured, planned

from jobs.__main__ import main
from jobs.core.errors import ConfigError, RunError
from jobs.core.files import read_json
from jobs.results.compare import compare, text

LENGTHS = "parallel.max_model_len=8192,32768"


def figure(found: list, column: str = "output_tok_per_s", pair: int = 0):  # type: ignore[no-untyped-def, type-arg]
    return next(one for one in found[pair].figures if one.column == column)


def test_pairs_are_equal_in_all_but_the_key(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "bench.concurrency=1,4")
    for point, mean in zip(made.points, (100.0, 200.0, 120.0, 200.0), strict=True):
        measured(found, point, mean, windows=3)
    pairs = compare(found.path, found.path, "parallel.max_model_len")
    one, two, three, four = (point.point for point in made.points)
    assert [(pair.a, pair.b) for pair in pairs] == [(f"a/{one}", f"a/{three}"), (f"a/{two}", f"a/{four}")]
    assert all(dict(pair.differs) == {"parallel.max_model_len": (8192, 32768)} for pair in pairs)
    slower = figure(pairs)
    assert slower.verdict == "behind", "of one start a side"
    assert slower.change is not None
    assert slower.change.low < 100 / 120 - 1 < slower.change.high
    assert figure(pairs, "e2el_ms_mean").verdict == "behind"
    # The same latencies again: nothing can be seen, and what could have been is said.
    same = figure(pairs, pair=1)
    assert same.verdict == "none"
    assert same.least is not None
    assert 0 < same.least < 0.05
    assert "no difference seen" in text(pairs)
    assert "would have been seen" in text(pairs)


def test_two_sweeps_are_paired_by_what_they_swept(tmp_path: Path) -> None:
    (one, first), (two, second) = (
        planned(tmp_path / name, "bench.concurrency=1,4", f"hccl.buffsize={size}")
        for name, size in (("a", 512), ("b", 1024))
    )
    for found, made in ((one, first), (two, second)):
        for point in made.points:
            measured(found, point, 100.0)
    pairs = compare(one.path, two.path)
    assert [dict(pair.differs) for pair in pairs] == [{"hccl.buffsize": (512, 1024)}] * 2
    point = two.point(second.points[0].point).path
    [pair] = compare(one.point(first.points[1].point).path, point)
    assert dict(pair.differs) == {"bench.concurrency": (4, 1), "hccl.buffsize": (512, 1024)}


@pytest.mark.parametrize(
    "override", ["bench.input_tokens=10,20", "bench.endpoint=chat,completions", "engine=vllm_cpu,simulator"]
)
def test_different_work_is_refused(tmp_path: Path, override: str) -> None:
    found, made = planned(tmp_path / "a", override, "parallel.max_model_len=8192")
    for point in made.points:
        measured(found, point, 100.0)
    one, two = (found.point(point.point).path for point in made.points)
    with pytest.raises(ConfigError, match="did different work"):
        compare(one, two)
    assert len(compare(one, two, anyway=True)) == 1


def test_longer_windows_and_another_root_are_the_same_work(tmp_path: Path) -> None:
    one, first = planned(tmp_path / "a", "bench.window_s=30.0")
    two, second = planned(tmp_path / "b", "bench.window_s=60.0", "bench.repeats=5", "results.root=elsewhere")
    measured(one, first.points[0], 100.0)
    measured(two, second.points[0], 100.0)
    [pair] = compare(one.path, two.path)
    assert not pair.differs


@pytest.mark.parametrize("windows", [1, 2])
def test_too_few_windows_decide_nothing(tmp_path: Path, windows: int) -> None:
    found, made = planned(tmp_path / "a", LENGTHS)
    for point, mean in zip(made.points, (100.0, 150.0), strict=True):
        measured(found, point, mean, windows=windows)
    pairs = compare(found.path, found.path, "parallel.max_model_len")
    assert {one.verdict for one in pairs[0].figures if one.change} == {"undecided"}
    said = text(pairs)
    assert ("not decided: one window" if windows == 1 else "not decided: 2 windows") in said
    assert "better" not in said
    assert "worse" not in said


@pytest.mark.parametrize(("again", "verdict"), [((51.0, 52.0), "worse"), ((80.0, 45.0), "none")])
def test_starts_of_the_engine_are_one_setting(tmp_path: Path, again: tuple[float, float], verdict: str) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "parallel.seed=1,2,3")
    for point, mean in zip(made.points, (50.0, *again, 60.0, 61.0, 62.0), strict=True):
        measured(found, point, mean, windows=3)
    [pair] = compare(found.path, found.path, "parallel.max_model_len")
    one = next(one for one in pair.figures if one.column == "e2el_ms_mean")
    assert (one.verdict, one.basis, one.starts) == (verdict, "starts", 3)
    assert pair.a.endswith("and 2 more starts")
    assert "3 starts a side" in text([pair])
    assert len(compare(found.path, found.path, "parallel.seed")) == 6, "unless starts are to be compared"


def test_in_an_open_loop_other_arrivals_are_refused_and_the_offered_rate_is_no_figure(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "bench.request_rate=2", "bench.seed=0,1")
    for point in made.points:
        measured(found, point, 50.0, windows=3)
    with pytest.raises(ConfigError, match="other arrivals"):
        compare(found.path, found.path, "bench.seed")
    [pair] = compare(found.path, found.path, "bench.seed", anyway=True)
    assert "output_tok_per_s" not in {one.column for one in pair.figures}
    closed, made = planned(tmp_path / "b", "bench.seed=0,1")
    for point in made.points:
        measured(closed, point, 50.0, windows=3)
    assert len(compare(closed.path, closed.path, "bench.seed")) == 1


def test_without_records_nothing_is_claimed(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS)
    for point in made.points:
        measured(found, point, 100.0)
        found.point(point.point).requests.write_bytes(b"PAR1 torn")
    pairs = compare(found.path, found.path, "parallel.max_model_len")
    assert {one.verdict for one in pairs[0].figures} == {"unknown"}
    assert "too few requests" in text(pairs)


def test_errors_name_what_to_do(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS)
    measured(found, made.points[0], 100.0)
    with pytest.raises(RunError, match=r"Give --key of what differs.*parallel.max_model_len"):
        compare(found.path, found.path, "parallel.max_model_len")
    with pytest.raises(RunError, match="no point has this key"):
        compare(found.path, found.path, "paralel.max_model_len")
    with pytest.raises(RunError, match="no valid row"):
        compare(found.path, found.point(made.points[1].point).path)
    with pytest.raises(RunError, match="Is this the directory of a sweep"):
        compare(found.path, tmp_path)


def test_a_recorded_sweep_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    points = [
        str(RECORDED / "points" / point["point"])
        for point in read_json(RECORDED / "plan.json")["points"]
        if point["values"] in ({"parallel.max_model_len": n, "bench.input_tokens": 64} for n in (2048, 8192))
    ]
    said = []
    for _ in range(2):
        assert main(["compare", *points]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1], "draws are seeded"
    assert "parallel.max_model_len: 2048 -> 8192" in said[0]
    assert "Note:" in said[0], "one window each"
    assert main(["compare", str(RECORDED), str(RECORDED), "--key", "parallel.max_model_len", "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)
    assert len(pairs) == 5
    assert all(one["figures"][0]["verdict"] == "undecided" for one in pairs), "one window each"
