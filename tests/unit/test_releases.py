"""Release data: what was read from the wheels, what is kept by hand, and the reader of keys."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from core_help import ROOT

from jobs.core.errors import ConfigError
from jobs.engines import ascend
from jobs.engines.ascend import Release, release, releases
from jobs.engines.ascend.real.sources import engine_version

sys.path.insert(0, str(ROOT / "tools"))
import extract_keys

ALL = [release(name) for name in releases()]
each = pytest.mark.parametrize("known", ALL, ids=lambda one: one.name)


def test_the_releases_oldest_first() -> None:
    described = ("0.9.1", "0.11.0", "0.13.0", "0.18.0", "0.23.0", "0.23.0.post1", "0.26.0rc1", "0.30.0rc2")
    assert releases() == described
    assert ascend.ADVISED in described


@pytest.mark.parametrize(
    ("name", "said", "remedy"),
    [
        (
            "0.12.0",
            "lies between 0.11.0 and 0.13.0",
            "The nearest is 0.11.0, and `python -m jobs explain engine.release=0.13.0",
        ),
        ("0.23.0.post2", "lies between 0.23.0.post1 and 0.26.0rc1", "set engine.release=0.23.0.post1"),
        ("0.31.0", "newer than 0.30.0rc2", "The nearest is 0.30.0rc2."),
        ("0.8.5", "older than 0.9.1", f"The nearest is {ascend.ADVISED}."),
        ("latest", "not described here", f"The nearest is {ascend.ADVISED}."),
    ],
)
def test_an_unknown_release_names_its_neighbours(name: str, said: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        release(name)
    assert caught.value.key == "engine.release"
    assert said in caught.value.reason
    assert remedy in caught.value.remedy
    assert all(known in caught.value.remedy for known in releases())


@each
def test_every_item_has_a_source(known: Release) -> None:
    assert {"engine", "python", "cann", "torch", "torch_npu", "hdk", "date"} <= set(known.facts)
    facts = [*known.facts.values(), *known.images.values(), *known.moving_images.values(), *known.recipe.values()]
    assert all(len(fact.source) > 10 for fact in facts)
    assert all(key.source.endswith(".py") or "vllm-ascend" in key.source for key in known.keys.values())
    assert all(known.deprecated_keys.values())
    assert all(known.deprecated_variables.values())
    engine = engine_version(known.name)  # vllm-ascend X.Y.Z needs vllm X.Y.Z, whatever its own suffix
    assert known.verified_against == {"vllm": engine, "vllm-ascend": known.name}
    assert known.facts["engine"].value == engine
    assert {f"v{known.name}", f"v{known.name}-openeuler"} <= set(known.images)


@each
def test_what_is_kept_by_hand_names_what_the_wheel_has(known: Release) -> None:
    assert set(known.deprecated_keys) <= set(known.keys)
    assert set(known.deprecated_variables) <= set(known.variables)
    assert set(known.deprecated_variables) <= set(known.have_a_key)
    assert set(known.have_a_key.values()) <= set(known.keys)


@each
def test_flags_that_came_and_went(known: Release) -> None:
    if known.previous is None:
        assert (known.added, known.removed) == ((), ())
        return
    before = release(known.previous)
    assert set(known.added) == set(known.flags) - set(before.flags)
    assert set(known.removed) == set(before.flags) - set(known.flags)
    assert releases().index(known.name) == releases().index(before.name) + 1


STABLE = """
headless data-parallel-size data-parallel-size-local data-parallel-start-rank data-parallel-address
data-parallel-rpc-port tensor-parallel-size enable-expert-parallel quantization additional-config
enable-prefix-caching max-num-seqs max-model-len max-num-batched-tokens gpu-memory-utilization block-size seed
trust-remote-code served-model-name api-server-count enforce-eager compilation-config speculative-config
"""


@each
def test_the_flags_of_this_tool_are_in_every_release(known: Release) -> None:
    assert set(STABLE.split()) <= set(known.flags)


@pytest.mark.parametrize(
    ("flag", "first", "last"),
    [
        ("num-scheduler-steps", "0.9.1", "0.9.1"),
        ("scheduler-delay-factor", "0.9.1", "0.9.1"),
        ("enable-reasoning", "0.9.1", "0.9.1"),
        ("rope-scaling", "0.9.1", "0.11.0"),
        ("task", "0.9.1", "0.11.0"),
        ("disable-log-requests", "0.9.1", "0.13.0"),
        ("swap-space", "0.9.1", "0.13.0"),
        ("async-scheduling", "0.11.0", "0.30.0rc2"),
        ("decode-context-parallel-size", "0.11.0", "0.30.0rc2"),
        ("kv-cache-memory-bytes", "0.11.0", "0.30.0rc2"),
        ("prefill-context-parallel-size", "0.13.0", "0.30.0rc2"),
        ("nnodes", "0.13.0", "0.30.0rc2"),
        ("performance-mode", "0.18.0", "0.30.0rc2"),
        ("shutdown-timeout", "0.18.0", "0.30.0rc2"),
        ("data-parallel-multi-port-external-lb", "0.23.0", "0.30.0rc2"),
    ],
)
def test_where_a_flag_begins_and_ends(flag: str, first: str, last: str) -> None:
    """Against vLLM's own history (arg_utils.py and cli_args.py of the releases), not against our files."""
    having = [one.name for one in ALL if flag in one.flags]
    assert (having[0], having[-1]) == (first, last)


@pytest.mark.parametrize(
    ("key", "having"),
    [
        ("torchair_graph_config", "0.9.1 0.11.0"),
        ("ascend_scheduler_config", "0.9.1 0.11.0"),
        ("kv_cache_dtype", "0.9.1 0.11.0"),
        ("weight_prefetch_config", "0.11.0 0.13.0 0.18.0 0.23.0 0.23.0.post1"),
        ("eplb_config", "0.13.0 0.18.0 0.23.0 0.23.0.post1 0.26.0rc1 0.30.0rc2"),
        ("dynamic_eplb", "0.9.1 0.11.0 0.13.0"),
        ("enable_mc2_hierarchy_comm", "0.18.0 0.23.0 0.23.0.post1 0.26.0rc1 0.30.0rc2"),
        ("mc2_comm_alg", "0.26.0rc1 0.30.0rc2"),
        ("scheduler_config", "0.26.0rc1 0.30.0rc2"),
        ("enable_mlapo", "0.23.0 0.23.0.post1 0.26.0rc1 0.30.0rc2"),
    ],
)
def test_where_a_key_is_read(key: str, having: str) -> None:
    assert [one.name for one in ALL if key in one.keys] == having.split()


def test_keys_inside_sections_and_what_becomes_of_others() -> None:
    old, new = release("0.9.1").keys, release("0.23.0").keys
    assert "enable_multistream_moe" in (old["torchair_graph_config"].keys or ())
    assert "enable_multistream_moe" not in (release("0.11.0").keys["torchair_graph_config"].keys or ())
    assert old["ascend_scheduler_config"].unknown == "accepted"
    assert release("0.13.0").keys["eplb_config"].unknown == "ignored"
    assert new["eplb_config"].unknown == "error"
    assert "fuse_muls_add" in (new["ascend_compilation_config"].keys or ())  # only read out of **kwargs


def test_typed_keys_and_what_is_inside_flags() -> None:
    """From 0.27.1 on keys are fields of a class; what flags hold has been one in every release."""
    assert [one.name for one in ALL if one.strict] == ["0.30.0rc2"]
    newest = release("0.30.0rc2").keys
    assert newest["enable_kvpp"].type == "bool"  # asked for by its factory alone
    assert newest["mc2_comm_alg"].type == ("", "fullmesh", "hierarchy", "fullmesh_v2")
    assert newest["scheduler_config"].types["short_request_first_config.threshold"] == "int"
    assert not {"kvpp_config", "pd_tp_ratio", "enable_sp_by_pass"} & set(newest)  # nobody can give them
    modes = release("0.23.0").settings["compilation-config"]["cudagraph_mode"]
    assert modes == ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
    inside = {one.name: one.settings["speculative-config"]["num_speculative_tokens"] for one in ALL}
    assert inside["0.9.1"] is None, "vLLM skips the check of its type there"
    assert inside["0.23.0"] == "int>0"
    assert release("0.23.0").settings["compilation-config"]["pass_config.enable_sp"] == "bool"
    assert release("0.23.0").flags["stream-interval"].range == ">=1"
    assert "MooncakeConnectorV1" in release("0.23.0").names["kv_connector"]
    assert "kv_producer" in (release("0.9.1").settings["kv-transfer-config"]["kv_role"] or ())


def test_variables() -> None:
    assert "VLLM_USE_V1" in release("0.11.0").variables
    assert "VLLM_USE_V1" not in release("0.13.0").variables
    assert [one.variables.get("VLLM_ASCEND_ENABLE_MLAPO") for one in ALL] == [None, "0", "0", "1", "1", "1", "1", None]
    assert [("VLLM_ENGINE_READY_TIMEOUT_S" in one.variables) for one in ALL] == [False] * 3 + [True] * 5
    assert release("0.23.0").have_a_key["VLLM_ASCEND_ENABLE_NZ"] == "weight_nz_mode"


def test_base_systems_and_the_moving_tag_of_the_article() -> None:
    old = release("0.9.1")
    assert old.images["v0.9.1-openeuler"].value == "openEuler 22.03"
    assert old.moving_images["v0.9.1-dev-openeuler"].value == "v0.9.1-openeuler"
    assert all(one.images[f"v{one.name}-openeuler"].value == "openEuler 24.03" for one in ALL[1:])


def test_versions_are_compared_as_numbers() -> None:
    assert ascend.version("0.9.1") < ascend.version("0.11.0rc1") == (0, 11, 0)
    assert ascend.version("0.23.0.post1") == ascend.version("0.23.0")


# --- the reader of keys, on a package of our own

CONFIG = """
class Whole:
    def __init__(self, vllm_config):
        additional_config = vllm_config.additional_config or {}
        section = additional_config.get("section", {})
        self.section = Section(section, vllm_config)
        words = additional_config.get("words", {})
        self.words = Words(**words)
        self.strict = Strict(additional_config.get("strict", {}))
        anything = additional_config.get("anything", {})
        self.anything = Anything(anything)
        self.plain = additional_config.get("plain")
        if "asked" in additional_config:
            self.asked = additional_config["indexed"]
        self.moved = self._get_config_value(additional_config, "moved", "MY_MOVED", 0)

class Section:
    def __init__(self, given, vllm_config):
        self.a = given.get("a", 1)
        self.other = vllm_config.get("not_ours")

class Words:
    def __init__(self, b=1, **kwargs):
        self.c = kwargs.get("c")

class Strict:
    _defaults = {"d": 1}
    def __init__(self, given):
        for k in given:
            if k not in self._defaults:
                raise ValueError(k)

class Anything:
    def __init__(self, given):
        self.on = given.get("on")
        for k, v in given.items():
            setattr(self, k, v)
"""
ENVS = """
import os
env_variables: dict = {
    "MY_NUMBER": lambda: int(os.getenv("MY_NUMBER", "3")),
    "MY_TEXT": lambda: os.environ.get("MY_TEXT"),
}
"""


def test_the_reader_finds_keys_sections_and_variables(tmp_path: Path) -> None:
    (tmp_path / "ascend_config.py").write_text("\ufeff" + CONFIG)  # some published files begin with a mark
    (tmp_path / "envs.py").write_text(ENVS)
    (tmp_path / "worker.py").write_text(
        'import os\nx = config.additional_config.get("late", {}).get("inner")\n'
        'y = config.additional_config.get("section").get("deep")\nz = os.environ["MY_OTHER"]\n'
    )
    keys = extract_keys.additional_config(tmp_path)
    assert set(keys) == {"section", "words", "strict", "anything", "plain", "asked", "indexed", "moved", "late"}
    assert (keys["section"]["keys"], keys["section"]["unknown"]) == (["a", "deep"], "ignored")
    assert (keys["words"]["keys"], keys["words"]["unknown"]) == (["b", "c"], "ignored")
    assert (keys["strict"]["keys"], keys["strict"]["unknown"]) == (["d"], "error")
    assert (keys["anything"]["keys"], keys["anything"]["unknown"]) == (["on"], "accepted")
    assert (keys["late"], keys["plain"]) == ({"source": "worker.py"}, {"source": "ascend_config.py"})
    assert extract_keys.variables(ast.parse(ENVS)) == {"MY_NUMBER": "3", "MY_TEXT": None}
    assert extract_keys.read_elsewhere(tmp_path, ["MY_NUMBER", "MY_TEXT"]) == ["MY_OTHER"]
    assert extract_keys.keys_of_variables(tmp_path) == {"MY_MOVED": "moved"}
