"""A budget is never exceeded, and what goes first is what says least."""

from __future__ import annotations

import pytest
from core_help import composer
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.core.errors import ConfigError
from jobs.sweep import compose, plan, road, show
from jobs.sweep.grouping import Start, over_budget
from jobs.sweep.record import as_json


def planned(*overrides: str) -> plan.Plan:
    return road.plan(compose.expand(["cluster=slurm", *overrides, "results.root=/there/are/no/runs"]), composer)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    costs=st.lists(st.floats(0.001, 10), min_size=36, max_size=36),
    share=st.floats(0, 1.2),
    order=st.randoms(use_true_random=False),
)
def test_a_budget_is_never_exceeded_and_nothing_goes_without_need(
    sizes: list[int], costs: list[float], share: float, order: object
) -> None:
    cost = iter(costs)
    starts = []
    for number, size in enumerate(sizes):
        points = tuple(f"{number}.{load}" for load in range(size))
        starts.append(Start(points, costs[-1 - number], {point: next(cost) for point in points}))
    names = [point for start in starts for point in start.points]
    order.shuffle(names)  # type: ignore[attr-defined]
    asked = {point: index for index, point in enumerate(names)}
    whole = sum(start.cost({}) for start in starts)
    gone = over_budget(starts, asked, share * whole)
    assert sum(start.cost(gone) for start in starts) <= share * whole
    for point in gone:
        kept = {other: why for other, why in gone.items() if other != point}
        assert sum(start.cost(kept) for start in starts) > share * whole - 1e-6, "there was room for it"


def test_middle_loads_go_first_and_the_last_asked_of_them_before_the_others() -> None:
    starts = [Start(("a1", "a2", "a3", "a4"), 5, dict.fromkeys(("a1", "a2", "a3", "a4"), 1.0))]
    starts += [Start(("b1", "b2"), 5, {"b1": 1.0, "b2": 1.0}), Start(("c1",), 5, {"c1": 1.0})]
    asked = {point: index for index, point in enumerate(["a1", "a2", "a3", "a4", "b1", "b2", "c1"])}
    assert list(over_budget(starts, asked, 0.0)) == ["a3", "a2", "b2", "a4", "c1", "b1", "a1"]
    assert over_budget(starts, asked, 22.0) == {}
    assert list(over_budget(starts, asked, 20.0)) == ["a3", "a2"]


def test_a_cheap_start_stays_where_a_dear_one_that_was_asked_for_first_does_not_fit() -> None:
    starts = [Start(("a",), 5, {"a": 1.0}), Start(("b",), 0.5, {"b": 1.0})]
    assert list(over_budget(starts, {"a": 0, "b": 1}, 2.0)) == ["a"]


def test_the_plan_is_cut_and_says_what_went() -> None:
    grid = ["parallel.max_model_len=8192,16384", "bench.concurrency=1,4,16,64", "bench.repeats=1"]
    whole = sum(allocation.node_hours for allocation in planned(*grid).allocations)
    made = planned(*grid, "launch.budget_node_hours=1.4")
    assert sum(allocation.node_hours for allocation in made.allocations) <= 1.4 < whole
    assert len(made.services) == 2
    assert [one.point.config.bench.concurrency for one in made.dropped] == [16, 4, 16, 4][: len(made.dropped)]
    kept = {point.point for point in made.points}
    assert kept.isdisjoint(one.point.point for one in made.dropped)
    assert len(kept) + len(made.dropped) == 8
    told = as_json(made)["dropped"]
    assert [item["point"] for item in told] == [one.point.point for one in made.dropped]
    assert told[0]["reason"] == "its load lies between two others of its service"
    assert f"beyond the budget: point {told[0]['point']}" in show.plan_text(made)


def test_a_budget_for_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="the cheapest point alone needs about"):
        planned("launch.budget_node_hours=0.01")
