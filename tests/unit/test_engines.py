"""What every engine must hold to, over all that are registered."""

from __future__ import annotations

import json

import pytest
from core_help import change, config

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.layout import planned
from jobs.core.registry import ENGINES
from jobs.core.schema import build
from jobs.engines.base import EngineLog, Finding, Traits, engine_of, is_simulated
from jobs.engines.checkpoint.architecture import required
from jobs.engines.prediction import Prediction

every = pytest.mark.parametrize("name", ENGINES.names())


def of(name: str) -> Config:
    """Return a config that this engine can serve; one of another distribution has no preset in conf/."""
    return config(f"engine={name}") if name in ENGINES.own else change(config("cluster=local"), engine__name=name)


@every
def test_it_says_what_it_is(name: str) -> None:
    traits = engine_of(of(name)).traits
    assert isinstance(traits, Traits)
    assert not (traits.npus and traits.simulated)
    assert is_simulated(name) == traits.simulated


@every
def test_the_command_lines_of_all_ranks_are_texts_that_name_the_model(name: str) -> None:
    made = of(name)
    places = planned(made)
    assert len(places) > 1
    argvs = [engine_of(made).argv(made, place) for place in places]
    for argv in argvs:
        assert argv and all(type(word) is str for word in argv)
        assert made.model.path in " ".join(argv)
    assert argvs[0] != argvs[1], "the ranks must know which one they are"
    assert argvs == [engine_of(made).argv(made, place) for place in places], "the audit renders them a second time"


@every
def test_variables_are_texts_and_what_the_user_sets_is_among_them(name: str) -> None:
    made = change(of(name), engine__env={"SITE_VARIABLE": 7, "UNSET": None})
    for place in planned(made):
        variables = engine_of(made).environment(made, place)
        assert all(type(key) is str and type(value) is str for key, value in variables.items())
        assert variables["SITE_VARIABLE"] == "7" and "UNSET" not in variables


@every
def test_its_own_preset_has_no_error(name: str) -> None:
    found = list(engine_of(of(name)).findings(of(name)))
    assert all(isinstance(one, Finding) for one in found)
    assert [one for one in found if one.severity == "error"] == []


@every
def test_memory_is_a_prediction_or_one_clear_error(name: str) -> None:
    made = of(name)
    try:
        found = engine_of(made).memory(made, required)
    except ConfigError as error:
        assert error.key and error.reason
        return
    assert isinstance(found, Prediction)
    assert found.kv_tokens_per_rank >= found.sequences(made.parallel.max_model_len) * made.parallel.max_model_len
    assert json.loads(json.dumps(found.as_json()))


@every
@pytest.mark.parametrize("text", ["", "nonsense\n\x00\x1b[0m \ufffd" * 100])
def test_a_log_that_says_nothing_is_no_figure(name: str, text: str) -> None:
    assert engine_of(of(name)).read_log(text) == EngineLog()


def test_a_name_that_is_not_registered_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="valid values are vllm_ascend, vllm_cpu, simulator") as error:
        build({"engine": {"name": "vlm_cpu"}})
    assert error.value.key == "engine.name"


def test_rows_of_an_engine_that_is_not_installed_here_are_measurements() -> None:
    assert not is_simulated("of_another_site") and not is_simulated(None)
