"""What once was a verdict and is none: other work, drafts on no text, a broken objective, a queue that grew."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from core_help import composer
from results_help import latencies, planned, requests, row

from jobs.core.errors import ConfigError
from jobs.core.files import write_text
from jobs.core.rundir import SweepDir
from jobs.forecast.search import shown
from jobs.forecast.tuner import Candidate, Goal, Space, answer, next_step
from jobs.results import report, slo
from jobs.results.break_even import Gain, Line, break_even, is_mixed, sentence
from jobs.results.compare import MANY_FROM, Figure, compare, text
from jobs.results.gather import read_run
from jobs.results.noise import Side, _places
from jobs.results.page import worded
from jobs.results.pairs import NOT_TEXT, Question, pair_of, standing
from jobs.results.pairs_text import Found, as_json, lines
from jobs.sweep.contest import ask
from jobs.sweep.plan import Plan

HERE = ("engine=simulator", "bench.input_tokens=256")
DRAFTS = "engine.args.speculative-config={method:ngram,num_speculative_tokens:3}"


# --- decide


@pytest.mark.parametrize(
    ("one", "two", "key"),
    [
        ("bench.input_tokens=128", "bench.input_tokens=1024", "bench.input_tokens"),
        ("bench.output_tokens=64", "bench.output_tokens=128", "bench.output_tokens"),
        ("bench.workload=random", "bench.workload=shared_prefix", "bench.workload"),
        ("bench.endpoint=completions", "bench.endpoint=chat", "bench.endpoint"),
        ("model=deepseek_r1_0528_w8a8", "model=deepseek_v3_1_w4a8", "model.name"),
        ("bench.window_s=60", "bench.window_s=120", "bench.window_s"),
        ("bench.warmup_s=5", "bench.warmup_s=60", "bench.warmup_s"),
        ("bench.slo.ttft_ms=100", "bench.slo.ttft_ms=1000", "bench.slo"),
        ("bench.request_rate=1 bench.seed=1", "bench.request_rate=1 bench.seed=2", "bench.seed"),
        ("bench.request_rate=1", "bench.concurrency=8", "A B"),
        ("parallel.max_num_seqs=16", f"parallel.max_num_seqs=16 {DRAFTS}", "bench.workload"),
    ],
)
def test_no_setting_is_faster_by_other_work(one: str, two: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ask(((*HERE, *one.split()), (*HERE, *two.split())), "ttft_ms_mean", 0.03, composer)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("parallel.max_num_seqs=16", "parallel.max_num_seqs=32"),
        ("bench.concurrency=8", "bench.concurrency=16"),
        ("bench.request_rate=1", "bench.request_rate=2"),
        (f"parallel.max_num_seqs=16 {DRAFTS}", f"parallel.max_num_seqs=32 {DRAFTS}"),
        ("bench.workload=text parallel.max_num_seqs=16", f"bench.workload=text parallel.max_num_seqs=16 {DRAFTS}"),
    ],
)
def test_settings_and_loads_of_the_same_work_may_be_told_apart(one: str, two: str) -> None:
    assert ask(((*HERE, *one.split()), (*HERE, *two.split())), "ttft_ms_mean", 0.03, composer).pair_hours > 0


def test_a_pair_that_breaks_its_objective_or_drafts_on_no_text_has_no_figures() -> None:
    plain = {"valid": True, "output_tok_per_s": 100.0, "spec_tokens": 0, "slo_kept": True}
    drafts = {**plain, "output_tok_per_s": 150.0, "spec_tokens": 3, "spec_text": False}
    assert pair_of("output_tok_per_s", plain, drafts) == NOT_TEXT
    assert pair_of("output_tok_per_s", plain, {**plain, "slo_kept": False}) == "B: it breaks bench.slo"
    both = pair_of("output_tok_per_s", drafts, {**drafts, "slo_kept": None})
    assert both == (math.log(150), math.log(150)), "both draft alike, and what is not known is not broken"


def test_pairs_without_figures_are_told_beside_the_answer() -> None:
    """B is faster where it runs, and every other start of it dies."""
    asked = Question("output_tok_per_s", 0.03, (("a", "b"),), 0, 9)
    told: list[Any] = [(1.0, 1.05), "B: out of memory", (1.0, 1.051), "B: out of memory", (1.0, 1.049), (1.0, 1.05)]
    now = standing(asked, told)
    found = Found(("A", "B"), "output_tok_per_s", 0.03, False, now, now.over, 1.0, ())
    said = "\n".join(lines(found))
    assert now.decision.answer == "better" and now.decision.pairs == 4
    assert "without figures: 2 of 6 pairs: B: out of memory" in said
    assert as_json(found)["without_figures"] == ["B: out of memory"] * 2
    assert "without figures" not in "\n".join(lines(replace(found, now=replace(now, gone=()))))


# --- tune

GOAL = Goal(limits=(("ttft_s", 2.0),))
MEASURED = {
    "valid": True, "output_tok_per_s": 100.0, "ttft_ms_mean": 900.0, "tpot_ms_mean": 30.0, "ttft_ms_p90": 1500.0,
    "windows": 3, "load_s": 10.0, "measure_s": 10.0, "nodes": 2,
}  # fmt: skip


def space_of(goal: Goal = GOAL) -> Space:
    from benchmarks.tunes import grid
    from jobs.forecast.learn import learn

    candidates: list[Candidate] = list(grid()[::9])
    return Space(candidates, learn([]).posterior, goal)


def test_a_setting_whose_requests_broke_the_objective_is_no_answer() -> None:
    """Of 120 requests 9 missed the limit, so it is broken; nine tenths of them kept it, and so does the p90."""
    space = space_of()
    broken = shown(GOAL, 0, 0, {**MEASURED, "slo_kept": False}, 3)
    kept = shown(GOAL, 0, 0, {**MEASURED, "slo_kept": None}, 3)
    assert answer(space, [kept]) is not None and answer(space, [broken]) is None
    assert next_step(space, [broken], 20.0).candidate != 0, "nor is it started again"


def test_a_valid_row_without_the_goals_figure_tells_nothing_of_its_setting() -> None:
    goal = Goal("tpot_s")
    blank = shown(goal, 0, 0, {**MEASURED, "tpot_ms_mean": None}, 3)
    assert blank.spoilt and not blank.figures
    assert space_of(goal).belief([blank]).keeps[0] > 0


@pytest.mark.parametrize("value", [math.inf, math.nan, True, -3.0, 0])
def test_what_is_no_figure_is_none(value: object) -> None:
    assert shown(GOAL, 0, 0, {**MEASURED, "output_tok_per_s": value}, 3).spoilt
    hours = shown(GOAL, 0, 0, {**MEASURED, "measure_s": value}, 3).hours
    assert hours is None or hours > 0 or value == 0


def test_all_requests_are_believed_before_a_percentile_of_some() -> None:
    near = {**MEASURED, "ttft_ms_p99": 2050.0}
    assert answer(space_of(), [shown(GOAL, 0, 0, {**near, "slo_kept": None}, 3)] * 3) is None
    assert answer(space_of(), [shown(GOAL, 0, 0, {**near, "slo_kept": True}, 3)] * 3) is not None


# --- speculation


def gains(*percents: float, error: float = 0.01) -> list[Gain]:
    return [Gain(4096.0 * 2**n, math.log1p(one / 100), error) for n, one in enumerate(percents)]


@pytest.mark.parametrize("percents", [(20, -20, 20), (-20, 20, 20), (-20, 20, -20), (20, -20, 20, -20)])
def test_where_it_pays_at_a_length_and_not_at_a_shorter_one_there_is_no_break_even(percents: tuple[float, ...]) -> None:
    each = gains(*percents)
    assert is_mixed(each)
    told = tuple({"length": one.length, "percent": one.percent} for one in each)
    name, values = sentence(Line("", 3, "mixed", None, told, 3))
    words = worded({"id": name, "values": values})
    assert name == "break_even_mixed" and "4096: " in words and "no length is the one" in words


@pytest.mark.parametrize("percents", [(20, 10, -5, -20), (20, 20, 20), (-5, -5), (1, -1, 1, -1), (0, 0, 0), (5,)])
def test_what_falls_or_is_noise_is_not_mixed(percents: tuple[float, ...]) -> None:
    assert not is_mixed(gains(*percents))
    assert len(percents) < 2 or break_even(gains(*percents)) is not None


def test_lengths_that_do_nothing_are_seldom_called_mixed() -> None:
    random = np.random.default_rng(0)
    told = [
        is_mixed([Gain(4096.0 * 2**n, float(0.01 * random.standard_normal()), 0.01) for n in range(5)])
        for _ in range(200)
    ]
    assert np.mean(told) <= 0.05


# --- compare and report


def written(folder: Path, *overrides: str, **known: Any) -> Path:
    """Write a sweep of which each row has three windows around the same figures."""
    found, made = planned(folder, "engine=vllm_ascend", "parallel.max_model_len=32768", *overrides)
    for point in made.points:
        row(found, point, windows=3, completed=300, **known)
        figures = {name: value for name, value in known.items() if isinstance(value, float)}
        lines = [{name: value * (1 + 0.01 * n) for name, value in figures.items()} | {"in_row": True} for n in range(3)]
        write_text(found.point(point.point).windows, "".join(json.dumps(line) + "\n" for line in lines))
    return found.path


def figures_of(one: Path, two: Path) -> dict[str, Figure]:
    [pair] = compare(one, two)
    return {figure.column: figure for figure in pair.figures}


def test_latencies_of_queues_that_grew_are_not_compared(tmp_path: Path) -> None:
    """One setting: in a window of twice the length it waits twice as long."""
    load = ("bench.request_rate=3",)
    short, long = (
        written(tmp_path / str(seconds), *load, f"bench.window_s={seconds}", ttft_ms_mean=150.0 * seconds,
                tpot_ms_mean=50.0, saturated=True)
        for seconds in (60, 120)
    )  # fmt: skip
    found = figures_of(short, long)
    assert found["ttft_ms_mean"].verdict == "grows" and found["tpot_ms_mean"].verdict == "none"
    assert "not compared: a queue grew" in text(compare(short, long))


def test_what_drafts_on_no_text_is_not_compared_with_what_does_not(tmp_path: Path) -> None:
    plain = written(tmp_path / "a", output_tok_per_s=100.0, spec_tokens=0)
    drafts = [
        written(tmp_path / name, output_tok_per_s=rate, spec_tokens=3, spec_text=False)
        for name, rate in (("b", 150.0), ("c", 170.0))
    ]
    assert figures_of(plain, drafts[0])["output_tok_per_s"].verdict == "not_text"
    assert figures_of(*drafts)["output_tok_per_s"].verdict == "ahead"


def test_rows_of_a_data_set_of_another_content_are_not_compared(tmp_path: Path) -> None:
    one, two, third = (
        written(tmp_path / name, output_tok_per_s=100.0, dataset_digest=digest)
        for name, digest in (("a", "aa"), ("b", "bb"), ("c", "aa"))
    )
    with pytest.raises(ConfigError, match="another content under the same name"):
        compare(one, two)
    assert compare(one, two, anyway=True) and compare(one, third)


def test_of_many_differences_it_is_said_how_many_are_chance(tmp_path: Path) -> None:
    many = "parallel.max_num_seqs=" + ",".join(map(str, range(16, 16 + MANY_FROM)))
    one, two = (written(tmp_path / name, many, output_tok_per_s=100.0) for name in "ab")
    assert f"Note: of {MANY_FROM} differences that are told at 95 % about 2" in text(compare(one, two))
    few = [written(tmp_path / name, output_tok_per_s=100.0) for name in "cd"]
    assert "by chance" not in text(compare(*few))


Planned = tuple[SweepDir, Plan]


@pytest.fixture
def lengths(tmp_path: Path) -> Planned:
    asked = ("bench.input_tokens=1024,2048,4096,8192,16384", "bench.concurrency=4")
    return planned(tmp_path / "lengths", "engine=vllm_ascend", "parallel.max_model_len=32768", *asked)


def test_answers_in_one_piece_keep_no_limit_of_the_speed_of_their_tokens(lengths: Planned) -> None:
    found, made = lengths
    for point in made.points:
        none = pa.array([None] * 400, pa.list_(pa.float32()))
        requests(found, point, latencies(1000, 400), tpot_ms=np.full(400, np.nan), itl_ms=none)
        row(found, point, completed=400, ttft_ms_p99=600.0)
    run = read_run(found.path)
    assert [one["y"] for one in report.largest_loads(run)] == [[None] * 5]
    assert all(slo.kept(run, one, {"ttft_ms_p99": 2000.0}) for one in run.rows)


def test_failures_of_one_window_of_three_are_misses_of_limits_that_are_asked_later(lengths: Planned) -> None:
    found, made = lengths
    for point in made.points:
        requests(found, point, latencies(1000, 300), windows=3)
        row(found, point, completed=300, failed=0, windows=3)
        lines = [{"failed": count, "in_row": True} for count in (0, 0, 40)]
        write_text(found.point(point.point).windows, "".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(found.path)
    assert not any(slo.kept(run, one, {"ttft_ms_p99": 2000.0}) for one in run.rows)


def test_a_queue_that_grew_is_no_point_of_a_curve(lengths: Planned) -> None:
    found, made = lengths
    for point in made.points:
        length = point.config.bench.input_tokens
        grew = length == 16384
        row(found, point, ttft_ms_p50=60_000.0 if grew else length / 10, saturated=grew, completed=300)
    [curve] = [one for one in report.curves(read_run(found.path)) if one["column"] == "ttft_ms_p50"]
    assert curve["x"] == [1024, 2048, 4096, 8192] and curve["curve"] is not None


@pytest.mark.parametrize("told", [True, False])
def test_a_drift_goes_by_the_moments_at_which_windows_were_opened(lengths: Planned, told: bool) -> None:
    """Two lengths by turns: A B, B A, A B. Of rows that do not tell it each had its windows one after the other."""
    found, made = lengths
    for point, moments in zip(made.points[:2], ((0.0, 30.0, 40.0), (10.0, 20.0, 50.0)), strict=True):
        row(found, point, output_tok_per_s=100.0, windows=3, completed=300)
        opened = [{"opened_s": at} if told else {} for at in moments]
        lines = [{"output_tok_per_s": 100.0, "in_row": True, **one} for one in opened]
        write_text(found.point(point.point).windows, "".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(found.path)
    sides = [Side(run, (one,), "output_tok_per_s") for one in run.rows[:2]]
    places = [list(one) for one in _places(sides)]
    assert places == ([[0, 3, 4], [1, 2, 5]] if told else [[0, 1, 2], [0, 1, 2]])
