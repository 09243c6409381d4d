"""A or B: false alarms, what is found, what it costs, and a bisection, by simulation with fixed seeds."""

from __future__ import annotations

import pytest

from benchmarks.decides import bisected, spent
from jobs.results.sequential import FIRST, Decision, Known, decide, errors_of, first_worse, fixed_pairs, known_of


@pytest.mark.parametrize("deviation", [0.02, 0.045])
def test_two_hundred_equal_settings_are_told_apart_in_one_of_twenty_and_differences_found_in_all_but_that(
    deviation: float,
) -> None:
    equal, apart = spent(0.0, deviation, 200), spent(0.03, deviation, 200, seed=1, free=30)
    assert equal.better + equal.worse <= 0.05
    assert apart.better >= 0.95
    assert spent(-0.03, deviation, 200, seed=2).worse >= 0.95
    assert apart.pairs <= fixed_pairs(deviation, 0.03) / 2 + 1


def test_nothing_is_decided_by_few_pairs_but_a_known_deviation_makes_them_enough() -> None:
    logs = [0.031, 0.029, 0.03]
    assert decide([], 0.03) == Decision("open", 0, 0.0, -1.0, float("inf"))
    assert decide(logs, 0.03).answer == "open" and len(logs) < FIRST
    assert decide(logs, 0.03, Known(0.01, 20)).answer == "better"
    assert decide([-one for one in logs], 0.03, Known(0.01, 20)).answer == "worse"
    assert decide([0.001, -0.001, 0.0], 0.03, Known(0.01, 20)).answer == "same"


def test_a_known_deviation_that_the_pairs_contradict_is_left_out() -> None:
    logs = [0.09, -0.03, 0.08, -0.02]
    assert decide(logs, 0.03, Known(0.01, 30)) == decide(logs, 0.03)
    assert decide(logs, 0.03, Known(0.06, 30)) != decide(logs, 0.03)
    found = known_of([[0.01, 0.03], [0.2], [0.5, 0.52, 0.54]])
    assert found and found.free == 3 and found.deviation == pytest.approx(0.0183, abs=1e-4)
    assert known_of([[0.1], []]) is None


def test_the_errors_of_a_bisection_add_up_to_one_of_ten() -> None:
    assert errors_of(2) == (0.05, 0.05)
    alpha, beta = errors_of(16)
    assert 5 * beta == pytest.approx(0.1) and alpha == 2 * beta


def test_the_interval_holds_the_ratio() -> None:
    made = decide([0.02, 0.04, 0.03, 0.05, 0.01, 0.03], 0.03)
    assert made.low < made.ratio < made.high and made.ratio == pytest.approx(0.0305, abs=1e-3)


def test_bisection_finds_the_first_that_is_worse() -> None:
    for hidden in range(1, 16):
        assert first_worse(16, lambda place, first=hidden: place >= first) == hidden
    assert first_worse(16, lambda place: False) is None
    assert first_worse(1, lambda place: True) is None
    assert sum(bisected(seed, 0.03)[0] for seed in range(20)) >= 18
