"""Fast composition gives what Hydra gives; sweeps expand as Hydra expands them; errors name key and remedy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from core_help import composer, config
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from jobs.core import schema
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.sweep import compose, grammar


@pytest.mark.parametrize(
    "words", [["bench.concurrency=range(1,100000000)"], ["bench.concurrency=range(1,200)", "bench.seed=range(0,200)"]]
)
def test_a_sweep_that_nobody_can_measure_is_refused_at_once(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="these are more than 10,000 points"):
        compose.expand(words)


def by_hydra(overrides: list[str]) -> Config:
    """Return the config as Hydra itself composes and resolves it."""
    container = OmegaConf.to_container(compose.default_composer(overrides), resolve=True)
    assert isinstance(container, dict)
    return schema.build({str(key): value for key, value in container.items()})


def quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


TEXT = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=12).filter(lambda t: "${" not in t)
WORD = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True).filter(lambda w: w not in ("null", "true", "false"))
NUMBER = st.integers(1, 10**6)
FLOAT = st.floats(0.001, 1e6).map(repr)
SCALAR = st.one_of(
    NUMBER.map(str), FLOAT, st.booleans().map(str), WORD, TEXT.map(quoted), st.just("null"), st.just("''")
)
FLOW = st.recursive(
    SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]"),
        st.dictionaries(WORD, inner, max_size=3).map(
            lambda d: "{" + ",".join(f"{key}:{value}" for key, value in d.items()) + "}"
        ),
    ),
    max_leaves=5,
)


def override(key: str, value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return value.map(lambda text: f"{key}={text}")


def option(group: str) -> st.SearchStrategy[str]:
    return override(group, st.sampled_from(grammar.groups()[group]))


VALUES = st.one_of(
    override("parallel.max_model_len", NUMBER.map(str)),
    override("parallel.max_num_seqs", st.one_of(NUMBER.map(str), st.just("null"))),
    override("parallel.data_parallel_size_local", st.sampled_from(["1", "[1,1]", "[3,1,2]"])),
    override("parallel.enable_expert_parallel", st.sampled_from(["true", "False"])),
    override("parallel.enable_prefix_caching", st.sampled_from(["true", "false", "null"])),
    override("parallel.gpu_memory_utilization", st.sampled_from(["0.85", "1", "null"])),
    override("model.shape.token_ids", st.just("[5,9]")),
    override("model.shape.weight_gib", st.one_of(FLOAT, NUMBER.map(str))),
    override("model.served_model_name", st.one_of(WORD, TEXT.map(quoted), st.just("null"))),
    override("engine.release", st.sampled_from(["0.9.1", "'0.9'", "0.11"])),
    override("engine.command", st.just("[bash,-c,'a b; $(c)']")),
    override("engine.env.FOO", SCALAR),
    override("+engine.env.BAR", SCALAR),
    override("engine.env", st.sampled_from(["{A:1}", "{A:1,OMP_NUM_THREADS:null}", "{}"])),
    override("engine.args.foo-bar", FLOW),
    override("engine.args", st.sampled_from(["{x:{y:[1,2]},z:true}", "{}"])),
    override("engine.rehearsal.faults", st.just("[{rank:0,kind:crash,at:{s:1}}]")),
    override("cluster.srun_args", st.just("['--mpi=none','-x y',3]")),
    override("cluster.sbatch_args.licenses", SCALAR),
    override("cluster.mem", st.sampled_from(["0", "64G", "null"])),
    override("cluster.time_limit", st.sampled_from(["30", "8:00:00", "'1-0'", "null"])),
    override("bench.request_rate", st.one_of(FLOAT, NUMBER.map(str), st.just("null"))),
    override("bench.concurrency", st.one_of(NUMBER.map(str), st.just("null"))),
    override("bench.input_tokens", st.just("${parallel.max_model_len}")),
    override("parallel.max_num_batched_tokens", st.just("${parallel.max_model_len}")),
    override("results.name", st.sampled_from(["${model.name}_${parallel.max_model_len}", "'${model.name}'", "a-b"])),
    override("model.path", st.just("/models/${model.name}/${engine.release}")),
)
GROUP_CHOICES = st.lists(
    st.one_of(option("model"), option("engine"), option("parallel"), option("experiment"), option("cluster")),
    max_size=3,
    unique_by=lambda text: text.partition("=")[0],
)


def usual(ours: Config, composed: Config, overrides: list[str]) -> Config:
    """Give what Hydra composed our concurrency where nobody set it: Hydra has no rule for it (test_config.py)."""
    if any(text.startswith("bench.concurrency=") and not text.endswith("null") for text in overrides):
        return composed
    return replace(composed, bench=replace(composed.bench, concurrency=ours.bench.concurrency))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(GROUP_CHOICES, st.lists(VALUES, max_size=6))
@example(["engine=simulator"], ["engine.env={A:1}", "engine.env.A=2", "bench.window_s=7"])
@example(["experiment=demo"], ["bench.window_s=1", "engine.args.enforce-eager=null"])
@example([], ["parallel.max_model_len=1", "parallel.max_num_batched_tokens=${parallel.max_model_len}"])
def test_any_point_is_what_hydra_composes(groups: list[str], values: list[str]) -> None:
    # Hydra's own append is an error where the key is there already.
    if sum("engine.env.BAR" in text for text in values) > 1:
        values = [text for text in values if not text.startswith("+")]
    # Hydra refuses a list where the same key was given a mapping before; here the later one holds.
    mixed = [text for text in values if text.startswith("engine.args.foo-bar=")]
    values = [text for text in values if text not in mixed[:-1] or text is mixed[-1]]
    overrides = [*groups, *values]
    [ours] = compose.written([overrides], composer)  # another engine.release is what Hydra knows nothing of
    assert ours.config == usual(ours.config, by_hydra(overrides), overrides)


def test_values_may_stand_before_the_group_that_they_change() -> None:
    overrides = ["parallel.max_model_len=77", "bench.window_s=9", "parallel=dp4_tp4", "engine=simulator"]
    [ours] = compose.configs([overrides], composer)
    assert ours == usual(ours, by_hydra(overrides), overrides)


def test_points_do_not_change_each_other() -> None:
    points = [["engine.env.A=1", "engine.args={x:{y:1}}"], ["engine.args.x.z=2"], []]
    one, other, third = compose.configs(points, composer)
    assert one.engine.env["A"] == 1
    assert one.engine.args == {"x": {"y": 1}}
    assert other.engine.args == {"x": {"z": 2}}
    assert "A" not in other.engine.env
    assert third == config()


def test_hydra_composes_once_for_each_choice_of_groups() -> None:
    asked: list[list[str]] = []

    def counting(groups: list[str]) -> Any:
        asked.append(groups)
        return composer(groups)

    points = [[f"parallel={p}", f"bench.seed={n}"] for p in ("dp2_tp8", "dp4_tp4") for n in range(50)]
    assert len(compose.configs(points, counting)) == 100
    assert asked == [["parallel=dp2_tp8"], ["parallel=dp4_tp4"]]


def test_experiment_needs_no_plus() -> None:
    assert config("experiment=article").hccl.socket_ifname == "enp61s0f0"


# --- sweeps

CHOICES = st.lists(st.one_of(SCALAR, st.just("[1,2]"), st.just("{a:1}")), min_size=2, max_size=3).map(",".join)
SWEEPS = st.one_of(
    CHOICES,
    CHOICES.map(lambda text: f"choice({text})"),
    st.sampled_from(["range(1,4)", "range(4,1,-1)", "range(0,1,0.5)", "sort(3,1,2)", "choice(7)"]),
    FLOW,
)
SWEEP_OVERRIDES = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["bench.seed", "engine.env.A", "+engine.args.b", "++engine.args.c", "hydra.job.name"]),
            SWEEPS,
        ).map("=".join),
        st.sampled_from(
            ["parallel=dp2_tp8,dp4_tp4", "model=glob(*)", "engine=glob([s*,vllm_c*])", "~bench", "~model=x"]
        ),
    ),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(SWEEP_OVERRIDES)
@example(["bench.seed=1,2", "bench.concurrency=4,8", "bench.seed=3"])
def test_a_sweep_expands_as_hydras_basic_sweeper_expands_it(overrides: list[str]) -> None:
    class Loader:
        def get_group_options(self, group: str, results_filter: object) -> list[str]:
            return list(grammar.groups()[group])

    try:
        parsed = OverridesParser.create(Loader()).parse_overrides(overrides)  # type: ignore[arg-type]
        [theirs] = BasicSweeper.split_arguments(parsed, None)
    except HydraException:  # choice(null)
        with pytest.raises(ConfigError):
            compose.expand(overrides)
    else:
        assert compose.expand(overrides) == [grammar.ours(point) for point in theirs]


def test_the_last_key_changes_fastest() -> None:
    points = compose.expand(["parallel.max_model_len=8192,32768", "bench.concurrency=1,4"])
    assert points == [
        [f"parallel.max_model_len={length}", f"bench.concurrency={load}"]
        for length, load in itertools.product((8192, 32768), (1, 4))
    ]


def test_swept_keys_are_those_that_differ() -> None:
    points = [["a=1", "b=2", "+c=1"], ["a=1", "b=3", "+c=1"], ["a=1", "b=3"]]
    assert grammar.swept_keys(points) == ("b", "c")
    assert grammar.swept_keys(points[:1]) == ()


def test_what_is_hydras_is_left_to_hydra() -> None:
    words = ["hydra/sweeper=basic", "hydra.sweep.dir=x", "+hydra.job.env_set.A=1", "~hydra.x", "bench.seed=1"]
    assert grammar.ours(words) == ["bench.seed=1"]


def test_what_has_several_values_is_a_sweep() -> None:
    words = ["bench.seed=3,4", "bench.concurrency=range(2,9)", "bench.window_s=interval(1,2)", "parallel=dp2_tp8"]
    assert [word for word in words if not grammar.is_sweep(word)] == ["parallel=dp2_tp8"]
    with pytest.raises(ConfigError, match="several values need a sweep"):
        grammar.refuse_sweeps(words)


# --- errors


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("model=nosuch", "model", ["nosuch", "conf/model", "tiny_llama"]),
        ("parallel=dp2_tp9", "parallel", ["Did you mean 'dp2_tp8'?"]),
        ("parallel=dp2_tp8,dp2_tp9", "parallel", ["dp2_tp9", "Did you mean 'dp2_tp8'?"]),
        ("model=glob(x*)", "model", ["no values"]),
        ("model=null", "model", ["~model"]),
        ("bench={a:1}", "bench", ["{'a': 1}", "default"]),
        ("bench.sed=1", "bench.sed", ["Did you mean 'bench.seed'?"]),
        ("+x.y=1", "x.y", ["= 1:", "bench, cluster"]),
        ("bench.seed.x=1", "bench.seed.x", ["bench.seed"]),
        ("foo", "override", ["'foo'", "key=value"]),
        ("", "override", ["''", "key=value"]),
        ("bench.seed=range(0,1,0)", "bench.seed", ["range(0,1,0)", "zero"]),
        ("bench.seed=interval(0,1)", "bench.seed", ["interval(0,1)"]),
        ("hydra/launcher=basic", "hydra/launcher", ["planner"]),
    ],
)
def test_what_the_overrides_alone_show(text: str, key: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        grammar.check([text])
    assert caught.value.key == key
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert ".." not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["bench.seed=1,2"], "bench.seed", ["Add -m", "1,2"]),
        (["bench.seed=${nosuch.key}"], "bench.seed", ["nosuch.key"]),
        (["bench.seed=${bench.seed}"], "bench.seed", ["interpolation"]),
        (["bench.seed=a"], "bench.seed", ["'a'", "integer"]),
        (["bench.seed=null"], "bench.seed", ["None"]),
        (["~bench.nosuch"], "bench.nosuch", ["does not exist"]),
        (["~bench.seed"], "bench.seed", ["deletion"]),
        (["model@foo=tiny_llama"], "model@foo", ["Could not override"]),
        (["bench={a:1}"], "bench", ["default"]),
        (["engine.env=3"], "engine.env", ["3"]),
        (["engine.env=null"], "engine.env", ["None"]),
        (["model.shape=null"], "model.shape", ["None"]),
        (["model.shape={nosuch:1}"], "model.shape.nosuch", ["there is no such key"]),
    ],
)
def test_what_only_composing_shows(overrides: list[str], key: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.configs([overrides], composer)
    assert caught.value.key == key
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_in_a_sites_yaml_names_the_file_and_the_key() -> None:
    def site(_: list[str]) -> Any:
        raise HydraException("In 'cluster/site': ValidationError raised:\nValue 'x' of type 'str'\n full_key: a")

    with pytest.raises(ConfigError, match=r"In 'cluster/site'.*full_key: a"):
        compose.configs([["cluster=slurm"]], site)


IMAGE = "quay.example#ascend/vllm-ascend:v0.9.1-openeuler"


@pytest.mark.parametrize(
    "typed",
    [
        IMAGE,
        f"docker://{IMAGE}",
        IMAGE.replace("#", "\\#"),
        f'"{IMAGE}"',
        f"'{IMAGE}'",
        f"me@{IMAGE}@sha256:{'a' * 64}",
    ],
)
def test_an_image_may_be_typed_as_pyxis_takes_it(typed: str) -> None:
    assert config(f"container.image={typed}").container.image == typed.strip("'\"")


def test_a_hash_may_stand_in_a_sweep_and_in_a_list() -> None:
    points = compose.expand([f"container.image={IMAGE},other#a/b:v2", "parallel.max_model_len=1024,2048"])
    images = [one.container.image for one in compose.configs(points, composer)]
    assert images == [IMAGE, IMAGE, "other#a/b:v2", "other#a/b:v2"]
    mounts = "container.mounts=[/a#1:/c, '/b#2:/d', /e:/f]"
    assert config(mounts).container.mounts == ("/a#1:/c", "/b#2:/d", "/e:/f")


@pytest.mark.parametrize("text", ["a.b='x#y'", 'a.b="x, #y"', "a.b=1", "a.b={c: x#y}", "a#b", "a.b='it\\'s #1'"])
def test_what_needs_no_quotes_gets_none(text: str) -> None:
    assert grammar.quoted(text) == text


def test_a_hash_that_cannot_be_understood_gets_a_remedy_that_names_the_quotes() -> None:
    with pytest.raises(ConfigError) as caught:
        grammar.parse(["engine.env={A: x#y}"])
    assert "'key=\"a#b\"'" in caught.value.remedy
