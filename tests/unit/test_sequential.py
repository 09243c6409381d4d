"""A or B: false alarms, what is found, what it costs, and a bisection, by simulation with fixed seeds."""

from __future__ import annotations

import pytest

from benchmarks.decides import Kind, bisected, fixed_pairs, spent
from jobs.results.sequential import Decision, decide, errors_of, first_pairs, first_worse


@pytest.mark.parametrize(
    ("deviation", "kind"),
    [
        *((0.02, kind) for kind in (Kind(), Kind(by_turns=True), Kind(heavy=True), Kind(drift=True))),
        *((0.045, kind) for kind in (Kind(), Kind(by_turns=True))),
    ],
)
def test_two_hundred_equal_settings_are_told_apart_in_one_of_twenty_and_differences_found_in_all_but_that(
    deviation: float, kind: Kind
) -> None:
    equal, apart = spent(0.0, deviation, 200, kind=kind), spent(0.03, deviation, 200, seed=1, kind=kind)
    assert equal.better + equal.worse <= 0.05
    assert apart.better >= 0.95
    assert spent(-0.03, deviation, 200, seed=2, kind=kind).worse >= 0.95
    if not kind.by_turns:
        assert apart.pairs <= fixed_pairs(deviation, 0.03) / 2 + 1


def test_nothing_is_decided_by_few_pairs() -> None:
    pairs = [(1.0, 1.05), (1.001, 1.051), (1.0, 1.05), (1.001, 1.05), (1.0, 1.051), (1.001, 1.051)]
    assert decide([], 0.03) == Decision("open", 0, 0.0, -1.0, float("inf"))
    for by_turns, first in ((False, 4), (True, 6)):
        assert first_pairs(by_turns=by_turns) == first
        assert decide(pairs[: first - 1], 0.03, by_turns=by_turns).answer == "open"
        assert decide(pairs[:first], 0.03, by_turns=by_turns).answer == "better"
    assert decide([(two, one) for one, two in pairs], 0.03).answer == "worse"
    assert decide([(one, one) for one, _ in pairs], 0.03).answer == "same"


def test_what_adjacent_measurements_share_is_no_scatter_of_theirs() -> None:
    slower = [(1 - 0.1 * number, 1.05 - 0.1 * number) for number in range(6)]
    assert decide(slower, 0.03).answer == "better", "a straight line is taken out of starts"
    jumps = [(one + jump, two + jump) for (one, two), jump in zip(slower, (0.3, 0, 0.2, 0, 0.3, 0), strict=True)]
    assert decide(jumps, 0.03, by_turns=True).answer == "better"
    assert decide(jumps, 0.03).answer == "open"


def test_the_errors_of_a_bisection_add_up_to_one_of_ten() -> None:
    assert errors_of(2) == (0.05, 0.05)
    alpha, beta = errors_of(16)
    assert 5 * beta == pytest.approx(0.1) and alpha == 2 * beta


def test_the_interval_holds_the_ratio() -> None:
    made = decide([(0, one) for one in (0.02, 0.04, 0.03, 0.05, 0.01, 0.03)], 0.03)
    assert made.low < made.ratio < made.high and made.ratio == pytest.approx(0.0305, abs=1e-3)


def test_bisection_finds_the_first_that_is_worse() -> None:
    for hidden in range(1, 16):
        assert first_worse(16, lambda place, first=hidden: place >= first) == hidden
    assert first_worse(16, lambda place: False) is None
    assert first_worse(1, lambda place: True) is None
    assert sum(bisected(seed, 0.03)[0] for seed in range(20)) >= 18
