"""The first paragraph: who won, by how much, whether to believe it. It must not claim more than was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from results_help import measured, planned, row

from jobs.core.files import read_json, write_json, write_text
from jobs.core.rundir import SweepDir
from jobs.results import columns, page
from jobs.results.gather import read_run
from jobs.results.spread import remember
from jobs.results.verdict import OUTCOMES, Verdict, judge
from jobs.sweep.points import Point

LENGTHS = "parallel.max_model_len=8192,32768"


def judged(path: Path) -> tuple[Verdict, dict[str, dict[str, Any]]]:
    found = judge(read_run(path))
    return found, {one.id: dict(one.values) for one in found.sentences}


def test_one_start_of_each_is_ahead_and_not_decided_however_many_windows_there_are(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "bench.concurrency=1,8")
    for point, mean in zip(made.points, (50.0, 200.0, 60.0, 250.0), strict=True):
        measured(found, point, mean, windows=3)
    verdict, said = judged(found.path)
    assert (verdict.believe, verdict.winner) == ("care", None), "another start of the engine may say otherwise"
    assert "one_start" in said
    ahead = said["ahead"]
    assert page.worded({"id": "ahead", "values": ahead}).startswith(
        "Not decided: not every setting was started three times"
    )
    assert ahead["setting"] == "parallel.max_model_len=8192 bench.concurrency=8"
    # The rival is the best of another setting, not the leader at another load.
    assert ahead["second"] == "parallel.max_model_len=32768 bench.concurrency=8"
    assert 0 < ahead["low"] < (ahead["value"] / ahead["second_value"] - 1) * 100 < ahead["high"]
    assert said["repeated"] == {"count": 3}


@pytest.mark.parametrize(
    ("seeds", "fast", "slow", "outcome", "believe", "also"),
    [
        ("1,2,3", (50.0, 51.0, 52.0), (60.0, 61.0, 62.0), "clear", "yes", {"starts"}),
        ("1,2,3", (50.0, 51.0, 80.0), (60.0, 61.0, 62.0), "tie", "care", {"starts", "starts_differ"}),
        ("1,2", (50.0, 50.1), (60.0, 60.1), "ahead", "care", {"not_contradicted"}),
        ("1,2", (50.0, 56.0), (60.0, 66.0), "tie", "care", {"not_contradicted"}),
        ("1,2", (50.0, 65.0), (60.0, 61.0), "tie", "care", {"starts_differ"}),
    ],
)
def test_what_starts_of_the_engine_show(
    tmp_path: Path, seeds: str, fast: Any, slow: Any, outcome: str, believe: str, also: set[str]
) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, f"parallel.seed={seeds}")
    for point, mean in zip(made.points, (*fast, *slow), strict=True):
        measured(found, point, mean, windows=3)
    verdict, said = judged(found.path)
    assert verdict.sentences[0].id == outcome
    assert verdict.believe == believe
    assert (verdict.winner is not None) == (outcome == "clear")
    assert said[outcome]["setting"] == "parallel.max_model_len=8192"
    assert said[outcome]["second"] == "parallel.max_model_len=32768", "another start of a setting is no rival"
    assert also <= said.keys()
    assert not {"starts", "starts_differ", "not_contradicted", "one_start"} - also & said.keys()


def test_a_setting_without_a_valid_row_may_be_the_better_one(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "parallel.max_model_len=8192,16384,32768", "parallel.seed=1,2,3")
    for number, point in enumerate(made.points):
        known = {"invalid_reason": "it failed"} if number > 5 else {}
        measured(found, point, (50.0 if number < 3 else 60.0) + number / 10, windows=3, **known)
    verdict, said = judged(found.path)
    assert verdict.sentences[0].id == "clear" and verdict.believe == "care"
    assert said["left_out_invalid"] == {"settings": "parallel.max_model_len=32768"}


def test_a_winner_beats_each_of_its_rivals_and_was_picked_out_of_them(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "parallel.max_model_len=8192,16384,32768", "parallel.seed=1,2,3")
    # The second is surely slower; the third is slower on average, but its starts lie far apart.
    for point, mean in zip(made.points, (50.0, 50.5, 51.0, 56.0, 56.5, 57.0, 50.0, 61.0, 75.0), strict=True):
        measured(found, point, mean, windows=3)
    verdict, said = judged(found.path)
    assert verdict.winner is None
    assert said["tie"]["second"] == "parallel.max_model_len=32768"
    assert said["adjusted"] == {"count": 2}
    two = planned(tmp_path / "b", LENGTHS, "parallel.seed=1,2,3")
    for point, mean in zip(two[1].points, (50.0, 50.5, 51.0, 56.0, 56.5, 57.0), strict=True):
        measured(two[0], point, mean, windows=3)
    for point, mean in zip(made.points[6:], (62.0, 62.5, 63.0), strict=True):
        measured(found, point, mean, windows=3)
    of_three, of_two = (judged(one.path)[1]["clear"] for one in (found, two[0]))
    assert of_three["low"] < of_two["low"], "the best of three was picked"


def test_each_of_several_kinds_of_work_is_judged_more_strictly(tmp_path: Path) -> None:
    lows = {}
    for lengths in ("1024", "1024,2048,512"):
        found, made = planned(tmp_path / lengths, LENGTHS, "parallel.seed=1,2,3", f"bench.input_tokens={lengths}")
        for point in made.points:
            slow = point.config.parallel.max_model_len == 32768
            measured(found, point, (60.0 if slow else 50.0) + point.config.parallel.seed, windows=3)
        said = judged(found.path)[1]
        lows[lengths] = said.get("clear", said.get("clear_for", {}))["low"]
        assert ("adjusted_kinds" in said) is (lengths != "1024")
    assert lows["1024,2048,512"] < lows["1024"] - 1


@pytest.mark.parametrize(("others", "outcome"), [(60.0, "clear_for"), (50.0, "tie_for")])
def test_kinds_of_work_that_are_told_leave_their_doubt_to_the_others(
    tmp_path: Path, others: float, outcome: str
) -> None:
    """5.5 % at 1024 tokens are enough for one kind of work, not for three; those that are decided count no more."""
    found, made = planned(tmp_path / "a", LENGTHS, "parallel.seed=1,2,3", "bench.input_tokens=1024,2048,512")
    for point in made.points:
        slow, near = point.config.parallel.max_model_len == 32768, point.config.bench.input_tokens == 1024
        mean = (52.9 if near else others) if slow else 50.0
        measured(found, point, mean + point.config.parallel.seed, windows=3)
    told = {one.values["work"]: one.id for one in judge(read_run(found.path)).sentences if one.id.endswith("_for")}
    assert told["bench.input_tokens=1024"] == outcome


@pytest.mark.parametrize(("fast", "outcome"), [((50.0, 50.5, 51.0), "ahead"), ((50.0, 57.0, 66.0), "tie")])
def test_starts_of_one_setting_tell_how_far_those_of_the_other_may_lie(
    tmp_path: Path, fast: tuple[float, ...], outcome: str
) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "parallel.seed=1,2,3")
    for point, mean in zip(made.points, (*fast, 62.0), strict=False):
        measured(found, point, mean, windows=3)
    assert judged(found.path)[0].sentences[0].id == outcome


@pytest.mark.parametrize(("loads", "outcome"), [((20, 21), "tie"), ((20, 24), "clear")])
def test_loads_that_were_found_one_step_apart_are_no_difference(
    tmp_path: Path, loads: tuple[int, int], outcome: str
) -> None:
    """A search tells the load to 5 %: all starts of a setting find the same, however near the edge of the next step."""
    search = ("bench.search=concurrency", "bench.concurrency=2", "bench.slo.ttft_ms=1500")
    objective = "results.objective=found_concurrency"
    found, made = planned(tmp_path / "a", LENGTHS, "parallel.seed=1,2,3", objective, *search)
    for point in made.points:
        slow = point.config.parallel.max_model_len == 32768
        measured(found, point, 50.0, found_concurrency=loads[not slow], slo_kept=True, ttft_ms_p99=1000.0)
    assert judged(found.path)[0].sentences[0].id == outcome


@pytest.mark.parametrize(("more", "outcome"), [(1.0000001, "tie"), (1.01, "clear")])
def test_figures_that_are_alike_to_the_last_digit_have_no_winner(tmp_path: Path, more: float, outcome: str) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "parallel.seed=1,2,3", "results.objective=goodput_per_s")
    for point in made.points:
        measured(found, point, 50.0, goodput_per_s=2.0 * (more if point.config.parallel.max_model_len < 9000 else 1.0))
    assert judged(found.path)[0].sentences[0].id == outcome


def test_a_row_without_the_figure_that_decides_is_not_left_out_silently(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "parallel.max_model_len=8192,16384,32768", "results.objective=ttft_ms_p99")
    for point, figure in zip(made.points, (100.0, 110.0, None), strict=True):
        measured(found, point, 50.0, windows=3, ttft_ms_p99=figure)
    assert judged(found.path)[1]["left_out_blank"] == {"count": 1, "column": "ttft_ms_p99"}


def known(folder: Path, spread: float) -> None:
    """Write three starts of one setting, as an earlier sweep in the same root leaves them."""
    found, made = planned(folder, "parallel.max_model_len=8192", "parallel.seed=1,2,3")
    for point, share in zip(made.points, (1 - spread, 1.0, 1 + spread), strict=True):
        measured(found, point, 80.0 * share, windows=3)
        rows = [one for one in read_run(found.path).rows if one["point"] == point.point]
        remember(found, {point.point: point.config}, rows)


@pytest.mark.parametrize(("spread", "outcome", "believe"), [(0.005, "clear", "yes"), (0.1, "tie", "care")])
def test_a_known_spread_between_starts_stands_for_more_starts(
    tmp_path: Path, spread: float, outcome: str, believe: str
) -> None:
    known(tmp_path / "earlier", spread)
    found, made = planned(tmp_path / "a", LENGTHS)
    for point, mean in zip(made.points, (50.0, 60.0), strict=True):
        measured(found, point, mean, windows=3)
    verdict, said = judged(found.path)
    assert (verdict.sentences[0].id, verdict.believe) == (outcome, believe)
    assert said["known_spread"]["starts"] == 1
    assert said["known_spread"]["percent"] == pytest.approx(100 * spread, rel=0.2)
    # Of another layout nothing is known.
    other, made = planned(tmp_path / "b", LENGTHS, "parallel=dp4_tp4")
    for point, mean in zip(made.points, (50.0, 60.0), strict=True):
        measured(other, point, mean, windows=3)
    assert judged(other.path)[0].sentences[0].id == "ahead"


def test_a_spread_that_cannot_be_read_or_lacks_the_figure_is_not_known(tmp_path: Path) -> None:
    known(tmp_path / "earlier", 0.005)
    found, made = planned(tmp_path / "a", LENGTHS)
    for point, mean in zip(made.points, (50.0, 60.0), strict=True):
        measured(found, point, mean, windows=3)
    [path] = (tmp_path / ".calibration" / "starts").glob("*.json")
    whole = read_json(path)
    figures = [{**one, "figures": {"e2el_ms_mean": 900.0}} for one in whole["starts"]]
    for content in ({"starts": figures}, {"starts": [{**whole["starts"][0], "figures": [1]}]}, {"starts": 3}, []):
        write_json(path, content)
        assert judged(found.path)[0].sentences[0].id == "ahead"
    write_json(path, whole)
    assert judged(found.path)[0].sentences[0].id == "clear"


def test_at_an_offered_rate_latency_or_goodput_decides(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "bench.request_rate=2", "parallel.seed=1,2,3")
    for number, point in enumerate(made.points):
        # The slower one shows a rate that is higher by chance.
        slow = number >= 3
        latency, rate = (60.0, 105.0) if slow else (50.0, 100.0)
        measured(found, point, latency + number % 3, windows=3, output_tok_per_s=rate)
    _, said = judged(found.path)
    assert said["clear"]["setting"] == "parallel.max_model_len=8192"
    assert said["clear"]["column"] == "e2el_ms_mean"
    assert said["offered"] == {"objective": "output_tok_per_s", "column": "e2el_ms_mean"}
    found, made = planned(tmp_path / "b", LENGTHS, "bench.request_rate=2", "bench.slo.ttft_ms=500")
    for point, rate, goodput in zip(made.points, (105.0, 100.0), (1.0, 1.9), strict=True):
        measured(found, point, 50.0, windows=3, output_tok_per_s=rate, goodput_per_s=goodput, ttft_ms_p99=30.0)
    _, said = judged(found.path)
    assert said["offered"]["column"] == "goodput_per_s"
    assert said["unknown"]["setting"] == "parallel.max_model_len=32768"


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
        measured(found, point, 50.0, output_tok_per_s=rate)
    verdict, said = judged(found.path)
    assert verdict.winner is None
    assert {"kinds", "only_for"} <= said.keys()
    found, made = planned(tmp_path / "b", LENGTHS, "bench.request_rate=1,4")
    for point, rate in zip(made.points, (100.0, 400.0, 100.0, 300.0), strict=True):
        measured(found, point, 50.0, output_tok_per_s=rate)
    assert "differ" not in said
    _, said = judged(found.path)
    works = [one.values["work"] for one in judged(found.path)[0].sentences if "work" in one.values]
    assert works == ["bench.request_rate=1.0", "bench.request_rate=4.0"], "rows compare at the same rate"


def test_other_arrivals_are_no_setting(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "bench.request_rate=2", "bench.seed=0,1")
    for point, mean in zip(made.points, (50.0, 90.0), strict=True):
        measured(found, point, mean, windows=3)
    verdict, said = judged(found.path)
    assert verdict.winner is None
    assert {"kinds", "only_for"} <= said.keys()


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
    name = f"{made.points[0].point} (parallel.max_model_len=8192)"
    assert said["note"] == {"point": name, "note": "the search ended at bench.search_most"}


@pytest.mark.parametrize(("windows", "outcome"), [(1, "undecided"), (2, "undecided_few")])
def test_too_few_windows_decide_nothing(tmp_path: Path, windows: int, outcome: str) -> None:
    found, made = planned(tmp_path / "a", LENGTHS)
    for point, mean in zip(made.points, (50.0, 60.0), strict=True):
        measured(found, point, mean, windows=windows)
    verdict, said = judged(found.path)
    assert (verdict.believe, verdict.winner, verdict.sentences[0].id) == ("care", None, outcome)
    assert said[outcome]["windows"] == windows
    first = page.worded({"id": outcome, "values": said[outcome]})
    assert first.startswith("Not decided: one window" if windows == 1 else "Not decided: only 2 windows")


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
    assert said["same_ahead"] == {"kinds": 2, "clear": 2, "setting": "parallel.max_model_len=8192"}
    assert (verdict.believe, verdict.winner) == ("care", None)
    works = [one.values["work"] for one in verdict.sentences if one.id == "ahead_for"]
    assert works == ["bench.input_tokens=64", "bench.input_tokens=512"]
    measured(found, made.points[3], 200.0, windows=3)
    verdict, said = judged(found.path)
    assert "differ" in said
    assert verdict.winner is None


@pytest.mark.parametrize(("long", "said_first"), [((250.0, 200.0), "same_ahead"), ((200.0, 500.0), "differ")])
def test_loads_of_one_service_are_told_by_name_over_several_kinds_of_work(
    tmp_path: Path, long: tuple[float, float], said_first: str
) -> None:
    found, made = planned(tmp_path / "a", "bench.input_tokens=64,512", "bench.concurrency=4,8")
    for point, mean in zip(made.points, (60.0, 50.0, *long), strict=True):
        measured(found, point, mean, windows=3)
    verdict, said = judged(found.path)
    assert verdict.sentences[0].id == said_first
    assert said[said_first].get("setting", "bench.concurrency=8") == "bench.concurrency=8"


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
    assert "vllm_cpu" in said["undecided"]["setting"] or "engine" not in said["undecided"]["setting"]
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
    assert said["few"] == {"point": f"{made.points[0].point} (parallel.max_model_len=8192)", "count": 12}
    measured(found, made.points[1], 60.0)
    found.point(made.points[1].point).requests.unlink()
    _, said = judged(found.path)
    assert "unknown" in said


def test_only_rows_within_the_objective_can_win(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "bench.slo.ttft_ms=500")
    measured(found, made.points[0], 50.0, ttft_ms_p99=900.0, slo_kept=False)
    measured(found, made.points[1], 60.0, ttft_ms_p99=300.0, slo_kept=True)
    verdict, said = judged(found.path)
    assert said["under_slo"] == {"count": 1, "of": 2, "slo": "ttft_ms_p99 ≤ 500"}
    assert said["only"]["setting"] == "parallel.max_model_len=32768"
    assert verdict.winner is None


def test_an_objective_in_which_less_is_better(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", LENGTHS, "results.objective=ttft_ms_p50")
    measured(found, made.points[0], 60.0)
    measured(found, made.points[1], 50.0)
    _, said = judged(found.path)
    assert said["undecided"]["value"] < said["undecided"]["second_value"]
    assert said["undecided"]["high"] > 0


def test_every_sentence_has_its_words_in_both_languages() -> None:
    text = (Path(page.FOLDER).parent / "verdict.py").read_text()
    outcomes = ("only", *OUTCOMES)
    ids = set(re.findall(r'Sentence\(\s*"(\w+)"', text)) | {
        "undecided_few",
        "same",
        "same_ahead",
        "differ",
        "none_clear",
        "kinds",
    }
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
    others = (
        "bench.repeats",
        "bench.concurrency",
        "bench.request_rate",
        "bench.window_s",
        "bench.slo.ttft_ms",
        "parallel.seed",
    )
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
    write_json(path, read_json(path) | {"output_tok_per_s": None})
    assert judged(found.path)[0].winner is None


def by_windows(found: SweepDir, point: Point, figures: Sequence[float]) -> None:
    """Write a row and the tokens per second of each of its windows."""
    measured(found, point, 50.0, windows=3, output_tok_per_s=figures[1])
    lines = ({"in_row": True, "output_tok_per_s": one} for one in figures)
    write_text(found.point(point.point).windows, "".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("rise", "outcome"), [(0.0, "ahead"), (0.5, "tie")])
def test_what_comes_later_is_not_better_where_all_windows_rise(tmp_path: Path, rise: float, outcome: str) -> None:
    """Windows of 100 and 102, each with the same noise; and a machine on which each is half a percent better."""
    found, made = planned(tmp_path / "a", LENGTHS)
    for number, (point, mean) in enumerate(zip(made.points, (100.0, 102.0 - 3 * rise), strict=True)):
        drift = (rise * (3 * number + place) for place in range(3))
        by_windows(found, point, [mean + up + noise for up, noise in zip(drift, (0.0, 0.1, -0.1), strict=True)])
    assert judged(found.path)[0].sentences[0].id == outcome


@pytest.mark.parametrize(("rise", "better", "outcome"), [(0.0, 8.0, "same_ahead"), (0.2, 0.0, "none_clear")])
def test_a_drift_lasts_over_all_lengths_of_a_service(tmp_path: Path, rise: float, better: float, outcome: str) -> None:
    """Three lengths one after the other: each comes nine windows later on the second service. Noise hides it in one."""
    found, made = planned(tmp_path / "a", LENGTHS, "bench.input_tokens=512,1024,2048")
    slow_first = sorted(made.points, key=lambda point: point.config.parallel.max_model_len)
    for number, point in enumerate(slow_first):
        mean = 100.0 + (better if number >= 3 else 0.0)
        noise = 0.2 * (number % 3 - 1)
        by_windows(found, point, [mean + rise * (3 * number + place) + noise * (place - 1) for place in range(3)])
    assert judged(found.path)[0].sentences[0].id == outcome


def test_work_without_a_figure_above_zero_tells_of_no_drift(tmp_path: Path) -> None:
    """Of the longest prompts no request keeps the objective: they neither win nor spoil what is said of the others."""
    sweep = ("bench.input_tokens=512,1024", "results.objective=goodput_per_s")
    found, made = planned(tmp_path / "a", LENGTHS, *sweep)
    for number, point in enumerate(made.points):
        value = 0.0 if point.config.bench.input_tokens == 1024 else 100.0 + 0.01 * number
        by_windows(found, point, [value, value * 1.001, value * 0.999])
        text = found.point(point.point).windows.read_text().replace("output_tok_per_s", "goodput_per_s")
        write_text(found.point(point.point).windows, text)
        measured(found, point, 50.0, windows=3, goodput_per_s=value)
    told = {one.values.get("work"): one.id for one in judge(read_run(found.path)).sentences}
    assert told["bench.input_tokens=512"] == "tie_for"


def test_one_start_against_two_that_lie_close_together_proves_little(tmp_path: Path) -> None:
    """One start of four was invalid; two that are alike by chance do not tell how far a third one may lie."""
    outcomes = {}
    for name, gap in (("near", 1.5), ("far", 30.0)):
        found, made = planned(tmp_path / name, LENGTHS, "parallel.seed=1,2")
        for point, mean in zip(made.points, (100.0, 100.4, 100.0 - gap), strict=False):
            by_windows(found, point, [mean - 0.1, mean, mean + 0.1])
        row(found, made.points[3], invalid_reason="lost")
        outcomes[name] = judged(found.path)[0].sentences[0].id
    assert outcomes == {"near": "tie", "far": "ahead"}
