"""Points to services to allocations: golden plans and properties of every plan."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from core_help import ROOT, change, check_golden, composer, config, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cluster.time_limit import limit_seconds
from jobs.core import schema
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.forecast import duration
from jobs.sweep import check, compose, grammar, grouping, plan, road
from jobs.sweep.points import identity, points_of
from jobs.sweep.record import as_json

QUICK = settings(max_examples=25, deadline=None)


def leaf(config: Config, name: str) -> Any:
    """Return the value of a leaf by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def leaves(config: Config, *scopes: str) -> str:
    """Return all leaves of these scopes as text: the identity, made in another way than the program makes it."""
    keys = {name: key for name, key in schema.names().items() if not schema.names_in(name)}
    found = {name: leaf(config, name) for name, key in keys.items() if schema.schema()[key] in scopes}
    return json.dumps(found, sort_keys=True)


def planned(*overrides: str) -> plan.Plan:
    """Plan one sweep."""
    return road.plan(compose.expand(overrides), composer)


# --- golden plans


def portable(made: plan.Plan) -> str:
    """Return the plan as JSON without what differs between machines, or with every new key of the rehearsal."""
    text = json.dumps(as_json(made), indent=1)
    for index, point in enumerate(made.points):
        text = text.replace(point.point, f"<point {index}>")
    for index, service in enumerate(made.services):
        text = text.replace(service.service, f"<service {index}>")
    data = json.loads(text.replace(sys.executable, "<python>").replace(str(ROOT), "<root>"))
    for service in data["services"]:
        for rank in service["ranks"]:
            if "REHEARSAL_SPEC" in rank["env"]:
                assert json.loads(rank["env"]["REHEARSAL_SPEC"])["rank"] == rank["rank"]
                rank["env"]["REHEARSAL_SPEC"] = "<spec>"
    return json.dumps(data, indent=1) + "\n"


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("plan_default.json", ["cluster=slurm"]),
        ("plan_dp4_tp4.json", ["cluster=slurm", "parallel=dp4_tp4", "parallel.max_model_len=8192,32768"]),
        ("plan_vllm_cpu.json", ["cluster=slurm", "model=tiny_llama", "engine=vllm_cpu", "parallel=dp2_tp1"]),
        ("plan_simulator.json", ["engine=simulator", "bench.concurrency=1,4"]),
    ],
)
def test_golden_plan(name: str, overrides: list[str], tmp_path: Path) -> None:
    # No earlier run may change what is predicted.
    check_golden(name, portable(planned(*overrides, "results.root=/there/are/no/runs")), tmp_path)


# --- grouping

POINTS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "bench.concurrency": st.integers(1, 4),
            "bench.seed": st.integers(0, 2),
            "parallel.max_model_len": st.sampled_from([8192, 16384]),
            "parallel.seed": st.integers(0, 1),
            "engine.env.FOO": st.sampled_from(["a", "1"]),
            "hccl.socket_ifname": st.sampled_from(["auto", "eth0"]),
        },
    ),
    min_size=1,
    max_size=12,
)


@QUICK
@given(POINTS)
def test_one_service_for_each_distinct_restart_part_and_one_row_for_each_distinct_question(
    points: list[dict[str, Any]],
) -> None:
    words = [["cluster=slurm", *(f"{key}={value}" for key, value in point.items())] for point in points]
    made = road.plan(words, composer)
    by_id = {point.point: point for point in made.points}
    assert len(by_id) == len(made.points) == len({leaves(p.config, "service", "point") for p in made.points})
    assert len(made.services) == len({leaves(p.config, "service") for p in made.points})
    served = [point for service in made.services for point in service.points]
    assert sorted(served) == sorted(by_id)
    for service in made.services:
        members = [by_id[point] for point in service.points]
        assert len({leaves(member.config, "service") for member in members}) == 1
        assert {member.service for member in members} == {service.service}
        loads = [member.config.bench.concurrency for member in members]
        assert loads == sorted(loads)
    assert [name for a in made.allocations for name in a.services] == [s.service for s in made.services]
    for allocation in made.allocations:
        interfaces = {p.config.hccl.socket_ifname for p in made.points if p.service in allocation.services}
        assert len(interfaces) == 1, "a rank chooses its interface once"
    # Every override list is answered by the point that it asked for, also where two ask for the same.
    assert len(made.asked) == len(points)
    for asked, words_of_point in zip(made.asked, words, strict=True):
        assert leaves(by_id[asked].config, "service", "point") == leaves(
            compose.configs([words_of_point], composer)[0], "service", "point"
        )


def test_points_that_differ_only_in_the_load_share_one_start() -> None:
    made = planned("cluster=slurm", "parallel.max_model_len=8192,32768", "bench.concurrency=1,16,64")
    assert (len(made.points), len(made.services), len(made.allocations)) == (6, 2, 1)
    assert [len(service.points) for service in made.services] == [3, 3]
    assert made.swept == ("parallel.max_model_len", "bench.concurrency")
    assert made.points[0].values == {"parallel.max_model_len": 8192, "bench.concurrency": 1}


def test_a_swept_group_shows_every_leaf_that_it_changes_also_outside_its_section() -> None:
    made = planned("cluster=slurm", "model=tiny_llama", "parallel=dp2_tp1", "engine=vllm_ascend,vllm_cpu")
    assert len(made.points) == 2
    assert {"engine.name", "engine.release", "bench.window_s", "bench.input_tokens"} <= set(made.swept)
    assert not [name for name in made.swept if schema.schema()[str(schema.leaf_of(name))] == "sweep"]
    assert "engine.env" not in made.swept, "of an open mapping the keys that differ are shown"
    assert made.points[0].values["engine.env.VLLM_CPU_KVCACHE_SPACE"] is None
    assert made.points[1].values["engine.env.VLLM_CPU_KVCACHE_SPACE"] == 1


@pytest.mark.parametrize(
    "override",
    [
        "bench.slo.ttft_ms=1000,2000",
        "bench.slo={ttft_ms: 1000},{ttft_ms: 2000}",
        "bench.slo.ttft_ms=range(1000,2001,1000)",
    ],
)
def test_a_name_of_a_mapping_is_swept_as_a_key_is(override: str) -> None:
    made = planned("cluster=slurm", "bench.slo.itl_ms=50", override)
    assert made.swept == ("bench.slo.ttft_ms",)
    assert [point.values for point in made.points] == [{"bench.slo.ttft_ms": 1000}, {"bench.slo.ttft_ms": 2000}]
    assert [(slo.ttft_ms, slo.itl_ms) for slo in (point.config.bench.slo for point in made.points)] == [
        (1000, 50), (2000, 50)
    ]  # fmt: skip


# --- order


def test_of_one_path_the_largest_demand_comes_first_and_a_path_is_not_left_before_it_is_done() -> None:
    grid = ["cluster=slurm", "results.root=/there/are/no/runs", "model.path=/models/a,/models/b"]
    made = planned(*grid, "parallel.max_model_len=8192,32768,16384", "hccl.buffsize=200,512")
    order = [(s.config.model.path, s.config.parallel.max_model_len, s.config.hccl.buffsize) for s in made.services]
    demand = [(16384, 512), (8192, 512)]
    one = [(32768, 512), *demand, (32768, 200), (16384, 200), (8192, 200)]
    assert order == [(path, *what) for path in ("/models/a", "/models/b") for what in one]
    assert len(made.allocations) == 1


def test_starts_of_settings_are_balanced() -> None:
    made = planned("parallel.max_model_len=8192,16384,32768", "parallel.seed=1,2,3")
    order = [(s.config.parallel.seed, s.config.parallel.max_model_len) for s in made.services]
    assert order == [
        *((1, length) for length in (32768, 16384, 8192)),
        *((2, length) for length in (8192, 16384, 32768)),
        *((3, length) for length in (32768, 16384, 8192)),
    ]
    assert [service.service for service in planned("parallel.seed=1,2").services] == [
        point.service for point in planned("parallel.seed=1,2").points
    ]


def test_speculation_is_started_by_turns_and_each_start_serves_every_length() -> None:
    """off, 1, 3, then 3, 1, off: what changes over hours meets all alike, at each length. One start cannot do both:
    speculation is a flag of the engine."""
    made = planned("experiment=speculation", "engine=simulator")
    drafted = [
        (point.config.engine.args.get("speculative-config") or {}).get("num_speculative_tokens", 0)
        for point in (made.points_of(service.service)[0] for service in made.services)
    ]
    assert drafted == [0, 1, 3, 3, 1, 0]
    lengths = {
        tuple(point.config.bench.input_tokens for point in made.points_of(service.service)) for service in made.services
    }
    assert lengths == {(4096, 8192, 16384, 32768, 65536)}
    assert len(made.allocations) == 1


def test_services_that_cannot_share_an_allocation_do_not_alternate() -> None:
    grid = ["cluster=slurm", "results.root=/there/are/no/runs", "cluster.time_limit=3-0"]
    made = planned(*grid, "parallel.max_model_len=8192,16384", "hccl.socket_ifname=eth0,eth1")
    assert [len(allocation.services) for allocation in made.allocations] == [2, 2]


BUDGETED = st.fixed_dictionaries(
    {
        "parallel.max_model_len": st.lists(
            st.sampled_from([8192, 16384, 32768, 65536, 131072]), min_size=1, max_size=4, unique=True
        ),
        "bench.concurrency": st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True),
        "bench.window_s": st.lists(st.sampled_from([60, 600]), min_size=1, max_size=2, unique=True),
    }
)


@QUICK
@given(BUDGETED, st.floats(0.3, 20), st.integers(20, 400), st.sampled_from(["drop", "keep"]))
def test_no_plan_exceeds_its_budget_loads_more_than_it_must_or_loses_a_point_silently(
    grid: dict[str, list[int]], hours: float, limit_min: int, infeasible: str
) -> None:
    words = [f"{key}={','.join(map(str, values))}" for key, values in grid.items()]
    words += ["cluster=slurm", "results.root=/there/are/no/runs", f"launch.infeasible={infeasible}"]
    points = compose.expand([*words, f"launch.budget_node_hours={hours}", f"cluster.time_limit={limit_min}"])
    try:
        made = road.plan(points, composer)
    except ConfigError as error:
        assert error.key == "launch.budget_node_hours"
        return
    assert sum(allocation.node_hours for allocation in made.allocations) <= hours + 1e-9
    served = [point for service in made.services for point in service.points]
    assert len(set(served)) == len(served)
    dropped = [one.point.point for one in made.dropped]
    assert sorted([*served, *made.refused, *dropped]) == sorted(set(made.asked))
    by_id = {point.point: point for point in made.points}
    assert sorted(by_id) == sorted([*served, *made.refused])
    assert len(made.services) == len({leaves(by_id[point].config, "service") for point in served})
    for service in made.services:
        assert len({leaves(by_id[point].config, "service") for point in service.points}) == 1
        assert service.phases is not None
        assert service.seconds == pytest.approx(service.phases.total)
    assert [name for a in made.allocations for name in a.services] == [s.service for s in made.services]
    for allocation in made.allocations:
        assert len(allocation.services) == 1 or allocation.seconds <= limit_min * 60
    assert json.loads(json.dumps(as_json(made))) == as_json(made)


def test_the_memory_of_a_service_is_asked_for_once() -> None:
    words = [["cluster=slurm", f"bench.concurrency={1 + n}", f"parallel.seed={n % 3}"] for n in range(30)]
    asked: list[Config] = []

    def look(config: Config) -> Any:
        asked.append(config)
        return grouping.unknown(config)

    made = plan_of(*compose.configs(words, composer), overrides=words, forecast_of=look)
    assert (len(made.points), len(made.services), len(asked)) == (30, 3, 3)


# --- identity


def test_identity_is_the_same_in_another_process_with_another_hash_seed() -> None:
    program = "import sys; from core_help import config; from jobs.sweep.points import identity\n"
    program += "print(identity(config('experiment=article'), 'service', 'point'))"
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/unit'}", "PYTHONHASHSEED": "4711"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == identity(config("experiment=article"), "service", "point")


def test_identity_does_not_depend_on_the_order_of_keys() -> None:
    one = change(config(), engine__env={"A": 1, "B": {"c": 1, 2: "d"}})
    other = change(config(), engine__env={"B": {2: "d", "c": 1}, "A": 1})
    assert list(one.engine.env) != list(other.engine.env)
    assert identity(one, "service") == identity(other, "service")


def test_each_leaf_changes_exactly_the_identities_of_its_scope() -> None:
    base = config()
    service, point = identity(base, "service"), identity(base, "service", "point")
    for name, scope in schema.schema().items():
        changed = change(base, **{name.replace(".", "__"): "another value"})
        assert (identity(changed, "service") != service) == (scope == "service"), name
        assert (identity(changed, "service", "point") != point) == (scope in ("service", "point")), name


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["limits.load_s=1,2"], "limits.load_s"),
        (["cluster.partition=a,b"], "cluster.partition"),
        (["engine.port=8000,8001"], "engine.port"),
        (["results.root=a,b"], "results.root"),
        (["launch.dry_run=true,false"], "launch.dry_run"),
        (["cluster=slurm,local"], "cluster"),
        (["cluster.sbatch_args.foo=1,2"], "cluster.sbatch_args.foo"),
        (["experiment=demo,article"], "cluster.kind"),
    ],
)
def test_a_swept_key_that_does_not_change_the_question_is_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(*overrides)
    assert caught.value.key == key


@pytest.mark.parametrize("key", [key for key, scope in schema.schema().items() if scope == "sweep"])
def test_two_points_of_one_service_never_differ_in_what_belongs_to_the_sweep(key: str) -> None:
    """No override can ask for it; the experiment files of a site can."""
    first, second = config("bench.concurrency=1"), config("bench.concurrency=2")
    other = change(second, **{key.replace(".", "__"): "another value"})
    with pytest.raises(ConfigError, match="the points of one sweep differ in it") as caught:
        allowed(first, other)
    assert caught.value.key == key


def test_services_may_differ_in_what_each_is_started_with_but_not_in_the_limits_of_the_sweep() -> None:
    first, second = config("parallel.max_model_len=8192"), config("parallel.max_model_len=4096")
    allowed(first, change(second, engine__port=8001, model__source="x"))
    with pytest.raises(ConfigError) as caught:
        allowed(first, change(second, limits__rendezvous_s=7.0))
    assert (caught.value.key, caught.value.value) == ("limits.rendezvous_s", "300.0 and 7.0")


def allowed(*configs: Config) -> None:
    points = points_of([[] for _ in configs], configs, ())
    check.refuse_points(points, {point.point: () for point in points})


# --- allocations


@QUICK
@given(
    sizes=st.lists(st.floats(1, 4000), min_size=1, max_size=12),
    nodes=st.lists(st.sampled_from([1, 2, 2, 2]), min_size=12, max_size=12),
    limit_min=st.integers(1, 120),
)
def test_allocations_respect_the_time_limit_and_are_not_split_without_need(
    sizes: list[float], nodes: list[int], limit_min: int
) -> None:
    base = change(config("cluster=slurm"), cluster__time_limit=str(limit_min))
    configs = [
        change(base, model__shape__weight_gib=size, parallel__seed=i, parallel__data_parallel_size=nodes[i])
        for i, size in enumerate(sizes)
    ]
    made = plan_of(*configs)
    seconds = {service.service: service.seconds for service in made.services}
    count = {point.service: point.config.parallel.data_parallel_size for point in made.points}
    for allocation in made.allocations:
        total = sum(seconds[name] for name in allocation.services)
        assert allocation.seconds == pytest.approx(total)
        assert len(allocation.services) == 1 or total <= limit_min * 60
        assert {count[name] for name in allocation.services} == {allocation.nodes}
    for one, following in zip(made.allocations, made.allocations[1:], strict=False):
        fits = one.nodes == following.nodes and one.seconds + seconds[following.services[0]] <= limit_min * 60
        assert not fits


def test_node_hours_are_nodes_times_hours() -> None:
    assert plan.Allocation(("a",), nodes=2, seconds=5400).node_hours == 3.0


def test_the_weights_are_read_once_a_service_and_bound_its_predicted_start() -> None:
    slow = config("cluster=slurm", "cluster.model_read_gb_s=0.5")
    assert duration.load_seconds(slow) - duration.START_S == pytest.approx(640 * 1.0737 / 0.5)
    [service] = planned("cluster=slurm", "bench.concurrency=1,2,3", "results.root=/there/are/no/runs").services
    measured = 3 * duration.measure_seconds(config())
    assert service.seconds == pytest.approx(duration.load_seconds(config()) + measured + config().limits.stop_s)


# --- Slurm times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("UNLIMITED", None),
        ("infinite", None),
        ("0", None),  # sbatch(1): zero asks for no limit
        ("0:00:00", None),
        ("30", 1800),
        (30, 1800),
        ("90:30", 5430),
        ("8:00:00", 28800),
        ("1:02:03", 3723),
        ("2-3", 2 * 86400 + 3 * 3600),
        ("2-3:04", 2 * 86400 + 3 * 3600 + 4 * 60),
        ("2-03:04:05", 2 * 86400 + 3 * 3600 + 4 * 60 + 5),
        ("0-0:0:1", 1),
    ],
)
def test_limit_seconds_reads_every_form_of_sbatch(text: Any, seconds: int | None) -> None:
    assert limit_seconds(text) == seconds


@QUICK
@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_limit_seconds_of_any_time(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert limit_seconds(f"{days}-{hours}:{minutes}:{seconds}") == (total or None)
    assert limit_seconds(f"{days * 24 + hours}:{minutes:02}:{seconds:02}") == (total or None)


@pytest.mark.parametrize(
    "text", ["28800", "", "soon", "1:2:3:4", "-1", "1-", "1-2-3", "1.5", "8h", " 5", "1:", "1-2:3:4:5"]
)
def test_what_is_no_slurm_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        limit_seconds(text)
    assert caught.value.key == "cluster.time_limit"
    assert caught.value.value == text


def test_the_plan_is_plain_json_and_names_what_the_issue_names() -> None:
    made = as_json(planned("cluster=slurm", "bench.concurrency=1,2"))
    assert json.loads(json.dumps(made)) == made
    assert {"point", "overrides", "service"} <= made["points"][0].keys()
    assert {"service", "points", "ranks"} <= made["services"][0].keys()
    assert {"rank", "role", "env", "argv"} <= made["services"][0]["ranks"][0].keys()
    assert {"services", "nodes"} <= made["allocations"][0].keys()
    assert made["points"][1]["overrides"] == ["cluster=slurm", "bench.concurrency=2"]


def test_configs_are_not_changed_by_planning() -> None:
    before = config("cluster=slurm")
    kept = json.dumps(asdict(before))
    plan_of(before)
    assert json.dumps(asdict(before)) == kept


@pytest.mark.parametrize(("minutes", "warned"), [(10, True), (480, False)])
def test_a_time_limit_that_is_too_short_for_any_point_is_a_warning_with_the_remedy(minutes: int, warned: bool) -> None:
    made = planned(f"cluster.time_limit={minutes}")
    found = [text for text in made.warnings if text.startswith(f"cluster.time_limit={minutes} is too short")]
    assert bool(found) == warned
    assert all("give at least" in text for text in found)


def test_an_experiment_of_ones_own_has_the_sweep_of_the_one_it_begins_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(compose.CONF, tmp_path / "conf"))
    (own / "experiment/ours.yaml").write_text("# @package _global_\ndefaults:\n  - long_context\nbench:\n  seed: 7\n")
    known = grammar.groups(own)
    monkeypatch.setattr(grammar, "groups", lambda: known)
    monkeypatch.setattr(compose, "CONF", own)
    assert len(compose.expand(["experiment=ours"])) == len(compose.expand(["experiment=long_context"])) > 1
