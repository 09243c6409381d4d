"""Studies: what is refused, and what an invalid trial is worth."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from core_help import composer

from jobs.cli import study
from jobs.cli.launch import Outcome
from jobs.cli.through_hydra import Ended
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.sweep_settings import Launch, Results
from jobs.results.columns import high_is_best, low_is_best
from jobs.results.row import FIGURES
from jobs.sweep import road


def config(objective: str = "output_tok_per_s", **launch: Any) -> Config:
    return Config(results=Results(objective=objective), launch=Launch(**launch))


@pytest.mark.parametrize(
    ("objective", "direction"),
    [
        ("output_tok_per_s", "maximize"),
        ("ttft_ms_p99", "minimize"),
        ("found_concurrency", "maximize"),
        ("load_s", "minimize"),
    ],
)
def test_an_objective_has_its_direction(objective: str, direction: str) -> None:
    study.check(config(objective), direction)


@pytest.mark.parametrize(
    ("asked", "direction", "key"),
    [
        (config("output_tok"), "maximize", "results.objective"),
        (config("engine_tokens"), "maximize", "results.objective"),
        (config("output_tok_per_s"), "minimize", "hydra.sweeper.direction"),
        (config("e2el_ms_p90"), "maximize", "hydra.sweeper.direction"),
        (config(follow=False), "maximize", "launch.follow"),
    ],
)
def test_studies_that_cannot_be_are_refused(asked: Config, direction: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        study.check(asked, direction)
    assert error.value.key == key


def test_every_rate_is_best_when_high() -> None:
    rates = {name for name in FIGURES if name.endswith(("tok_per_s", "request_per_s", "goodput_per_s", "per_user"))}
    assert all(map(high_is_best, rates))
    worse = ("preemptions", "failed", "waiting_mean", "kv_use_max", "head_npu_power_w", "ttft_ms_p50_max", "load_s")
    assert all(map(low_is_best, worse))
    assert not any(map(high_is_best, worse))


def test_a_typing_error_in_the_objective_is_told_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="output_tok_per_s") as error:
        road.plan([["results.objective=output_toks", "cluster=local"]], composer)
    assert error.value.key == "results.objective"


def test_an_invalid_row_is_the_worst_and_a_missing_figure_too() -> None:
    rows = {
        "a": {"valid": True, "ttft_ms_p99": 12.0},
        "b": {"valid": False, "ttft_ms_p99": 1.0},
        "c": {"valid": True, "ttft_ms_p99": None},
    }
    outcome = Outcome(("a", "b", "c", None, "lost"), rows, column="ttft_ms_p99", worst=study.worst("minimize"))
    assert [outcome.objective(index) for index in range(5)] == [12.0, *[math.inf] * 4]
    assert study.worst("maximize") == -math.inf


def test_trials_that_cannot_be_asked_do_not_end_the_study(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "start", lambda *_: pytest.fail("nothing may be submitted"))
    best: dict[str, float] = {}
    outcome = study.launch([["bench.input_tokens=9000", "cluster=local"]], composer, "maximize", best)
    assert outcome.objective(0) == -math.inf and best == {}
    assert "parallel.max_model_len" in capsys.readouterr().out


def test_a_dry_run_of_a_study_shows_its_first_trials_and_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Ended) as ended:
        study.launch([["cluster=local", "launch.dry_run=true"]], composer, "maximize", {})
    assert ended.value.code == 0
    assert "these are the first trials of the study; nothing was submitted" in capsys.readouterr().out


def test_the_best_of_all_batches_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"a": {"valid": True, "output_tok_per_s": 7.0}, "b": {"valid": True, "output_tok_per_s": 9.0}}
    monkeypatch.setattr(study, "_batch", lambda *_: Outcome(("a", "b"), rows, worst=-math.inf))
    best = {"bench.seed=0": 8.0}
    study.launch([["bench.seed=1"], ["bench.seed=2"]], composer, "maximize", best)
    assert best == {"bench.seed=2": 9.0}
    assert "best so far: output_tok_per_s = 9 with bench.seed=2" in capsys.readouterr().out


def test_optuna_takes_the_worst_value() -> None:
    optuna = pytest.importorskip("optuna")
    for direction in ("minimize", "maximize"):
        made = optuna.create_study(direction=direction)
        for value in (study.worst(direction), 5.0, study.worst(direction)):
            trial = made.ask()
            trial.suggest_categorical("x", [1, 2])
            made.tell(trial, value)
        assert made.best_value == 5.0
        assert replace(Outcome(), worst=1.0).objective(0) == 1.0
