"""What `follow` says of a job that waits."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from results_help import planned
from rich.console import Console

from jobs.cluster.slurm import Slurm
from jobs.cluster.squeue import may_never_start
from jobs.core.files import write_json
from jobs.core.tasks import AllocationTask, ServiceTask
from jobs.sweep import follow as following
from jobs.sweep.follow import follow


@pytest.mark.parametrize(
    ("reason", "never"),
    [
        ("PartitionNodeLimit", True),
        ("PartitionTimeLimit", True),
        ("QOSMaxNodePerJobLimit", True),
        ("AssocMaxWallDurationPerJobLimit", True),
        ("AssocGrpNodeLimit", False),
        ("JobHeldUser", True),
        ("DependencyNeverSatisfied", True),
        ("Dependency", False),
        ("Priority", False),
        ("Resources", False),
        ("", False),
    ],
)
def test_which_reasons_do_not_pass(reason: str, never: bool) -> None:
    assert may_never_start(reason) == never


@pytest.mark.parametrize(("reason", "warned"), [("PartitionNodeLimit", True), ("Resources", False)])
def test_why_a_job_waits_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, warned: bool
) -> None:
    sweep, made = planned(tmp_path)
    tasks = tuple(ServiceTask(one.service, one.points) for one in made.services)
    write_json(sweep.allocation(0, 1).task, AllocationTask(tasks, 1))
    write_json(sweep.allocation(0, 1).job, {"kind": "slurm", "job_id": "7", "nodes": 2, "submitted": 1.0})
    answers = iter(["2026-01-01T00:00:00", "2026-01-01T00:10:00", ""])
    monkeypatch.setattr(Slurm, "poll_s", 0)
    monkeypatch.setattr(following, "POLL_S", 0)
    monkeypatch.setattr(following, "job_state", lambda _: "PENDING")
    monkeypatch.setattr(following, "queue_words", lambda _: {"reason": reason, "starts": next(answers)})
    looks = iter([False, False, True])
    out = io.StringIO()
    follow(sweep, Console(file=out, width=300), until=lambda: next(looks))
    text = out.getvalue()
    assert text.count(f"allocation 0: job 7 waits: {reason}") == 1
    assert text.count("expected to start at 2026-01-01T00:00:00") == 1
    assert "00:10:00" not in text
    assert (f"{reason} does not pass by itself" in text) == warned
