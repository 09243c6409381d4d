"""How many requests a window will hold, told beforehand."""

from __future__ import annotations

import pytest
from core_help import config

from jobs.forecast.rounds import answer_seconds
from jobs.sweep import check


def told(*overrides: str) -> list[str]:
    return [f"{one.reason}. {one.remedy}" for one in check.findings(config(*overrides)) if one.rule == "C4"]


LONG = ("bench.concurrency=1", "parallel.max_model_len=131072", "bench.input_tokens=130000")


def test_a_closed_loop_of_long_answers_is_told_and_a_length_proposed() -> None:
    """Published: a prompt of 128K takes 46 to 100 s to the first token."""
    each = answer_seconds(config(*LONG))
    assert each and 50 < each < 150
    [words] = told(*LONG)
    assert "requests a slot in the window" in words
    proposed = int(words.partition("bench.window_s=")[2].split()[0])
    assert proposed == pytest.approx(10 * each, abs=10)
    assert told(*LONG, f"bench.window_s={proposed}") == []


def test_a_rate_that_brings_too_few_is_told() -> None:
    [words] = told("bench.request_rate=0.5")
    assert "about 60 requests come" in words and "bench.window_s=240" in words
    assert told("bench.request_rate=0.5", "bench.window_s=240") == []


def test_usual_loads_are_not_warned_of() -> None:
    assert told() == told("bench.concurrency=1") == told("bench.request_rate=2") == []
    assert told("bench.num_requests=20") == told("engine=simulator") == [], "asked for as it is; no measurement"
