"""The fault matrix on a real two-node Slurm: what is left of a sweep, of its processes and of its nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cases import CASES, SIMULATOR, Case, Result
from lanes import Lanes

pytestmark = pytest.mark.usefixtures("warm")

SLACK_S = 20.0
"""A busy machine, with three cases at a time. The exact figures are those of benchmarks/faults.py (docs/faults.md)."""


def _param(case: Case) -> object:
    of_its_kind = [pytest.mark.vllm] if case.real else []
    tags = [pytest.mark.lab, pytest.mark.timeout(600), *of_its_kind]
    return pytest.param(case, id=case.id, marks=tags)


TESTED = [replace(case, overrides=SIMULATOR) if case.rehearsed else case for case in CASES]


# Of the real engine first: what is asked for first says whether it is here (lanes.py).
@pytest.mark.parametrize("case", [_param(case) for case in sorted(TESTED, key=lambda c: (c.alone, not c.real))])
def test_fault(case: Case, lanes: Lanes, request: pytest.FixtureRequest) -> None:
    if case.real:
        request.getfixturevalue("real_vllm")
    check(case, lanes.result(case))


def check(case: Case, result: Result) -> None:
    """Nothing is lost, nothing is left, nothing is a false success, and the reason names who failed first."""
    end = result.end
    text = end.text()
    assert end.state in case.states, text
    assert [(row["valid"], row["truncated"]) for row in end.rows] == list(case.rows), text
    for row in end.rows:
        reason = row["invalid_reason"]
        if row["valid"]:
            assert row["completed"] > 0, text
            assert row["failed"] == 0, text
        else:
            first, *words = case.reason
            assert reason.startswith(first), text
            assert all(word in reason for word in words), text
            assert reason in end.told, "status names the reason"
    assert end.orphans == [], text
    assert end.leaked == [], text
    if case.goal_s is not None:
        assert result.seconds < case.goal_s + case.slack_s + SLACK_S, text
    if case.follows:
        assert result.launcher in (130, -9), "launch.py was ended by its signal, long before the job"
        assert result.table, "the head writes the table, not the launcher"
