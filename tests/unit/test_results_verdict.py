"""The first paragraph: who won, by how much, whether to believe it. It must not claim more than was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from results_help import measured, planned, row

from jobs.core.files import read_json, write_json
from jobs.results import columns, page
from jobs.results.gather import read_run
from jobs.results.verdict import Verdict, judge

LENGTHS = "parallel.max_model_len=8192,32768"


def judged(path: Path) -> tuple[Verdict, dict[str, dict[str, Any]]]:
    found = judge(read_run(path))
    return found, {one.id: dict(one.values) for one in found.sentences}


def test_a_setting_that_is_better_beyond_noise_in_repeated_windows_won(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "bench.concurrency=1,8")
    for point, mean in zip(made.points, (50.0, 200.0, 60.0, 250.0), strict=True):
        measured(found, point, mean, windows=3)
    verdict, said = judged(found.path)
    assert verdict.believe == "care", "another start of the engine may say otherwise"
    assert "one_start" in said
    assert verdict.winner == made.points[1].point
    won = said["clear"]
    assert won["setting"] == "parallel.max_model_len=8192 bench.concurrency=8"
    # The rival is the best of another setting, not the winner at another load.
    assert won["second"] == "parallel.max_model_len=32768 bench.concurrency=8"
    assert won["percent"] == pytest.approx(25, abs=2)
    assert won["low"] < won["percent"] < won["high"]
    assert said["repeated"] == {"count": 3}


@pytest.mark.parametrize(("again", "believe"), [(52.0, "yes"), (80.0, "care")])
def test_a_win_is_believed_that_two_starts_of_the_engine_show(tmp_path: Path, again: float, believe: str) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "parallel.seed=1,2")
    for point, mean in zip(made.points, (50.0, again, 60.0, 61.0), strict=True):
        measured(found, point, mean, windows=3)
    verdict, said = judged(found.path)
    assert verdict.believe == believe
    assert said["clear"]["setting"] == "parallel.max_model_len=8192"
    assert said["clear"]["second"] == "parallel.max_model_len=32768", "another start of a setting is no rival"
    assert "one_start" not in said
    assert ("starts" in said, "starts_differ" in said) == (believe == "yes", believe == "care")


def test_saturated_rows_win_nothing(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS)
    measured(found, made.points[0], 50.0, saturated=True)
    measured(found, made.points[1], 60.0, saturated=False)
    verdict, said = judged(found.path)
    assert said["left_out_saturated"] == {"count": 1}
    assert said["only"]["setting"] == "parallel.max_model_len=32768"
    assert verdict.winner is None


def test_an_offered_rate_is_no_setting(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "bench.request_rate=1,4")
    for point, rate in zip(made.points, (100.0, 400.0), strict=True):
        measured(found, point, 50.0, output_tok_s=rate)
    verdict, said = judged(found.path)
    assert verdict.winner is None
    assert {"kinds", "only_for"} <= said.keys()
    found, made = planned(tmp_path / "b", LENGTHS, "bench.request_rate=1,4")
    for point, rate in zip(made.points, (100.0, 400.0, 100.0, 300.0), strict=True):
        measured(found, point, 50.0, output_tok_s=rate)
    assert "differ" not in said
    _, said = judged(found.path)
    works = [one.values["work"] for one in judged(found.path)[0].sentences if "work" in one.values]
    assert works == ["bench.request_rate=1.0", "bench.request_rate=4.0"], "rows compare at the same rate"


def test_a_latency_of_nothing_is_not_the_best(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "results.objective=tpot_ms_p50")
    measured(found, made.points[0], 60.0, tpot_ms_p50=0.0)
    measured(found, made.points[1], 50.0)
    _, said = judged(found.path)
    assert said["only"]["setting"] == "parallel.max_model_len=32768"


def test_the_notes_of_the_rows_that_are_compared_are_quoted(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS)
    measured(found, made.points[0], 50.0, notes="the search ended at bench.search_most")
    measured(found, made.points[1], 60.0)
    _, said = judged(found.path)
    assert said["note"] == {"point": made.points[0].point, "note": "the search ended at bench.search_most"}


def test_one_window_each_is_ahead_and_not_more(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS)
    for point, mean in zip(made.points, (50.0, 60.0), strict=True):
        measured(found, point, mean)
    verdict, said = judged(found.path)
    assert verdict.believe == "care"
    assert {"ahead", "once"} <= said.keys()
    assert "clear" not in said


def test_a_difference_inside_the_noise_has_no_winner(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS)
    for point, seed in zip(made.points, (1, 2), strict=True):
        measured(found, point, 50.0, seed=seed, windows=3)
    verdict, said = judged(found.path)
    assert verdict.winner is None
    assert verdict.believe == "care"
    assert 0 < said["tie"]["least"] < 10


def test_kinds_of_work_are_judged_each_for_itself(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "bench.input_tokens=64,512")
    # Short prompts are always faster; that is no merit of a setting.
    for point, mean in zip(made.points, (50.0, 250.0, 60.0, 300.0), strict=True):
        measured(found, point, mean, windows=3)
    verdict, said = judged(found.path)
    assert said["same"] == {"kinds": 2, "clear": 2, "setting": "parallel.max_model_len=8192"}
    assert verdict.believe == "care"
    works = [one.values["work"] for one in verdict.sentences if one.id == "clear_for"]
    assert works == ["bench.input_tokens=64", "bench.input_tokens=512"]
    measured(found, made.points[3], 200.0, windows=3)
    verdict, said = judged(found.path)
    assert "differ" in said
    assert verdict.winner is None


def test_a_sweep_over_work_alone_compares_nothing(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "bench.input_tokens=64,512")
    for point in made.points:
        measured(found, point, 50.0)
    verdict, said = judged(found.path)
    assert "kinds" in said
    assert verdict.winner is None


def test_simulated_rows_never_win_over_measured_ones(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "engine=vllm_cpu,simulator", "bench.concurrency=4,8")
    for point in made.points:
        fast = point.config.engine.name == "simulator"
        measured(found, point, 10.0 if fast else 100.0)
    verdict, said = judged(found.path)
    winner = next(one for one in made.points if one.point == verdict.winner)
    assert winner.config.engine.name == "vllm_cpu"
    assert said["left_out_simulated"] == {"count": 2}
    for point in made.points:
        if point.config.engine.name == "vllm_cpu":
            row(found, point, invalid_reason="lost")
    verdict, said = judged(found.path)
    assert verdict.believe == "no"
    assert "simulated" in said


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS)
    verdict, said = judged(found.path)
    assert said["nothing"] == {"count": 2}
    assert said["invalid"] == {"count": 2, "of": 2}
    assert (verdict.believe, verdict.winner) == ("no", None)
    measured(found, made.points[0], 50.0, completed=12)
    _, said = judged(found.path)
    assert "only" in said
    assert said["few"] == {"count": 12}
    measured(found, made.points[1], 60.0)
    found.point(made.points[1].point).requests.unlink()
    _, said = judged(found.path)
    assert "unknown" in said


def test_only_rows_within_the_objective_can_win(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "bench.slo.ttft_ms_p99=500")
    measured(found, made.points[0], 50.0, ttft_ms_p99=900.0)
    measured(found, made.points[1], 60.0, ttft_ms_p99=300.0)
    verdict, said = judged(found.path)
    assert said["under_slo"] == {"count": 1, "of": 2, "slo": "ttft_ms_p99 ≤ 500"}
    assert said["only"]["setting"] == "parallel.max_model_len=32768"
    assert verdict.winner is None


def test_an_objective_in_which_less_is_better(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "results.objective=ttft_ms_p50")
    measured(found, made.points[0], 60.0)
    measured(found, made.points[1], 50.0)
    verdict, said = judged(found.path)
    assert verdict.winner == made.points[1].point
    assert said["ahead"]["value"] < said["ahead"]["second_value"]


def test_every_sentence_has_its_words_in_both_languages() -> None:
    text = (Path(page.FOLDER).parent / "verdict.py").read_text()
    outcomes = ("only", "unknown", "tie", "ahead", "clear")
    ids = set(re.findall(r'Sentence\(\s*"(\w+)"', text)) | {"same", "same_ahead", "differ", "none_clear", "kinds"}
    for name in (*ids, *outcomes, *(f"{one}_for" for one in outcomes)):
        assert f"verdict.{name}" in page.words(), name
    for name, said in page.words().items():
        assert set(said) == {"en", "zh"}, name
        assert all(said.values())
        places = [sorted(re.findall(r"\{(\w+)\}", said[language])) for language in ("en", "zh")]
        assert places[0] == places[1], name
    script = "".join((page.FOLDER / name).read_text() for name in page.SCRIPTS if not name.startswith("plotly"))
    for name in re.findall(r'\bt\("([\w.-]+)"[,)]', script):
        assert name in page.words(), name


def test_what_is_work_and_what_is_load() -> None:
    assert all(columns.is_work(key) for key in ("bench.input_tokens", "bench.client", "engine.name", "model.path"))
    others = ("bench.concurrency", "bench.request_rate", "bench.window_s", "bench.slo.ttft_ms_p99", "parallel.seed")
    assert not any(columns.is_work(key) for key in others)


def test_a_sentence_in_words() -> None:
    values = {"count": 3, "of": 7}
    assert page.worded({"id": "invalid", "values": values}).startswith("3 of 7 rows are not valid")
    assert page.worded({"id": "invalid", "values": values}, "zh").startswith("7 行中有 3 行无效")
    assert "12.3 ms" in page.worded(
        {"id": "user", "values": {"ttft_ms_p50": 12.345, "tpot_ms_p50": None, "e2el_ms_p50": 1e4}}
    )


def test_rows_that_are_torn_do_not_stop_a_verdict(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS)
    for point in made.points:
        measured(found, point, 50.0)
    path = found.point(made.points[0].point).row
    write_json(path, read_json(path) | {"output_tok_s": None})
    assert judged(found.path)[0].winner is None
