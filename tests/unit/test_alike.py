"""Texts that differ in figures alone are read once, by windows and by points."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from jobs.core import alike
from jobs.engines.base import Finding
from jobs.sweep.check import Shared, alike_as_one


@pytest.mark.parametrize(
    ("texts", "one"),
    [
        (["p99 of 90 requests"], "p99 of 90 requests"),
        (["p99 of 90 requests", "p99 of 125 requests"], "p99 of 90 / 125 requests"),
        (["5.6 of 10", "5.6 of 10"], "5.6 of 10"),
        ([f"about {n} s" for n in (12, 9, 1_000, 51)], "about 9-1000 s"),
        (["1,200 tokens", "900 tokens", "20 tokens", "3 tokens"], "3-1,200 tokens"),
        ([f"release 0.{n}.0" for n in (9, 11, 13, 18)], "release 0.9.0 / 0.11.0 / 0.13.0 / 0.18.0"),
        (["bench.window_s=20 would do", "bench.window_s=30 would do"], "bench.window_s=20 / 30 would do"),
    ],
)
def test_figures_that_differ_are_told_in_one_text(texts: list[str], one: str) -> None:
    assert len({alike.kind(text) for text in texts}) == 1
    assert alike.as_one(texts) == one


@given(some.text("p9a .,=-#%", max_size=12), some.text("p9a .,=-#%", max_size=12))
@example("9", "#")
def test_texts_of_one_kind_can_be_one(first: str, second: str) -> None:
    assert alike.as_one([first]) == first
    if alike.kind(first) == alike.kind(second):
        assert alike.kind(alike.as_one([first, first])) == alike.kind(first)
        alike.as_one([first, second])


def test_many_warnings_that_differ_in_figures_alone_are_one_for_people() -> None:
    def found(seconds: int, point: int, key: str = "bench.window_s") -> Shared:
        return Shared(Finding("C4", "warning", key, 120, f"takes {seconds} s", f"Set {seconds}0.", "here"), (point,))

    few = [found(5, 4, key="other"), found(6, 5, key="other")]
    many = alike_as_one([found(9, 3), found(12, 0), few[0], found(12, 1), found(40, 2), few[1]])
    assert [(one.finding.reason, one.finding.remedy, one.points) for one in many] == [
        ("takes 9 / 12 / 40 s", "Set 90 / 120 / 400.", (0, 1, 2, 3)),
        ("takes 5 s", "Set 50.", (4,)),
        ("takes 6 s", "Set 60.", (5,)),
    ]
