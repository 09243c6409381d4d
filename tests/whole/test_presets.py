"""The sweeps that an experiment brings of its own, and the layouts over several nodes."""

from __future__ import annotations

import json

import pytest
from core_help import ROOT, change, composer, config

from jobs.core.errors import ConfigError
from jobs.core.layout import local_sizes, planned, span
from jobs.engines.vllm import command
from jobs.sweep import compose, plan, road
from jobs.sweep.record import as_json


def preset(*overrides: str) -> plan.Plan:
    return road.plan(compose.expand([*overrides, "cluster=slurm", "results.root=/there/are/no/runs"]), composer)


def flags(made: plan.Plan, service: int = 0, rank: int = 0) -> list[str]:
    words: list[str] = as_json(made)["services"][service]["ranks"][rank]["argv"]
    return words


def test_long_context_sweeps_lengths_and_layouts_with_full_prompts() -> None:
    made = preset("experiment=long_context")
    asked = {
        (
            p.config.parallel.tensor_parallel_size,
            p.config.parallel.decode_context_parallel_size,
            p.config.parallel.pipeline_parallel_size,
            p.config.parallel.max_model_len,
        )
        for p in made.points
    }
    lengths = [8192, 16384, 32768, 65536, 131072]
    layouts = ((8, None, None), (8, 8, None), (16, None, None), (8, None, 2))
    assert asked == {(*layout, length) for layout in layouts for length in lengths}
    assert made.refused == {}, "at this utilization and buffer size every layout holds one request"
    for point in made.points:
        bench = point.config.bench
        assert bench.input_tokens + bench.output_tokens == point.config.parallel.max_model_len
    for index, service in enumerate(made.services):
        words = flags(made, index)
        hccl = service.config.hccl
        assert (hccl.buffsize, hccl.intra_pcie_enable, hccl.intra_roce_enable) == (200, 1, 0)
        assert (service.config.engine.env["OMP_NUM_THREADS"], "VLLM_USE_V1" in service.config.engine.env) == (1, False)
        dcp = service.config.parallel.decode_context_parallel_size
        assert ("--decode-context-parallel-size" in words) == (dcp is not None)
        assert "--additional-config" not in words, "gone from 0.12 on"
        assert json.loads(words[words.index("--compilation-config") + 1]) == {"cudagraph_mode": "FULL_DECODE_ONLY"}


@pytest.mark.parametrize("lever", ["none", "chunk_4k", "chunk_16k", "long_prefill_threshold", "hccl_pipeline", "mtp1"])
def test_levers_of_long_contexts(lever: str) -> None:
    words = ("experiment=long_context", "engine.release=0.23.0", "parallel=dp2_tp8", "parallel.max_model_len=32768")
    made = preset(*words, f"lever={lever}")
    assert not [one for one in made.findings if one.finding.severity == "error"]
    flag = {"long_prefill_threshold": "--long-prefill-token-threshold", "mtp1": "--speculative-config"}.get(lever)
    assert flag is None or flag in flags(made)
    tokens = {"chunk_4k": "4096", "chunk_16k": "16384"}.get(lever, "8192")
    assert flags(made)[flags(made).index("--max-num-batched-tokens") + 1] == tokens
    env = as_json(made)["services"][0]["ranks"][0]["env"]
    assert env.get("HCCL_ALGO") == ("level0:NA;level1:pipeline" if lever == "hccl_pipeline" else None)


def test_chunks_that_follow_the_context_need_stages() -> None:
    words = ("experiment=long_context", "engine.release=0.23.0", "lever=dynamic_chunks", "parallel.max_model_len=32768")
    sent = flags(preset(*words, "parallel=pp2_tp8"))
    assert json.loads(sent[sent.index("--additional-config") + 1])["profiling_chunk_config"] == {"enabled": True}


def test_the_command_for_0_9_1_that_stands_in_the_preset_plans_all_its_points() -> None:
    [words] = [words for words in commands("long_context") if "engine.release=0.9.1" in words]
    made = preset(*words)
    assert [p.config.parallel.max_model_len for p in made.points] == [8192, 16384, 32768, 65536, 131072]
    assert not [
        one.finding for one in made.findings if one.finding.rule.startswith("N") or one.finding.severity == "error"
    ]
    assert {"8192", "16384", "32768"} <= {flags(made, n)[flags(made, n).index("--max-model-len") + 1]
                                          for n in range(len(made.services))}  # fmt: skip


def test_two_replicas_against_one_service_of_both_nodes() -> None:
    made = preset("experiment=two_replicas")
    assert made.refused == {} and not [one for one in made.findings if one.finding.severity == "error"]
    layouts = {(p.config.parallel.replicas, p.config.parallel.data_parallel_size) for p in made.points}
    assert layouts == {(1, 2), (2, 1)} and len(made.points) == 6 and len(made.services) == 2
    assert {allocation.nodes for allocation in made.allocations} == {2}
    for index, service in enumerate(made.services):
        words = flags(made, index, rank=1)
        assert ("--headless" in words) == (service.config.parallel.replicas == 1)
        assert words[words.index("--data-parallel-size") + 1] == str(service.config.parallel.data_parallel_size)


def test_long_context_with_less_memory_keeps_a_row_for_what_cannot_fit() -> None:
    made = preset("experiment=long_context", "parallel.gpu_memory_utilization=0.85", "parallel=dp2_tp8,dp2_tp8_dcp8")
    refused = [point for point in made.points if point.point in made.refused]
    assert [(p.config.parallel.decode_context_parallel_size, p.config.parallel.max_model_len) for p in refused] == [
        (None, 131072)
    ]
    assert len(made.services) == 9


def test_expert_parallel_sweeps_what_0_9_1_has_and_shows_it() -> None:
    made = preset("experiment=expert_parallel")
    assert len(made.points) == 2 * 3 * 3
    assert len(made.services) == 6
    assert {"engine.env.VLLM_ASCEND_ENABLE_CHUNK_MC2", "engine.env.VLLM_ASCEND_ENABLE_MOE_ALL2ALL_SEQ"} <= set(
        made.swept
    )
    later = preset("experiment=expert_parallel", "engine.release=0.13.0", "moe=flat,hierarchical")
    assert {point.values["hccl.intra_pcie_enable"] for point in later.points} == {None, 1}


def commands(name: str) -> list[list[str]]:
    text = (ROOT / f"conf/experiment/{name}.yaml").read_text()
    return [line.partition(" -m ")[2].split() for line in text.splitlines() if " -m experiment=" in line]


@pytest.mark.parametrize("words", commands("expert_parallel"), ids=" ".join)
def test_the_commands_that_stand_in_the_preset_plan_services_that_differ(words: list[str]) -> None:
    made = preset(*words)
    choices = len(words[-1].split(","))
    assert (len(made.points), len(made.services)) == (2 * 3 * choices, 2 * choices)
    assert not [one for one in made.findings if one.finding.rule.startswith("N")]


@pytest.mark.parametrize("release", ["0.11.0", "0.23.0"])
def test_a_sweep_over_what_the_release_does_not_read_is_refused(release: str) -> None:
    with pytest.raises(ConfigError, match="does not read it: points that differ in it alone") as caught:
        preset("experiment=expert_parallel", f"engine.release={release}")
    assert caught.value.key == "engine.env.VLLM_ASCEND_ENABLE_CHUNK_MC2"
    # One value for all is a warning, and releases that do read it may be in the same sweep.
    one = preset("experiment=expert_parallel", f"engine.release=0.9.1,{release}", "moe=chunk_mc2")
    assert {found.finding.rule for found in one.findings} >= {"N5"}


def test_the_command_line_overrules_the_sweep_of_an_experiment() -> None:
    made = preset("experiment=long_context", "parallel=dp2_tp8", "parallel.max_model_len=16384")
    assert len(made.points) == 1
    assert [word.partition("=")[0] for word in compose.expand(["experiment=demo"])[0]] == ["experiment"]


@pytest.mark.parametrize(("layout", "sizes"), [("dp1_tp16", ("16", None)), ("pp2_tp8", ("8", "2"))])
def test_one_rank_over_two_nodes(layout: str, sizes: tuple[str, str | None]) -> None:
    made = config(f"parallel={layout}", "engine.release=0.13.0", "cluster=slurm")
    assert (span(made), local_sizes(made)) == (2, (1, 0))
    head, other = (command.argv(made, place) for place in planned(made))
    for rank, words in enumerate((head, other)):
        assert words[words.index("--nnodes") + 1] == "2"
        assert words[words.index("--node-rank") + 1] == str(rank)
        assert words[words.index("--master-addr") + 1] == "{master_address}"
        assert words[words.index("--master-port") + 1] == "{rpc_port}"
        assert not [word for word in words if word.startswith("--data-parallel")]
        assert ("--headless" in words) == (rank == 1)
        assert words[words.index("--tensor-parallel-size") + 1] == sizes[0]
        stages = words[words.index("--pipeline-parallel-size") + 1] if sizes[1] else None
        assert stages == sizes[1] and ("--pipeline-parallel-size" in words) == (sizes[1] is not None)
    assert preset(f"parallel={layout}", "engine.release=0.13.0").allocations[0].nodes == 2


@pytest.mark.parametrize(
    ("values", "spans"),
    [
        ({}, 1),
        ({"parallel__tensor_parallel_size": 4, "cluster__npus_per_node": 2}, 2),
        ({"parallel__prefill_context_parallel_size": 2}, 2),
        ({"parallel__data_parallel_size": 2, "parallel__tensor_parallel_size": 16}, 1),
        ({"parallel__tensor_parallel_size": 12}, 1),
        ({"parallel__pipeline_parallel_size": 2}, 2),
        ({"parallel__pipeline_parallel_size": 2, "parallel__tensor_parallel_size": 4}, 1),
        ({"parallel__pipeline_parallel_size": 2, "parallel__tensor_parallel_size": 4, "cluster__nodes": 2}, 2),
        ({"parallel__pipeline_parallel_size": 4, "parallel__tensor_parallel_size": 1, "cluster__nodes": 2}, 2),
        ({"parallel__pipeline_parallel_size": 3, "parallel__tensor_parallel_size": 1, "cluster__nodes": 2}, 1),
    ],
)
def test_a_rank_reaches_over_nodes_only_alone_and_in_whole_nodes(values: dict[str, int], spans: int) -> None:
    base = {"parallel__data_parallel_size": 1, "parallel__data_parallel_size_local": 1}
    made = change(config("parallel=dp2_tp8"), **(base | values))
    assert span(made) == spans
    if made.parallel.tensor_parallel_size > 8 and spans == 1:
        with pytest.raises(ConfigError, match="NPUs and has 8"):
            local_sizes(made)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["parallel.decode_context_parallel_size=3"], "parallel.decode_context_parallel_size"),
        (["parallel.prefill_context_parallel_size=2"], "parallel.tensor_parallel_size"),
        (["engine.args.nnodes=2"], "engine.args.nnodes"),
        (["engine.args.pipeline-parallel-size=2"], "engine.args.pipeline-parallel-size"),
        (["engine.args.decode-context-parallel-size=8"], "engine.args.decode-context-parallel-size"),
    ],
)
def test_sizes_that_cannot_be_are_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preset("engine.release=0.13.0", *overrides)
    assert caught.value.key == key
