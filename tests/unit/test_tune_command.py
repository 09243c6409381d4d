"""`python -m jobs tune`: its space, what is derived, errors before a start, and that the rows alone decide."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.__main__ import main
from jobs.cli import tune
from jobs.core.files import write_json
from jobs.core.rundir import SweepDir
from jobs.forecast.found import found
from jobs.forecast.search import Search, read_search, shown
from jobs.results.search import answer_of, lines
from jobs.sweep.space import ask

ISSUE = (
    "experiment=official_0_23",
    "cluster=local",
    "goal=output_tok_per_s",
    "bench.input_tokens=32768",
    "bench.output_tokens=1024",
    "bench.slo.ttft_ms=8000",
    "bench.slo.tpot_ms=80",
    "tune.budget_node_hours=24",
)
KEYS = "parallel.max_num_seqs: [16, 64], hccl.buffsize: auto, speculation: [0, 1, 3]"
FOUR = "tune.space={parallel: [dp2_tp8, dp4_tp4], parallel.max_num_seqs: [16, 64]}"
SPACE = ("cluster=local", "bench.input_tokens=1024", "bench.concurrency=64", FOUR, "tune.budget_node_hours=40")


@pytest.fixture(autouse=True)
def nothing_is_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "start", lambda *_, **__: pytest.fail("nothing may be submitted"))


def searched(search: Search, rows: dict[str, Any], most: int = 99) -> list[str]:
    """Run a search on what its own forecast says, 3 % less for a second start. Returns the settings it started."""
    taken: list[str] = []
    while len(taken) < most and (task := search.next(rows)[1]):
        [point] = task.points
        place, start = next(
            (place, one.points.index(point)) for place, one in enumerate(search.settings) if point in one.points
        )
        logs = search.settings[place].candidate.subject.predicted(np.array(search.mean))
        ttft, tpot, rate = map(math.exp, logs)
        figures = {"ttft_ms": ttft * 1e3, "tpot_ms": tpot * 1e3}
        row = {f"{name}_{kind}": value for name, value in figures.items() for kind in ("mean", "p99")}
        rows[point] = {"valid": True, "windows": 3, "output_tok_per_s": rate * (1 - 0.03 * start), **row}
        taken.append(search.settings[place].candidate.name)
    return taken


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return ask([*SPACE, f"results.root={tmp_path_factory.mktemp('runs')}"]).search


def test_the_command_line_of_the_goal_is_planned_with_what_nobody_set_derived(tmp_path: Path) -> None:
    space = f"tune.space={{parallel: [dp2_tp8, pp2_tp8], {KEYS}, parallel.gpu_memory_utilization: auto}}"
    asked = ask([*ISSUE, space, f"results.root={tmp_path}"])
    assert len({one.services[0] for one in asked.search.settings}) == 8
    assert {name.partition(" bench.")[0] for name in asked.search.ruled_out} == {
        f"parallel=pp2_tp8 parallel.max_num_seqs={count} speculation={tokens}"
        for count in (16, 64)
        for tokens in (1, 3)
    }, "the release drafts over pipeline stages on prefill nodes alone"
    assert asked.search.goal.limits == (("ttft_s", 8.0), ("tpot_s", 0.08)) and asked.search.windows == 3
    configs = {point.point: point.config for point in asked.plan.points}
    for one in asked.search.settings:
        config = configs[one.points[0]]
        assert config.parallel.max_model_len == 33 * 1024, "the preset's does not hold the requests"
        assert (config.hccl.buffsize or 0) >= 200 and (config.parallel.gpu_memory_utilization or 0) > 0.92
        assert config.engine.args["speculative-config"] is None or "method" in config.engine.args["speculative-config"]
        assert not any("auto" in text for text in one.overrides)
        second = configs[one.points[1]]
        assert second.parallel.seed == (config.parallel.seed or 0) + 1, "a further start is the same under another seed"
    loads: dict[str, list[int | None]] = {}
    for one in asked.search.settings:
        name, _, _ = one.candidate.name.partition(" bench.concurrency=")
        loads.setdefault(name, []).append(configs[one.points[0]].bench.concurrency)
    assert loads["parallel=pp2_tp8 parallel.max_num_seqs=64 speculation=0"] == [4, 8, 16], (
        "by the forecast, and around it"
    )
    assert loads["parallel=dp2_tp8 parallel.max_num_seqs=64 speculation=0"] == [1, 2]


def test_another_load_of_a_service_that_is_up_costs_its_windows_alone(tmp_path: Path) -> None:
    space = "tune.space={bench.concurrency: [31, 32]}"
    search = ask([*SPACE[:2], space, "tune.budget_node_hours=40", f"results.root={tmp_path}"]).search
    rows: dict[str, Any] = {}
    [first] = searched(search, rows, most=1)
    up = next(one.services[0] for one in search.settings if one.candidate.name == first)
    [begun] = rows.values()
    begun |= {"job_id": "1", "attempt": 1, "nodes": 2, "load_s": 900.0, "warmup_s": 0.0, "measure_s": 900.0}
    begun |= {"queue_s": 1800.0}
    step, task = search.next(rows, up=up)
    assert task and task.service == up and task.points[0] not in rows
    alone, _ = search.next(rows)
    windows = search.windows * search.settings[step.candidate].candidate.window_hours
    assert step.why.endswith(f"for {windows * hours_off(search, rows):.2f} node-hours")
    assert alone.why != step.why
    rows[task.points[0]] = dict(begun)
    assert [one.hours for one in search.shown(rows)] == [1.0, 0.5], "the start is counted once"
    assert found(search, rows)["starts"] == 1
    assert found(search, rows)["queue_hours"] == 0.5, "one allocation, one queue"


def hours_off(search: Search, rows: dict[str, Any]) -> float:
    """Return what the one row cost, as a multiple of what was predicted."""
    [one] = search.shown(rows)
    candidate = search.settings[one.candidate].candidate
    return (one.hours or 0.0) / (candidate.load_hours + one.windows * candidate.window_hours)


def test_main_says_what_it_would_do_and_the_older_spellings_are_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", *SPACE, f"results.root={tmp_path}"]
    assert main([*words, "launch.dry_run=true"]) == 0
    assert "4 settings to choose from, 40 node-hours\nfirst: parallel=" in capsys.readouterr().out
    assert main([*words, "goal=output_tok_s"]) == 2
    assert "Did you mean 'output_tok_per_s'?" in capsys.readouterr().err
    assert main([*words, "bench.slo.ttft_p99_ms=8000"]) == 2
    assert "Did you mean 'bench.slo.ttft_ms'?" in capsys.readouterr().err


def test_what_cannot_run_is_never_started_and_said(tmp_path: Path) -> None:
    space = "tune.space={parallel.max_model_len: [8192, 16384, 163840], parallel.max_num_seqs: [16, 32]}"
    words = [
        "cluster=local",
        "bench.concurrency=4",
        "bench.input_tokens=9000",
        "tune.budget_node_hours=30",
        f"results.root={tmp_path}",
    ]
    search = ask([*words, space]).search
    reasons = {name: reason.partition(":")[0] for name, reason in search.ruled_out.items()}
    assert reasons == {
        f"parallel.max_model_len={length} parallel.max_num_seqs={count}": reason
        for length, reason in ((8192, "rule"), (163840, "memory"))
        for count in (16, 32)
    }
    assert len(search.settings) == 2


def of(space: str, *more: str) -> list[str]:
    return [f"tune.space={{{space}}}", "cluster=local", "tune.budget_node_hours=9", *more]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (of(""), "one setting is no space to search"),
        (of("parallel.max_num_seqs: [16]"), "one setting is no space to search"),
        (of("parallel.max_num_seqs: []"), "it has no values to choose from"),
        (of("parallel.max_num_seqs: [16, 16]"), "a value stands in it twice"),
        (of("bench.repeats: [1, 2]"), "no setting wins by that"),
        (of("bench.input_tokens: [100, 200]"), "no setting wins by that"),
        (of("parallel.max_num_seqs: [16, 32]", "bench.output_tokens=8,16"), "no setting wins by that"),
        (of("model: [deepseek_r1_0528_w8a8, deepseek_v3_1_w8a8]"), "no setting wins by that"),
        (of("parallel.max_seqs: [1, 2]"), "Did you mean 'parallel.max_num_seqs'?"),
        (of("parallel: [dp2_tp8, dp9_tp9]"), "there is no such option"),
        (of("parallel.max_num_seqs: auto"), "nothing derives it"),
        (of("speculation: [0, no]"), "a number of tokens is needed"),
        (of("parallel.seed: [1, 2]"), "several seeds anyway"),
        (of("cluster.partition: [a, b]"), "it belongs to the whole sweep"),
        (of("parallel.max_model_len: [200000, 300000]"), "none can be started"),
        (of("parallel.max_num_seqs: [16, 32]", "goal=itl_ms_p50"), "nothing is forecast of it"),
        (of("parallel.max_num_seqs: [16, 32]", "bench.request_rate=2"), "Set goal=ttft_ms_mean"),
        (of("parallel.max_num_seqs: [16, 32]", "bench.slo.e2el_ms=9000"), "Limit ttft_ms or tpot_ms"),
        (of("parallel.max_num_seqs: [16, 32]", "goal=speed"), "there is no such figure"),
        (of("parallel.max_num_seqs: [16, 32]", "tune.budget_node_hours=0.01"), "one start and its windows take about"),
        (of("parallel.max_num_seqs: [16, 32]", "tune.budget_node_hours=null"), "a search needs a budget"),
        (of("parallel.max_num_seqs: [16, 32]", "launch.budget_node_hours=3"), "Set tune.budget_node_hours instead"),
        (
            of("parallel.max_num_seqs: [16, 32]", "bench.workload=sharegpt", "bench.dataset=x.json"),
            "nothing is known beforehand",
        ),
    ],
)
def test_a_search_that_cannot_be_is_one_clear_error(
    asked: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", f"results.root={tmp_path}", *asked]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert reason in said and said.count("error:") == 1


def test_rows_alone_decide_so_that_a_search_goes_on_where_it_was_killed(four: Search, tmp_path: Path) -> None:
    rows: dict[str, Any] = {}
    whole = searched(four, rows)
    sweep = SweepDir(tmp_path)
    write_json(sweep.search, four)
    again: dict[str, Any] = {}
    steps: list[str] = []
    while step := searched(read_search(sweep), again, most=1):
        steps += step
    assert steps == whole and again == rows
    assert len(whole) >= 3 and max(whole.count(name) for name in whole) == 2, "what leads is started twice"


def test_what_was_found_is_told_with_the_answer_first(four: Search, tmp_path: Path) -> None:
    rows: dict[str, Any] = {}
    searched(four, rows, most=1)
    assert not found(four, rows)["over"]
    searched(four, rows)
    told = found(four, rows)
    best = told["answer"]
    assert told["over"] and best["low"] < best["value"] < best["high"]
    assert told["node_hours"] <= 40 and told["starts"] == len(rows)
    assert best["name"] == told["settings"][0]["name"] and told["settings"][0]["out"] == ""
    assert all(one["out"] for one in told["settings"][1:])
    (tmp_path / "answer.json").write_text(json.dumps(told))
    said = lines(answer_of(SweepDir(tmp_path)))
    assert said[0] == f"best: {best['name']}" and said[2].startswith("  serve it: python -m jobs serve ")
    assert any(line.startswith("cost: ") for line in said) and "node-hours more" in said[-1]


def test_an_answer_of_which_the_objective_is_not_known_says_so(tmp_path: Path) -> None:
    search = ask([*SPACE, "bench.slo.ttft_ms=2000000", f"results.root={tmp_path}"]).search
    for kept in (None, True):
        rows: dict[str, Any] = {}
        searched(search, rows, most=2)
        told = found(search, {point: row | {"slo_kept": kept} for point, row in rows.items()})
        (tmp_path / "answer.json").write_text(json.dumps(told))
        said = "\n".join(lines(answer_of(SweepDir(tmp_path))))
        assert told["answer"] and ("keep bench.slo is not known" in said) is (kept is None)


def test_what_failed_or_breaks_a_limit_is_ruled_out_by_it(four: Search) -> None:
    task = four.next({})[1]
    assert task
    rows: dict[str, Any] = {task.points[0]: {"valid": False, "invalid_reason": "out of memory"}}
    assert four.next(rows)[1] != task
    spoilt = {task.points[0]: {"valid": False, "load_s": 9.0, "invalid_reason": "repeat 1: the client stood still"}}
    again = four.next(spoilt)[1]
    assert (
        again
        and again.points != task.points
        and again.points[0] in next(one.points for one in four.settings if task.points[0] in one.points)
    ), "a measurement that cannot be believed says nothing of the setting"
    failed = next(one for one in found(four, rows)["settings"] if one["measured"])
    assert failed["out"] == "failed: out of memory" and failed["keeps_limits"] == 0


def test_a_row_counts_with_its_windows_its_percentiles_and_its_real_cost(tmp_path: Path) -> None:
    search = ask([*SPACE, "bench.slo.tpot_ms=80", f"results.root={tmp_path}"]).search
    row = {"valid": True, "output_tok_per_s": 500.0, "tpot_ms_mean": 60.0, "tpot_ms_p99": 90.0, "ttft_ms_mean": 9.0}
    one = shown(search.goal, 0, 0, row, 3)
    assert one.figures == {"ttft_s": 0.009, "tpot_s": 0.09, "output_per_s": 500.0} and one.windows == 3
    assert one.hours is None
    few = row | {"tpot_ms_p99": None, "tpot_ms_p90": 85.0}
    assert shown(search.goal, 0, 0, few, 3).figures["tpot_s"] == 0.085, "too few requests for a 99th percentile"
    took = {"nodes": 2, "load_s": 900.0, "warmup_s": 300.0, "measure_s": 540.0, "teardown_s": 60.0}
    assert shown(search.goal, 0, 0, row | took | {"windows": 1}, 3).hours == 1.0
    assert shown(search.goal, 0, 0, row | took | {"reused_from": "x"}, 3).hours == 0.0
    assert shown(search.goal, 0, 0, row | {"valid": False}, 3).figures == {}


def test_a_start_that_can_hardly_be_the_best_gets_no_further_window(four: Search) -> None:
    rows: dict[str, Any] = {}
    searched(four, rows, most=2)
    left = next(point for point in four.points if point not in rows)
    rate = max(row["output_tok_per_s"] for row in rows.values())
    poor = {"output_tok_per_s": rate / 4, "ttft_ms_mean": 1e5, "tpot_ms_mean": 900.0}
    assert four.hopeless(rows, left, poor, 1)
    assert not four.hopeless(rows, left, {**poor, "output_tok_per_s": 2 * rate}, 1)
