"""Settings of one release for another: the article's golden files, the tables, and what must always hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from core_help import change, check_golden, composer, config, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli import explain
from jobs.core.config import Config
from jobs.engines.ascend import migration, release, releases
from jobs.engines.ascend.migration import Change, defaults, migrate
from jobs.engines.vllm.findings import question
from jobs.sweep import check, compose
from jobs.sweep.record import as_json

PRESETS = (
    ("experiment=article",),
    ("engine=vllm_ascend", "cluster=slurm"),
    ("engine=vllm_ascend", "cluster=slurm", "parallel=dp4_tp4"),
    ("engine=simulator",),
)


def as_written(*overrides: str) -> compose.Written:
    [one] = compose.written([overrides], composer)
    return one


def migrated(made: Config, to: str, explicit: tuple[str, ...] = ()) -> tuple[Config, dict[str, Change]]:
    """Return the config for another release, and the changes by key."""
    after, changes = migrate(change(made, engine__release=to), explicit)
    return after, {one.key: one for one in changes}


def old(**values: Any) -> Config:
    """The default preset, written for 0.9.1, with some leaves changed."""
    return change(config("engine=vllm_ascend", "cluster=slurm"), **values)


@pytest.mark.parametrize("name", releases())
def test_the_articles_configuration_for_each_release(name: str, tmp_path: Path) -> None:
    made = config("experiment=article", f"engine.release={name}")
    [service] = as_json(plan_of(made))["services"]
    lines = []
    for rank in service["ranks"]:
        lines += [f"# rank {rank['rank']} ({rank['role']})"]
        lines += [f"{key}={value}" for key, value in sorted(rank["env"].items())]
        lines += [*rank["argv"], ""]
    check_golden(f"release_{name}.txt", "\n".join(lines), tmp_path)


def test_from_the_article_to_0_23() -> None:
    one = as_written("experiment=article", "engine.release=0.23.0")
    after, changes = migrated(one.config, "0.23.0", one.explicit)
    assert {key: (c.before, c.after) for key, c in changes.items()} == {
        "engine.args.compilation-config": (None, {"cudagraph_mode": "FULL_DECODE_ONLY"}),
        "engine.additional_config.torchair_graph_config": ({"enabled": True}, None),
        "engine.additional_config.ascend_scheduler_config": ({"enabled": False}, None),
        "engine.env.VLLM_USE_V1": (1, None),
        "engine.env.OMP_NUM_THREADS": (100, 1),
        "hccl.buffsize": (1024, 256),  # the recipe's 200 is for 16 sequences; 256 need 240
        "hccl.intra_pcie_enable": (None, 1),
        "hccl.intra_roce_enable": (None, 0),
        "hccl.op_expansion_mode": ("AIV", None),
        "engine.env.VLLM_ENGINE_READY_TIMEOUT_S": (None, 5400),
    }
    assert all(c.reason and len(c.source) > 5 for c in changes.values())
    assert not after.engine.additional_config
    assert after.engine.written_for == "0.23.0"
    assert one.config.engine.additional_config  # the config as written is not touched


def test_for_its_own_release_everything_stays_as_written() -> None:
    one = as_written("experiment=article")
    assert migrate(one.config, one.explicit) == (one.config, ())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", releases())
def test_a_migrated_preset_has_no_errors_and_names_only_what_the_release_has(
    preset: tuple[str, ...], name: str
) -> None:
    made = config(*preset, f"engine.release={name}")
    wrong = [f for f in check.findings(made) if f.severity == "error" or (f.rule.startswith("N") and f.rule != "N4")]
    assert wrong == []
    known = release(name)
    for flags in question(made).ranks:
        assert {flag for flag, value in flags.items() if value is not None} <= set(known.flags)
    again, changes = migrate(made)
    assert (again, changes) == (made, ())


@given(
    st.sampled_from(PRESETS),
    st.sampled_from(releases()),
    st.integers(1, 512),
    st.sampled_from([None, 1, 10, 64, 100]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_preset_says_no_dead_name_is_left(
    preset: tuple[str, ...], name: str, seqs: int, threads: int | None, scheduler: bool
) -> None:
    written = as_written(*preset).config
    extra = dict(written.engine.additional_config or {}) | {"ascend_scheduler_config": {"enabled": scheduler}}
    threads_of = dict(written.engine.env) | {"OMP_NUM_THREADS": threads}
    made = change(written, parallel__max_num_seqs=seqs, engine__additional_config=extra, engine__env=threads_of)
    after, changes = migrated(made, name)
    known = release(name)
    assert set(after.engine.additional_config or {}) <= set(known.keys)
    assert {k for k, v in after.engine.env.items() if v is not None and k.startswith("VLLM_")} <= set(known.variables)
    # Only values of official recipes are replaced by the recipe's; any other value is the preset's own.
    if threads in (None, 64):
        assert after.engine.env["OMP_NUM_THREADS"] == threads
    for key, one in changes.items():
        assert one.before != one.after, key


def test_what_the_caller_says_stays_and_is_judged() -> None:
    words = (
        "experiment=article",
        "engine.release=0.23.0",
        "engine.env.OMP_NUM_THREADS=100",
        "hccl.buffsize=1024",
        "engine.additional_config={torchair_graph_config: {enabled: true}}",
    )
    made = config(*words)
    assert made.engine.env["OMP_NUM_THREADS"] == 100
    assert made.hccl.buffsize == 1024
    assert {f.rule for f in check.findings(made) if f.severity == "error"} == {"R12"}
    # The other section stands in the same mapping, which the caller has set.
    assert set(made.engine.additional_config or {}) == {"torchair_graph_config", "ascend_scheduler_config"}


def test_one_key_of_the_caller_does_not_keep_the_others() -> None:
    made = config("experiment=article", "engine.release=0.23.0", "+engine.additional_config.enable_mlapo=false")
    assert made.engine.additional_config == {"enable_mlapo": False}
    assert made.engine.args["compilation-config"] == {"cudagraph_mode": "FULL_DECODE_ONLY"}


def test_a_chosen_option_of_a_group_is_the_callers_word() -> None:
    flat, hierarchical = (config(f"moe={name}", "engine.release=0.13.0").hccl for name in ("flat", "hierarchical"))
    assert (flat.intra_pcie_enable, flat.intra_roce_enable) == (None, None)
    assert (hierarchical.intra_pcie_enable, hierarchical.intra_roce_enable) == (1, 0)
    # An engine or an experiment is a preset, also where it is named.
    assert "VLLM_USE_V1" not in config("engine=vllm_ascend", "engine.release=0.13.0").engine.env


def test_graph_sizes_become_capture_sizes_and_options_without_successor_are_named() -> None:
    graph = {"enabled": True, "graph_batch_sizes": [8, 64], "enable_multistream_moe": True, "use_cached_graph": True}
    after, changes = migrated(old(engine__additional_config={"torchair_graph_config": graph}), "0.13.0")
    assert after.engine.args["compilation-config"] == {
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": [8, 64],
    }
    assert after.engine.additional_config == {"multistream_overlap_shared_expert": True}
    assert "use_cached_graph has no successor" in changes["engine.additional_config.torchair_graph_config"].reason
    after, _ = migrated(old(engine__additional_config={"torchair_graph_config": graph}), "0.11.0")
    kept = {key: value for key, value in graph.items() if key != "enable_multistream_moe"}
    assert after.engine.additional_config == {
        "torchair_graph_config": kept,
        "multistream_overlap_shared_expert": True,
    }


def test_a_compilation_config_of_the_preset_stays() -> None:
    after, _ = migrated(old(engine__args={"compilation-config": {"cudagraph_mode": "NONE"}}), "0.13.0")
    assert after.engine.args["compilation-config"] == {"cudagraph_mode": "NONE"}


@pytest.mark.parametrize(
    ("section", "flag", "left"),
    [
        ({"enabled": True}, False, False),
        ({"enabled": True, "enable_chunked_prefill": True}, None, False),
        ({"enabled": False}, None, False),
        ({"enabled": True, "max_num_partial_prefills": 4}, None, True),
    ],
)
def test_the_ascend_scheduler(section: dict[str, Any], flag: bool | None, left: bool) -> None:
    after, _ = migrated(old(engine__additional_config={"ascend_scheduler_config": section}), "0.13.0")
    assert after.engine.args.get("enable-chunked-prefill") is flag
    assert ("ascend_scheduler_config" in (after.engine.additional_config or {})) is left
    refused = [f for f in check.findings(after) if f.rule == "R12"]
    assert bool(refused) is left  # a field that has no place in vLLM's scheduler is refused, not lost


@pytest.mark.parametrize(
    ("to", "before", "after"),
    [
        ("0.18.0", {"swap-space": 4}, {}),
        ("0.13.0", {"swap-space": 4}, {"swap-space": 4}),
        ("0.18.0", {"disable_log_requests": True}, {}),
        ("0.13.0", {"rope-scaling": {"rope_type": "yarn"}}, {"hf-overrides": {"rope_scaling": {"rope_type": "yarn"}}}),
        ("0.13.0", {"guided-decoding-backend": "xgrammar"}, {"structured-outputs-config": {"backend": "xgrammar"}}),
        ("0.13.0", {"disable-mm-preprocessor-cache": True}, {"mm-processor-cache-gb": 0}),
        ("0.11.0", {"enable-reasoning": True, "reasoning-parser": "deepseek_r1"}, {"reasoning-parser": "deepseek_r1"}),
        ("0.13.0", {"task": "generate"}, {}),
    ],
)
def test_flags_that_went_are_moved(to: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    made, changes = migrated(old(engine__args=before), to)
    assert {k: v for k, v in made.engine.args.items() if k != "compilation-config"} == after
    assert not [f for f in check.findings(made) if f.rule == "N1"]
    assert all(f"engine.args.{key}" in changes for key in before if key not in after)


@pytest.mark.parametrize("args", [{"task": "embed"}, {"max-prompt-adapters": 2}, {"enable-lora-bias": True}])
def test_flags_without_a_successor_are_refused_with_a_remedy(args: dict[str, Any]) -> None:
    made, _ = migrated(old(engine__args=args), "0.23.0")
    [finding] = [f for f in check.findings(made) if f.rule == "N1"]
    assert (finding.key, finding.severity) == (f"engine.args.{next(iter(args))}", "error")
    assert "it was removed" in finding.reason


@pytest.mark.parametrize(
    ("to", "before", "after"),
    [
        ("0.11.0", {"lmhead_tp_size": 8}, {"lmhead_tensor_parallel_size": 8}),
        ("0.18.0", {"lmhead_tp_size": 8}, {"finegrained_tp_config": {"lmhead_tensor_parallel_size": 8}}),
        ("0.13.0", {"dynamic_eplb": True}, {"dynamic_eplb": True}),
        (
            "0.18.0",
            {"dynamic_eplb": True, "num_iterations_eplb_update": 400, "gate_eplb": False},
            {"eplb_config": {"dynamic_eplb": True, "expert_heat_collection_interval": 400}},
        ),
        ("0.11.0", {"enable_weight_nz_layout": True}, {}),
    ],
)
def test_keys_that_went_are_moved(to: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    made, _ = migrated(old(engine__additional_config=before), to)
    assert made.engine.additional_config == after
    assert not [f for f in check.findings(made) if f.rule == "N3"]


def test_variables_become_keys_in_0_23() -> None:
    variables = {
        "VLLM_ASCEND_BALANCE_SCHEDULING": 1,
        "VLLM_ASCEND_ENABLE_MLAPO": "0",
        "VLLM_ASCEND_ENABLE_NZ": 2,
        "VLLM_ASCEND_ENABLE_CONTEXT_PARALLEL": 1,
    }
    made = change(config("experiment=official_0_13"), engine__env=variables)
    after, changes = migrated(made, "0.23.0")
    assert after.engine.additional_config == {
        "enable_balance_scheduling": True,
        "enable_mlapo": False,
        "weight_nz_mode": 2,
    }
    assert set(after.engine.env) == {"VLLM_ENGINE_READY_TIMEOUT_S"}
    assert "does not read it any more" in changes["engine.env.VLLM_ASCEND_ENABLE_CONTEXT_PARALLEL"].reason


def test_a_value_that_is_no_recipes_is_the_presets_own() -> None:
    after, _ = migrated(old(engine__env={"OMP_NUM_THREADS": 24}, hccl__buffsize=768), "0.23.0")
    assert (after.engine.env["OMP_NUM_THREADS"], after.hccl.buffsize) == (24, 768)


def test_on_one_node_nothing_between_nodes_is_set() -> None:
    made = old(parallel__data_parallel_size=1, hccl__op_expansion_mode="AIV")
    after, _ = migrated(made, "0.23.0")
    assert (after.hccl.intra_pcie_enable, after.hccl.op_expansion_mode) == (None, "AIV")


def test_one_data_parallel_rank_over_two_nodes_is_two_nodes() -> None:
    one = as_written("experiment=article", "parallel=dp1_tp16", "engine.release=0.13.0")
    after, changes = migrate(one.config, one.explicit)
    assert (after.hccl.intra_pcie_enable, after.hccl.intra_roce_enable) == (1, 0)
    assert {"hccl.intra_pcie_enable", "hccl.intra_roce_enable", "hccl.op_expansion_mode"} <= {c.key for c in changes}


def test_there_is_no_way_back_and_no_guess() -> None:
    new = config("experiment=official_0_23")
    for to in ("0.13.0", "0.99.0"):
        wanted = change(new, engine__release=to)
        assert migrate(wanted) == (wanted, ())
    # An older release does not read what the newer one's preset sets: the rules say so.
    assert "N5" in {f.rule for f in check.findings(change(new, engine__release="0.13.0"))}


def test_the_tables_lead_somewhere() -> None:
    flags = {flag for name in releases() for flag in release(name).flags}
    last = release(releases()[-1])
    for name, move in migration.FLAGS.items():
        assert name in flags, name
        assert name not in last.flags, name
        assert move.to is None or move.to.partition(".")[0] in last.flags, name
    for name, move in migration.KEYS.items():
        assert name not in last.keys, name
        assert any(name in release(r).keys for r in releases()), name
        assert move.to is None or move.to.partition(".")[0] in last.keys or move.to in migration.KEYS, name
    assert set(migration.TOLD["became_numbers"]) <= set(release("0.23.0").have_a_key.values())
    for name, move in migration.VARIABLES.items():
        assert move.key is None or (name not in last.variables and move.key.partition(".")[0] in last.keys), name


def test_variables_that_became_keys() -> None:
    """The recipe of 0.23 sets a variable that 0.30 does not read: its tuning was lost without a word."""
    one = as_written("experiment=official_0_23", "engine.release=0.30.0rc2")
    after, changes = migrated(one.config, "0.30.0rc2", one.explicit)
    assert after.engine.additional_config == {"scheduler_config": {"enable_balance_scheduling": True}}
    assert "VLLM_ASCEND_BALANCE_SCHEDULING" not in after.engine.env
    assert changes["engine.env.VLLM_ASCEND_BALANCE_SCHEDULING"].after is None
    made = old(engine__written_for="0.23.0", engine__env={"VLLM_ASCEND_ENABLE_NZ": "2", "VLLM_ASCEND_ENABLE_MLAPO": 0})
    after, _ = migrated(made, "0.30.0rc2")
    assert after.engine.additional_config is not None
    assert (after.engine.additional_config["weight_nz_mode"], after.engine.additional_config["enable_mlapo"]) == (
        2,
        False,
    )


def test_defaults_that_are_left_to_the_engine_are_named() -> None:
    made = change(config("experiment=official_0_13"), engine__release="0.23.0")
    named = {c.key: (c.before, c.after) for c in defaults(made, ["gpu-memory-utilization"])}
    assert named["VLLM_ASCEND_ENABLE_MLAPO"] == ("0", "1")  # more memory of every NPU
    assert "--gpu-memory-utilization" not in named
    assert ("--gpu-memory-utilization" in {c.key for c in defaults(made, [])}) is True


def told(*words: str) -> dict[str, tuple[Any, Any]]:
    [point] = explain.explain_overrides(words)
    return {c["key"]: (c["before"], c["after"]) for c in point["defaults"]}


def test_a_variable_whose_key_is_set_is_not_left_to_the_engine() -> None:
    assert "VLLM_ASCEND_ENABLE_MLAPO" not in told("experiment=official_0_13", "engine.release=0.23.0")
    off = ("experiment=article", "engine.release=0.23.0", "+engine.additional_config.enable_mlapo=false")
    assert "VLLM_ASCEND_ENABLE_MLAPO" not in told(*off)


def test_what_is_new_and_on_is_a_change_and_what_is_new_and_off_is_none() -> None:
    binding = "engine.additional_config.enable_cpu_binding"
    for name in ("0.18.0", "0.23.0"):
        named = told("experiment=article", f"engine.release={name}")
        assert named["VLLM_ASCEND_ENABLE_MLAPO"] == ("0", "1")
        assert named[binding] == ("false", "true")
        assert "VLLM_ASCEND_ENABLE_FUSED_MC2" not in named
    assert not {"VLLM_ASCEND_ENABLE_MLAPO", binding} & set(told("experiment=article", "engine.release=0.13.0"))
    own = "+engine.additional_config.enable_cpu_binding=false"
    assert binding not in told("experiment=article", "engine.release=0.18.0", own)


def test_explain_knows_nothing_of_a_release_that_is_not_described(capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.__main__ import main

    for name in ("0.24.0rc1", "0.33.0"):
        assert main(["explain", "experiment=article", f"engine.release={name}"]) == 2
        said = capsys.readouterr()
        assert said.out == "" and f"engine.release = {name}: this release is not described here" in said.err


def test_explain_says_what_changed_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.__main__ import main

    assert main(["explain", "--json", "experiment=article", "engine.release=0.9.1,0.23.0"]) == 0
    same, new = json.loads(capsys.readouterr().out)
    assert (same["written_for"], same["release"], same["changes"]) == ("0.9.1", "0.9.1", [])
    assert new["release"] == "0.23.0"
    assert len(new["changes"]) == 10
    assert {"key", "before", "after", "reason", "source"} == set(new["changes"][0])
    assert same["defaults"] == []
    [mlapo] = [c for c in new["defaults"] if c["key"] == "VLLM_ASCEND_ENABLE_MLAPO"]
    assert (mlapo["before"], mlapo["after"]) == ("0", "1")  # 0.9.1 does not know it
    assert "1.128 GiB more weights on each NPU" in mlapo["reason"]
    assert {"--disable-cascade-attn"} <= {c["key"] for c in new["defaults"]}
    assert "--gpu-memory-utilization" not in {c["key"] for c in new["defaults"]}  # the article sets it
    text = explain.text(new)
    assert "engine.env.VLLM_USE_V1: 1 -> (not set)" in text
    assert "as written for 0.9.1" in explain.text(same)


@pytest.mark.parametrize("key", sorted(migration.KEYS))
def test_a_null_key_that_has_gone_ends_the_migration_all_the_same(key: str) -> None:
    made = change(config("experiment=article"), engine__additional_config={key: None}, engine__release="0.23.0")
    migrated, _ = migrate(made)
    assert not {name: value for name, value in (migrated.engine.additional_config or {}).items() if value is not None}
