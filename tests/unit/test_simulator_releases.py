"""The rehearsal engine reads the command line as the chosen release does."""

from __future__ import annotations

import pytest
from core_help import config
from simulator_help import R1

from jobs.core import layout
from jobs.engines.ascend import release, releases
from jobs.engines.simulator.settings import RehearsalSpec, Settings, StartError, converter, parse, settle
from jobs.engines.vllm import command

FILLED = {"{api_port}": "8000", "{rpc_port}": "9000", "{master_address}": "127.0.0.1"}


def settled(name: str, *argv: str) -> Settings:
    return settle(parse(["serve", "m", *argv], release(name)).args, RehearsalSpec(shape=R1, release=name), {})


@pytest.mark.parametrize("name", releases())
def test_what_is_rendered_for_a_release_is_read_as_it_was_meant(name: str) -> None:
    made = config("engine=simulator", f"engine.release={name}")
    for place in layout.planned(made):
        words = [FILLED.get(word, word) for word in command.argv(made, place)]
        line = parse(words[words.index("serve") :], release(name))
        read = settle(line.args, RehearsalSpec(shape=made.model.shape, release=name), {})
        assert (read.headless, read.local) == (place.rank > 0, range(place.rank, place.rank + 1))
        assert (read.max_model_len, read.max_num_seqs, read.layout.dp) == (8192, 256, 2)
        assert line.deprecated == ()


@pytest.mark.parametrize("name", releases())
def test_every_type_of_the_data_has_a_converter(name: str) -> None:
    for flag in release(name).flags.values():
        assert flag.action in ("store_true", "boolean") or converter(flag.type or "str")


def test_a_flag_of_another_release_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parse(["serve", "m", "--num-scheduler-steps", "8"], release("0.9.1"))
    parse(["serve", "m", "--async-scheduling"], release("0.11.0"))
    for name, flag in (("0.11.0", "--num-scheduler-steps=8"), ("0.9.1", "--async-scheduling")):
        with pytest.raises(SystemExit) as caught:
            parse(["serve", "m", flag], release(name))
        assert caught.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_torchair_is_gone_from_0_12_on_and_says_nothing() -> None:
    both = ("--enforce-eager", "--additional-config", '{"torchair_graph_config": {"enabled": true}}')
    with pytest.raises(StartError, match="graph mode and eager mode"):
        settled("0.11.0", *both)
    assert settled("0.13.0", *both)


def test_a_length_that_the_engine_chooses() -> None:
    assert settled("0.23.0", "--max-model-len", "auto").max_model_len == R1.max_position_embeddings


@pytest.mark.parametrize(("name", "level"), [("0.13.0", "3"), ("0.23.0", "1")])
def test_the_optimization_level(name: str, level: str) -> None:
    assert parse(["serve", "m", "--optimization-level", level], release(name)).args.optimization_level == level
