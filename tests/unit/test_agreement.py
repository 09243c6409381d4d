"""The measure by which clients agree (benchmarks/clients_agree.py): as narrow as the runs are steady."""

from __future__ import annotations

import pytest

from benchmarks.agreement import CEILING, FLOOR, differ, tolerance

STEADY = {"window": [100.0, 102.0, 98.0, 101.0], "other": [99.0, 101.0, 103.0, 100.0]}


def test_steady_runs_leave_the_floor_alone() -> None:
    assert tolerance(STEADY, "window", "other") == FLOOR
    assert differ(STEADY, "window") == {}
    assert differ(STEADY | {"slow": [118.0, 120.0, 119.0, 121.0]}, "window").keys() == {"slow"}
    assert differ(STEADY | {"fast": [80.0, 82.0, 81.0, 79.0]}, "window").keys() == {"fast"}, "either way"


def test_noise_widens_it_by_what_the_runs_show() -> None:
    noisy = {"window": [100.0, 140.0, 90.0, 120.0], "other": [150.0, 105.0, 125.0, 170.0]}
    allowed = tolerance(noisy, "window", "other")
    assert FLOOR < allowed < 0.75
    assert differ(noisy, "window") == {}
    twice = noisy | {"other": [value * 1.6 for value in noisy["other"]]}
    assert tolerance(twice, "window", "other") == pytest.approx(allowed), "a factor is no noise"
    assert differ(twice, "window").keys() == {"other"}


def test_more_runs_narrow_it() -> None:
    noisy = {"window": [100.0, 140.0, 90.0, 120.0], "other": [150.0, 105.0, 125.0, 170.0]}
    more = {client: values * 4 for client, values in noisy.items()}
    assert tolerance(more, "window", "other") < tolerance(noisy, "window", "other") / 2


def test_no_noise_excuses_a_factor_of_more_than_two() -> None:
    wild = {"window": [100.0, 400.0, 50.0], "other": [220.0, 900.0, 110.0]}
    assert tolerance(wild, "window", "other") == CEILING
    assert differ(wild, "window").keys() == {"other"}
