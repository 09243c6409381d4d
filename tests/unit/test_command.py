"""Config to `vllm serve` command line."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from core_help import ROOT, change, config
from hypothesis import given
from hypothesis import strategies as st

from jobs.core import layout
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.layout import Placement
from jobs.engines.ascend import release, releases
from jobs.engines.vllm import command


def place(rank: int, ranks: int = 2) -> Placement:
    return Placement(rank, ranks, f"10.0.0.{rank + 1}", "eth0", "10.0.0.1", "8000", "8001")


def lines(made: Config, ranks: int = 2) -> list[list[str]]:
    return [command.argv(made, place(rank, ranks)) for rank in range(ranks)]


def value(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


ONLY_HEADLESS = ("--headless", "--data-parallel-start-rank")


@pytest.mark.parametrize("parallel", ["dp2_tp8", "dp4_tp4", "dp2_tp1"])
def test_ranks_differ_only_in_what_the_rank_decides(parallel: str) -> None:
    made = config(f"parallel={parallel}")
    head, headless = lines(made)
    start = headless.index("--data-parallel-start-rank")
    first_of_second_node = made.parallel.data_parallel_size_local
    assert headless[start + 1] == str(first_of_second_node)
    without = headless[:start] + headless[start + 2 :]
    without.remove("--headless")
    assert without == head
    assert not set(ONLY_HEADLESS) & set(head)


def test_uneven_nodes_start_where_the_nodes_before_end() -> None:
    made = change(
        config("parallel=dp4_tp4"),
        parallel__data_parallel_size=4,
        parallel__data_parallel_size_local=(2, 1, 1),
    )
    all_lines = lines(made, 3)
    assert [value(words, "--data-parallel-size-local") for words in all_lines] == ["2", "1", "1"]
    assert [value(words, "--data-parallel-start-rank") for words in all_lines] == [None, "2", "3"]
    assert ["--headless" in words for words in all_lines] == [False, True, True]


@given(st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_start_ranks_cover_all_data_parallel_ranks_without_a_gap(sizes: list[int]) -> None:
    made = change(
        config("parallel=dp2_tp1"),
        parallel__data_parallel_size=sum(sizes),
        parallel__data_parallel_size_local=tuple(sizes),
    )
    covered: list[int] = []
    for words in lines(made, len(sizes)):
        start = int(value(words, "--data-parallel-start-rank") or 0)
        covered += range(start, start + int(value(words, "--data-parallel-size-local") or 0))
    assert covered == list(range(sum(sizes)))


@pytest.mark.parametrize(
    ("given_value", "words"),
    [
        (None, []),
        (True, ["--flag"]),
        (False, ["--no-flag"]),
        (0, ["--flag", "0"]),
        ("", ["--flag", ""]),
        ("a b $(c)", ["--flag", "a b $(c)"]),
        ([1, "b c"], ["--flag", "1", "b c"]),
        ({"a": {"b": [1, None, True]}}, ["--flag", '{"a":{"b":[1,null,true]}}']),
    ],
)
def test_how_a_further_flag_is_rendered(given_value: Any, words: list[str]) -> None:
    bare = command.argv(change(config(), engine__args={}), place(0))
    assert command.argv(change(config(), engine__args={"flag": given_value}), place(0)) == [*bare, *words]


@pytest.mark.parametrize("key", ["swap_space", "swap-space", "--swap-space"])
def test_a_flag_may_be_written_with_dashes_or_underscores(key: str) -> None:
    assert command.argv(change(config(), engine__args={key: 4}), place(0))[-2:] == ["--swap-space", "4"]


@pytest.mark.parametrize(
    ("key", "flag"),
    [
        ("parallel__block_size", "--block-size"),
        ("parallel__max_num_seqs", "--max-num-seqs"),
        ("parallel__gpu_memory_utilization", "--gpu-memory-utilization"),
        ("parallel__seed", "--seed"),
        ("model__quantization", "--quantization"),
        ("model__served_model_name", "--served-model-name"),
        ("engine__additional_config", "--additional-config"),
    ],
)
def test_a_null_key_is_not_emitted(key: str, flag: str) -> None:
    assert flag in command.argv(config(), place(0))
    assert flag not in command.argv(change(config(), **{key: None}), place(0))


def test_switches() -> None:
    on = change(
        config(),
        parallel__enable_prefix_caching=True,
        parallel__enable_expert_parallel=True,
        model__trust_remote_code=True,
    )
    off = change(on, parallel__enable_expert_parallel=False, model__trust_remote_code=False)
    neither = change(on, parallel__enable_prefix_caching=None)
    assert {"--enable-prefix-caching", "--enable-expert-parallel", "--trust-remote-code"} <= set(lines(on)[0])
    assert not {"--no-enable-expert-parallel", "--no-trust-remote-code", "--trust-remote-code"} & set(lines(off)[0])
    assert not [word for word in lines(neither)[0] if "prefix-caching" in word]


@pytest.mark.parametrize(("value", "word"), [(True, "--no-async-scheduling"), (False, "--async-scheduling")])
def test_a_flag_that_is_written_with_no_in_front_is_the_same_flag(value: bool, word: str) -> None:
    made = change(config(), engine__args={"no_async-scheduling": value})
    assert word in lines(made)[0]
    assert command.settings(made)["async-scheduling"] is not value


def test_a_flag_that_is_given_in_two_spellings_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--enforce-eager is set by engine\.args\.enforce_eager too"):
        command.check_args({"enforce_eager": True, "no-enforce-eager": True})
    command.check_args({"enforce_eager": None, "no-enforce-eager": True})


def test_program_and_model_are_found_from_the_projects_root() -> None:
    words = command.argv(config("engine=simulator", "model=tiny_llama"), place(0))
    assert words[:5] == [
        sys.executable,
        "-m",
        "jobs.engines.simulator",
        "serve",
        str(ROOT / ".engines/models/tiny_llama"),
    ]


def test_additional_config_is_compact_json() -> None:
    text = value(command.argv(config(), place(0)), "--additional-config")
    assert text is not None
    assert " " not in text
    assert json.loads(text)["torchair_graph_config"] == {"enabled": True}


def test_every_flag_that_is_rendered_by_default_is_a_flag_of_the_release() -> None:
    known = release("0.9.1").flags.keys()
    for words in lines(config("experiment=article")):
        flags = [word[2:] for word in words if word.startswith("--")]
        assert not {flag.removeprefix("no-") for flag in flags} - known


@pytest.mark.parametrize("name", sorted(command.OWNED))
@pytest.mark.parametrize("spelling", ["{}", "--{}", "{_}", "no-{}"])
def test_an_owned_flag_is_refused_in_every_spelling(name: str, spelling: str) -> None:
    key = spelling.replace("{_}", name.replace("-", "_")).replace("{}", name)
    with pytest.raises(ConfigError) as caught:
        command.check_args({"swap-space": 1, key: "x"})
    assert caught.value.key == f"engine.args.{key}"
    assert f"--{name}" in caught.value.reason


@pytest.mark.parametrize(("name", "instead"), command.CONFIGURED.items())
def test_a_flag_with_a_key_of_its_own_is_refused_and_the_key_is_named(name: str, instead: str) -> None:
    with pytest.raises(ConfigError) as caught:
        command.check_args({name: 1})
    assert instead in caught.value.remedy
    node: Any = config()
    for part in instead.split("."):
        node = getattr(node, part)  # it exists


@pytest.mark.parametrize("name", ["data-parallel-addr", "data-parallel-rpc", "head", "por"])
def test_an_abbreviated_owned_flag_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="the tool owns"):
        command.check_args({name: 1})


def test_owned_and_configured_flags_are_flags_of_the_release() -> None:
    known = {flag for name in releases() for flag in release(name).flags}
    assert command.OWNED.keys() | command.CONFIGURED.keys() <= known


@pytest.mark.parametrize("name", releases())
def test_every_flag_that_says_where_a_rank_stands_is_owned_or_has_a_key(name: str) -> None:
    ours = {flag for flag in release(name).flags if flag.startswith("data-parallel-")}
    # A supervisor on its own port is not started unless one of the load balancers is asked for.
    assert ours - {"data-parallel-supervisor-port"} <= command.OWNED.keys() | command.CONFIGURED.keys()


# --- where a rank stands


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        ({}, (1, 1)),
        ({"parallel__data_parallel_size": 4, "parallel__data_parallel_size_local": 2}, (2, 2)),
        ({"parallel__data_parallel_size": 1}, (1,)),
        ({"parallel__data_parallel_size": 3, "parallel__data_parallel_size_local": (2, 1)}, (2, 1)),
        ({"parallel__data_parallel_size": 2, "cluster__nodes": 2}, (1, 1)),
    ],
)
def test_local_sizes(values: dict[str, Any], sizes: tuple[int, ...]) -> None:
    assert layout.local_sizes(change(config("parallel=dp2_tp1"), **values)) == sizes


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"parallel__data_parallel_size": 3, "parallel__data_parallel_size_local": 2}, "data_parallel_size", "[2]"),
        (
            {"parallel__data_parallel_size": 3, "parallel__data_parallel_size_local": (1, 1)},
            "data_parallel_size",
            "add up to 2",
        ),
        ({"cluster__nodes": 3}, "data_parallel_size", "[1, 1, 1]"),
        ({"cluster__nodes": 3, "parallel__data_parallel_size_local": (1, 1)}, "nodes", "2 nodes"),
        ({"parallel__tensor_parallel_size": 16}, "tensor_parallel_size", "1 x 16 = 16 NPUs and has 8"),
        ({"cluster__npus_per_node": 4}, "tensor_parallel_size", "node 0 needs 1 x 8 = 8"),
        (
            {"parallel__data_parallel_size": 3, "parallel__data_parallel_size_local": (1, 2)},
            "tensor_parallel_size",
            "node 1",
        ),
    ],
)
def test_layouts_that_cannot_be(values: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        layout.local_sizes(change(config(), **values))
    assert caught.value.key.endswith(key)
    assert words in caught.value.reason


def test_what_is_known_before_there_is_an_allocation() -> None:
    head, headless = layout.planned(config("cluster=slurm"))
    assert (head.rank, head.role, head.ranks) == (0, "head", 2)
    assert (headless.rank, headless.role) == (1, "headless")
    assert (head.address, headless.address) == ("{master_address}", "{address}")
    assert (head.interface, head.api_port, head.rpc_port) == ("{interface}", "{api_port}", "{rpc_port}")
    here = layout.planned(config("cluster=local"))
    assert {(p.address, p.master_address, p.interface) for p in here} == {("127.0.0.1", "127.0.0.1", "lo")}
