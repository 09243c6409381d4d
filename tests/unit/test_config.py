"""The schema: every leaf has a help text, a scope and a type that is enforced (tests/whole: the YAML files)."""

from __future__ import annotations

from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from core_help import config
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from jobs.core import fields as settings
from jobs.core import schema
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import OneKey, Section
from jobs.core.schema import build
from jobs.sweep import check


def sections() -> dict[str, type]:
    """Return every section with its dotted name."""
    found: dict[str, type] = {}

    def walk(cls: type, prefix: str) -> None:
        for name, kind in get_type_hints(cls).items():
            if isinstance(kind, type) and issubclass(kind, Section):
                found[prefix + name] = kind
                walk(kind, prefix + name + ".")

    walk(Config, "")
    return found


SECTIONS = sections()
LEAVES = tuple(name for name in schema.names() if name not in SECTIONS)
"""Everything that has a value of its own: keys, and the names of mappings with known ones."""


def kinds(name: str) -> set[Any]:
    """Return the plain types that a leaf accepts, by its annotation."""
    section, _, leaf = name.rpartition(".")
    annotated = get_type_hints(SECTIONS[section], include_extras=True)[leaf]

    def plain(kind: Any) -> set[Any]:
        if get_origin(kind) is Annotated:
            return plain(get_args(kind)[0])
        if isinstance(kind, UnionType) or get_origin(kind) is Union:
            return set().union(*(plain(part) for part in get_args(kind)))
        return {get_origin(kind) or kind}

    return plain(annotated)


def nested(name: str, value: Any) -> dict[str, Any]:
    """Return {"a": {"b": value}} for "a.b"."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


WRONG: dict[Any, tuple[Any, ...]] = {
    int: ("8", 1.5, True, [1], {"a": 1}),
    float: ("0.5", True, [0.5], {"a": 1}, float("nan"), float("inf")),
    bool: ("true", 1, 0, [True], {"a": 1}),
    str: (True, ["a"], {"a": 1}),
    tuple: ("abc", 5, {"a": 1}),
    dict: ("abc", 5, [1]),
    Any: ("abc", 0, [], [0], [1, "x"], {"a": 1}, True, 1.5),
}
"""Values that are wrong for a leaf of that type."""


@pytest.mark.parametrize("section", SECTIONS)
def test_a_wrong_type_is_one_clear_error_that_names_the_leaf(section: str) -> None:
    leaves = [name for name in LEAVES if name.rpartition(".")[0] == section]
    assert leaves
    for name in leaves:
        check_wrong_types(name)


def check_wrong_types(name: str) -> None:
    accepted = kinds(name) - {NoneType}
    wrong = [value for kind in accepted for value in WRONG[kind]]
    if NoneType not in kinds(name):
        wrong.append(None)
    assert wrong
    for value in wrong:
        with pytest.raises(ConfigError) as caught:
            build(nested(name, value))
        assert caught.value.key == name, value
        assert caught.value.reason
        assert schema.help_of(name) in caught.value.remedy
        assert caught.value.__suppress_context__, "pydantic's own report must not follow"


def value_of(config: Config, name: str) -> Any:
    """Return the value of a leaf by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_null_is_accepted_where_the_schema_says_so() -> None:
    optional = [name for name in LEAVES if NoneType in kinds(name)]
    assert len(optional) > 30
    for name in optional:
        assert value_of(build(nested(name, None)), name) is None


def test_a_number_stands_for_its_text() -> None:
    texts = [name for name in LEAVES if str in kinds(name)]
    assert len(texts) > 30
    for name in texts:
        try:
            assert value_of(build(nested(name, 7)), name) == "7"
        except ConfigError as error:  # a choice of words
            assert "valid values are" in error.reason, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parallel.max_model_len", 0),
        ("parallel.seed", -1),
        ("parallel.gpu_memory_utilization", 1.01),
        ("parallel.gpu_memory_utilization", 0.0),
        ("engine.port", 65536),
        ("engine.port", 0),
        ("bench.window_s", 0.0),
        ("bench.warmup_s", -0.1),
        ("bench.request_rate", 0.0),
        ("model.shape.token_ids", [1]),
        ("model.shape.token_ids", [1, 2, 3]),
        ("cluster.kind", "pbs"),
        ("bench.client", "wrk"),
        ("container.runtime", "docker?"),
        *(("limits.load_s", one) for one in (1e308, 1e20, float("inf"), float("nan"))),
        *(("bench.concurrency", one) for one in (1e23, 10**23, 10**400, 1_000_001)),
        *(("results.name", one) for one in ("../../x", "a/b", ".hidden", "latest", "x%j", "", "a\u202eb")),
        *(("results.root", one) for one in ("", "  ", "/tmp/%j", "/" + "a" * 256)),
        *((key, "x/" + "中" * 86) for key in ("model.name", "model.path")),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build(nested(name, value))
    assert caught.value.key == name
    assert repr(value) == caught.value.value or name.startswith("model.shape")


@pytest.mark.parametrize("name", ["model.name", "model.path", "results.root", "model.served_model_name", "engine.env"])
def test_a_text_that_no_command_line_takes_is_refused_by_its_key(name: str) -> None:
    """A key is named, and never results.root for another one's sake (a name of 100,000 letters)."""
    text = "a" * 140_000
    with pytest.raises(ConfigError) as caught:
        build(nested(name, {"X": text} if name == "engine.env" else text))
    assert caught.value.key == name and "too long" in caught.value.reason and len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", [name for name, kind in SECTIONS.items() if issubclass(kind, OneKey)])
@pytest.mark.parametrize("value", [5, "abc", [1], None])
def test_a_mapping_with_known_names_takes_no_other_type(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build(nested(name, value))
    assert (caught.value.key, caught.value.value) == (name, repr(value))
    assert all(one.rpartition(".")[2] in caught.value.remedy for one in schema.names_in(name))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("parallel.max_model_length", "'parallel.max_model_len'"),
        ("bench.concurency", "'bench.concurrency'"),
        ("hccl.sockt_ifname", "'hccl.socket_ifname'"),
        ("bench.slo.ttft_ms_p99", "'bench.slo.ttft_ms'"),
        ("bench.slo.itl_ms_p99", "'bench.slo.itl_ms'"),
        ("bench.zzzzzzzz", "bench.client, bench.concurrency"),
        ("qqqqqqq.zzz", "bench, cluster, container, engine"),
    ],
)
def test_an_unknown_key_names_the_nearest_or_lists_the_valid_ones(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(nested(name, 1))
    assert caught.value.key == name or name.startswith(caught.value.key)
    assert hint in caught.value.remedy


def test_every_leaf_has_a_help_text_and_a_scope() -> None:
    for name, key in schema.names().items():
        assert schema.schema()[key] in ("service", "point", "sweep"), name
        section, _, leaf = name.rpartition(".")
        [item] = [item for item in fields(SECTIONS[section]) if item.name == leaf]
        assert item.metadata["help"].strip(), name
        assert schema.help_of(name).partition("; ")[0] == item.metadata["help"].partition("; ")[0]


def test_thresholds_have_known_names_and_defaults() -> None:
    found = build({"preflight": {"thresholds": {"chip": "910C", "clock_s": 60}}}).preflight.thresholds
    assert (found.chip, found.clock_s, found.shm_gib) == ("910C", 60, 1.0)
    for name, value in (("chp", "910C"), ("chip", True), ("shm_gib", "1"), ("shm_gib", -1), ("clock_s", float("nan"))):
        with pytest.raises(ConfigError, match=f"preflight.thresholds.{name}"):
            build({"preflight": {"thresholds": {name: value}}})


OF_SCOPE = {
    "point": ("bench",),
    "sweep": ("cluster", "limits", "results", "launch"),
    "service": ("model", "parallel", "hccl", "container", "engine"),
}
OF_THE_SWEEP = {
    "bench.program",
    "bench.where",
    *(f"container.{name}_path" for name in ("images",)),
    *(f"container.{name}" for name in ("registry", "devices", "driver_mounts", "name", "workdir", "writable")),
    "container.local_dir",
    *(f"container.{name}" for name in ("remap_root", "mount_home", "shm_size", "args")),
    "engine.api_key",
    "engine.checks_model_path",
    "engine.checks_release",
    "engine.data_parallel_rpc_port",
    "engine.host",
    "engine.port",
    "engine.written_for",
    "model.source",
    "model.stage_to",
    "model.verify",
}
"""Keys that do not change what is asked, in sections that do."""


def test_scopes_follow_what_a_change_needs() -> None:
    scopes = schema.schema()
    for scope, sections in OF_SCOPE.items():
        for section in sections:
            other = {name for name, one in scopes.items() if name.startswith(section + ".") and one != scope}
            assert other == {name for name in OF_THE_SWEEP if name.startswith(section + ".")}


def test_open_mappings_are_exactly_the_dicts() -> None:
    assert schema.open_mappings() == {name for name in LEAVES if dict in kinds(name)}
    assert schema.leaf_of("engine.env.A") == "engine.env"
    assert schema.leaf_of("engine.envy") is None
    assert schema.leaf_of("bench.seed.deeper") is None
    assert schema.leaf_of("bench") is None


def test_the_schema_refuses_a_new_key_in_hydra_too_but_not_in_open_mappings() -> None:
    schema.register()
    node = OmegaConf.create(ConfigStore.instance().load("schema.yaml").node)
    for name in schema.open_mappings():
        OmegaConf.update(node, f"{name}.new_key", 1)
    with pytest.raises(Exception, match="nosuch"):
        OmegaConf.update(node, "bench.nosuch", 1, force_add=False)


def test_paths_from_the_root() -> None:
    assert settings.from_root(".engines/x") == str(settings.ROOT / ".engines/x")
    assert settings.from_root("/models/x") == "/models/x"
    assert settings.from_root("vllm") == "vllm"
    assert settings.from_root("{python}") == "{python}"


# --- the defaults


def test_defaults_are_those_of_the_issue() -> None:
    made = config()
    assert made.model.name == "deepseek_r1_0528_w8a8"
    assert (made.engine.name, made.engine.release) == ("vllm_ascend", "0.9.1")
    assert (made.parallel.data_parallel_size, made.parallel.tensor_parallel_size) == (2, 8)
    assert made.cluster.kind == "auto"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cluster.partition", "npu\n#SBATCH --nodes=99"),
        ("cluster.account", "a\rb"),
        ("cluster.constraint", "a\u2028b"),
        ("cluster.sbatch_args", {"comment": "x\n#SBATCH --nodes=99"}),
        ("cluster.sbatch_args", {"comment\nx": "y"}),
        ("cluster.srun_args", ["--x\n"]),
        ("results.name", "a\nb"),
        ("results.root", "/a\nb"),
    ],
)
def test_what_stands_on_one_line_of_a_batch_script_has_no_line_break(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build(nested(name, value))
    assert caught.value.key.startswith(name)
    assert "line break" in caught.value.reason


@pytest.mark.parametrize(
    ("overrides", "concurrency"),
    [
        ((), 16),
        (("bench.concurrency=4",), 4),
        (("bench.request_rate=2",), None),
        (("bench.request_rate=2", "bench.concurrency=16"), 16),
        (("bench.request_rate=null",), 16),
        (("bench.workload=trace", "bench.dataset=a"), None),
        (("bench.workload=trace", "bench.dataset=a", "bench.concurrency=3"), 3),
        (("bench.search=request_rate", "bench.request_rate=1"), None),
        (("bench.search=concurrency",), 16),
        (("bench.concurrency=null",), None),
        (("experiment=demo", "engine=simulator"), 4),
        (("experiment=demo", "engine=simulator", "bench.request_rate=2"), None),
        (("experiment=article_bench",), 256),
        (("experiment=article_bench", "bench.request_rate=20"), 256),
        (("experiment=article_bench", "bench.concurrency=null"), None),
    ],
)
def test_a_rate_or_a_trace_clears_the_concurrency_that_nobody_set_for_it(
    overrides: tuple[str, ...], concurrency: int | None
) -> None:
    assert config(*overrides).bench.concurrency == concurrency


def test_a_cap_on_an_open_loop_is_a_warning() -> None:
    def keys(*overrides: str) -> list[tuple[str, str]]:
        return [(found.severity, found.key) for found in check.findings(config(*overrides)) if found.rule == "C3"]

    assert keys("bench.request_rate=2", "bench.concurrency=8") == [("warning", "bench.concurrency")]
    assert keys("bench.request_rate=2") == keys("bench.concurrency=8") == []
