"""The tuner decides by rows and budget alone; what is refused, hopeless or failed costs nothing more."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest

from benchmarks.tunes import GOAL, NEAR, budget, grid, misled, truth, tuned
from jobs.forecast.learn import learn
from jobs.forecast.tuner import Goal, Shown, Space, Step, answer, next_step, spent

LEARNT = learn([])
SMALL = grid()[::4]


@pytest.fixture(scope="module")
def space() -> Space:
    return Space(SMALL, LEARNT.posterior, GOAL)


def searched(space: Space, most: float, seed: int = 1) -> tuple[list[Shown], list[Step]]:
    real, rows, steps = truth(seed), list[Shown](), []
    while (step := next_step(space, rows, most)).do != "stop":
        steps.append(step)
        start = sum(one.do == "start" for one in steps)
        rows.append(real.window(step.candidate * 4, start, len(rows)))
        rows[-1] = replace(rows[-1], candidate=step.candidate)
    return rows, steps


@pytest.mark.parametrize("seed", [0])
def test_the_best_of_a_grid_is_found_for_a_third_of_its_cost_even_with_a_wrong_prior(seed: int) -> None:
    real = truth(seed)
    found = tuned(real, LEARNT, budget())
    assert found.share >= 1 - NEAR and found.hours <= budget()
    wrong = tuned(real, misled(LEARNT), 1.5 * budget())
    assert wrong.share >= 1 - NEAR and wrong.hours <= 1.5 * budget()


def test_killed_at_any_moment_it_goes_on_to_the_same_decisions(space: Space) -> None:
    rows, steps = searched(space, 10.0)
    again = Space(SMALL, LEARNT.posterior, GOAL)
    for place, step in enumerate(steps):
        assert next_step(again, rows[:place], 10.0) == step


def test_the_budget_holds_and_what_leads_is_started_twice(space: Space) -> None:
    rows, _ = searched(space, 4.0)
    assert spent(space, rows) <= 4.0
    rows, _ = searched(space, 60.0)
    made = answer(space, rows)
    assert made and made.low < made.value < made.high
    best = [one.name for one in SMALL].index(made.name)
    assert len({one.start for one in rows if one.candidate == best}) >= 2


def test_what_is_refused_is_never_started_and_what_failed_never_again() -> None:
    refused = [replace(one, refused="memory" if place % 2 else "") for place, one in enumerate(SMALL)]
    space = Space(refused, LEARNT.posterior, GOAL)
    _, steps = searched(space, 10.0)
    assert all(step.candidate % 2 == 0 for step in steps)
    first = next_step(space, [], 10.0).candidate
    assert next_step(space, [Shown(first, 0, {})], 10.0).candidate != first
    everything = Space([replace(one, refused="a rule") for one in SMALL], LEARNT.posterior, GOAL)
    assert next_step(everything, [], 10.0).why.startswith("nothing can be started")
    assert next_step(space, [], 0.1).do == "stop", "a budget below one start"
    assert answer(everything, []) is None


def test_a_setting_that_misses_its_limits_gets_no_further_window_and_is_no_answer() -> None:
    space = Space(SMALL, LEARNT.posterior, Goal(limits=(("tpot_s", 0.2),)))
    step = next_step(space, [], 20.0)
    slow = Shown(step.candidate, 0, {"output_per_s": 9000.0, "ttft_s": 1.0, "tpot_s": 0.4})
    assert next_step(space, [slow], 20.0).candidate != step.candidate
    assert answer(space, [slow]) is None


def test_the_lowest_latency_can_be_the_goal() -> None:
    space = Space(SMALL, LEARNT.posterior, Goal("ttft_s"))
    real, rows = truth(1), list[Shown]()
    while (step := next_step(space, rows, 12.0)).do != "stop":
        start = sum(one.candidate == step.candidate for one in rows)
        rows.append(replace(real.window(4 * step.candidate, start, 0), candidate=step.candidate))
    made = answer(space, rows)
    least = min(real.figures[4 * place]["ttft_s"] for place in range(len(SMALL)))
    assert made is not None and made.value == pytest.approx(least, rel=0.1)


def test_windows_and_starts_that_scatter_widen_what_is_said_of_all(space: Space) -> None:
    figures = {"output_per_s": 3000.0, "ttft_s": 1.0, "tpot_s": 0.1}
    calm = [Shown(place, start, figures, 3, scatter=0.01) for place in (0, 1) for start in (0, 1)]
    spread = [replace(one, scatter=0.2) for one in calm]
    apart = [replace(one, figures={**figures, "output_per_s": 3000.0 * (1 + 0.3 * one.start)}) for one in calm]
    widths = [made.high / made.low for rows in (calm, spread, apart) if (made := answer(space, rows))]
    assert widths[0] < 1.1 < min(widths[1:])


def test_a_space_of_one_setting_is_measured_and_told() -> None:
    rows, steps = searched(Space(SMALL[:1], LEARNT.posterior, GOAL), 60.0)
    assert [step.do for step in steps] == ["start", "start"] or {one.start for one in rows} == {1, 2}
    made = answer(Space(SMALL[:1], LEARNT.posterior, GOAL), rows)
    assert made and made.name == SMALL[0].name and not made.tied


def test_of_equal_settings_the_one_that_chance_helped_is_told_with_the_others_in_mind() -> None:
    """The best of four equal ones seems better than it is: its lower end is that of four, and it is said to be tied."""
    equal = [replace(SMALL[0], name=f"s{n}", keys=(*SMALL[0].keys[:-1], 0.7 * n)) for n in range(4)]
    space = Space(equal, LEARNT.posterior, Goal())
    usual = math.exp(float(space.belief([]).mean[0]))
    tied = missed = 0
    for seed in range(30):
        random, rows, start, begun = Random(seed), list[Shown](), 0, 0.0
        while (step := next_step(space, rows, 60.0)).do != "stop":
            start, begun = (start + 1, random.gauss(0, 0.015)) if step.do == "start" else (start, begun)
            value = usual * math.exp(begun + random.gauss(0, 0.005))
            rows.append(Shown(step.candidate, start, {"output_per_s": value, "ttft_s": 1.0, "tpot_s": 0.05}))
        made = answer(space, rows)
        assert made
        tied += bool(made.tied)
        missed += not made.low <= usual <= made.high
    assert tied >= 27 and missed <= 5
