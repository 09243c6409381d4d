"""When the job ends: a question that is not answered is asked again, and then others are asked."""

from __future__ import annotations

import math
import time

import pytest

from jobs.allocation import walltime
from jobs.allocation.walltime import Deadline


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walltime, "PAUSES_S", (0.0, 0.0, 0.0))


class Squeue:
    """Answers in turn, and counts the questions."""

    def __init__(self, *answers: float | None) -> None:
        self.answers = list(answers)

    def __call__(self, job_id: str, timeout_s: float) -> float | None:
        assert (job_id, timeout_s) == ("77", walltime.ANSWER_S)
        return self.answers.pop(0)


async def test_a_question_that_is_not_answered_is_asked_again() -> None:
    squeue = Squeue(None, None, 120.0)
    assert await walltime.find("77", {}, 60, squeue) == Deadline(120.0, "squeue")
    assert await walltime.find("77", {}, 60, Squeue(math.inf)) == Deadline(None, "squeue")


async def test_slurms_own_word_at_the_start_comes_next() -> None:
    env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 1000)}
    found = await walltime.find("77", env, 60, Squeue(None, None, None))
    assert found.left_s == pytest.approx(1000, abs=60)
    assert "SLURM_JOB_END_TIME" in str(found)


async def test_then_the_limit_that_was_asked_for_from_the_start_of_the_job() -> None:
    found = await walltime.find("77", {}, 60, Squeue(None, None, None))
    assert found.left_s == 3600
    assert "cluster.time_limit" in str(found)
    env = {"SLURM_JOB_START_TIME": str(int(time.time()) - 600)}
    found = await walltime.find("77", env, 60, Squeue(None, None, None))
    assert found.left_s == pytest.approx(3000, abs=60)


async def test_where_nobody_knows_that_is_said() -> None:
    found = await walltime.find("77", {}, None, Squeue(None, None, None))
    assert found.left_s is None
    assert "nothing is held back" in str(found)
