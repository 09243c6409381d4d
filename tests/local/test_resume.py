"""What a resume finds to do after an end that says nothing about the points: cancelled, or another point's failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_rehearsal import SHORT, entered, finish, start, the_sweep, until, verb

from jobs.core.files import read_json
from jobs.core.rundir import SweepDir
from jobs.results.row import NOT_RUN
from jobs.sweep.resume import unfinished

pytestmark = pytest.mark.usefixtures("warm")

THREE = ("cluster=local", "bench.concurrency=1,2,4", "bench.warmup_s=0.2", "bench.repeats=1")


def left(sweep: SweepDir) -> list[str]:
    """Return the points that a resume would run."""
    return [point for service in unfinished(sweep, retry_failed=False) for point in service.points]


def reasons(sweep: SweepDir) -> list[str]:
    """Return the reasons in the order of measuring."""
    [service] = read_json(sweep.plan)["services"]
    return [str(read_json(sweep.point(point).row)["invalid_reason"]) for point in service["points"]]


def cancelled(root: Path, state: str, *words: str) -> SweepDir:
    """Run three points, cancel them in this state, and return the sweep when all is over."""
    process = start(root, *THREE, *words)
    until(lambda: entered(root, state), state)
    sweep = the_sweep(root)
    verb("cancel", str(sweep.path))
    finish(process, 1)
    return sweep


def test_points_of_a_service_that_was_cancelled_while_loading_are_left(tmp_path: Path) -> None:
    sweep = cancelled(tmp_path, "loading", "engine.rehearsal.load_s=60")
    assert reasons(sweep) == [NOT_RUN + "cancelled or preempted (SIGTERM)"] * 3
    assert len(left(sweep)) == 3


def test_points_that_were_not_begun_when_the_first_was_cancelled_are_left(tmp_path: Path) -> None:
    sweep = cancelled(tmp_path, "measuring", "bench.window_s=60")
    signalled = "cancelled or preempted (SIGTERM)"
    assert reasons(sweep) == [signalled, NOT_RUN + signalled, NOT_RUN + signalled]
    assert len(left(sweep)) == 3, "the one that was cut short too"


def test_points_after_the_one_in_which_the_engine_died_are_left(tmp_path: Path) -> None:
    fault = "engine.rehearsal.faults=[{rank: 1, kind: crash, when: window, after_s: 0.5}]"
    finish(start(tmp_path, *THREE, *SHORT[1:2], fault), 1)
    sweep = the_sweep(tmp_path)
    first, *others = reasons(sweep)
    assert first.startswith("rank 1")
    assert all(reason.startswith(NOT_RUN + "rank 1") for reason in others), others
    assert len(left(sweep)) == 3


def test_an_engine_that_cannot_load_is_the_result_of_all_its_points(tmp_path: Path) -> None:
    fault = "engine.rehearsal.faults=[{rank: 1, kind: error_text, when: load, text: 'RuntimeError: x', code: 1}]"
    finish(start(tmp_path, *THREE, fault), 1)
    sweep = the_sweep(tmp_path)
    assert all(reason.startswith("rank 1") for reason in reasons(sweep))
    assert left(sweep) == []
    assert len(unfinished(sweep, retry_failed=True)[0].points) == 3


def test_a_time_limit_that_no_load_fits_costs_one_job_and_is_said_in_the_plan(tmp_path: Path) -> None:
    output = finish(start(tmp_path, "cluster=local", "cluster.time_limit=2", "engine.rehearsal.load_s=60"), 1)
    assert "cluster.time_limit=2 is too short for any point" in output
    sweep = the_sweep(tmp_path)
    assert [folder.name for folder in (sweep.path / "allocations/0").iterdir()] == ["1"]
    [reason] = reasons(sweep)
    assert reason.startswith(NOT_RUN + "it needs about ")
    assert "no job of cluster.time_limit=2 can begin it" in reason
