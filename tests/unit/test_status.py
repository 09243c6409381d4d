"""What `status` says: by the files, and by squeue where a job has not ended."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from results_help import planned

from jobs.cluster import base, squeue
from jobs.core.files import write_json, write_text
from jobs.core.rundir import AllocationDir, SweepDir
from jobs.core.tasks import AllocationTask, ServiceTask, read_config
from jobs.results.row import make_row
from jobs.results.table import read_table
from jobs.sweep import lost, status


@pytest.fixture
def folder(tmp_path: Path) -> SweepDir:
    """Four points in two services, submitted as one Slurm job."""
    lengths = "parallel.max_model_len=8192,4096"  # in the order of running
    found, made = planned(tmp_path, lengths, "bench.concurrency=1,4")
    tasks = tuple(ServiceTask(s.service, s.points) for s in made.services)
    write_json(found.allocation(0, 1).task, AllocationTask(tasks, 1))
    write_json(found.allocation(0, 1).job, {"kind": "slurm", "job_id": "7", "nodes": 2, "submitted": 1.0})
    return found


def cluster_says(monkeypatch: pytest.MonkeyPatch, state: str, **queue: str) -> None:
    monkeypatch.setattr(base, "job_state", lambda _: state)
    monkeypatch.setattr(base, "queue_words", lambda _: queue)


def names(found: SweepDir) -> tuple[list[str], list[str]]:
    described = status.describe(found)
    return [p["point"] for p in described["points"]], list(dict.fromkeys(p["service"] for p in described["points"]))


def row(found: SweepDir, item: dict[str, Any], **known: Any) -> None:
    config = read_config(found, item["point"])
    write_json(found.point(item["point"]).row, make_row(item["point"], item["service"], config, **known))


def test_a_pending_job_says_why_it_waits(folder: SweepDir, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_says(monkeypatch, "PENDING", reason="Resources", starts="2026-01-01T00:00:00")
    described = status.describe(folder)
    [allocation] = described["allocations"]
    assert (allocation["job_id"], allocation["state"], allocation["reason"]) == ("7", "PENDING", "Resources")
    assert [service["state"] for service in allocation["services"]] == ["waiting", "waiting"]
    assert {point["state"] for point in described["points"]} == {"waiting"}
    assert status.lines(described)[0] == (
        "allocation 0 attempt 1: job 7 PENDING, reason Resources, starts 2026-01-01T00:00:00"
    )


def test_a_running_one_shows_each_rank_and_the_point_that_is_measured(
    folder: SweepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_says(monkeypatch, "RUNNING", nodelist="n[1-2]", left="1:00:00")
    points, (first, second) = names(folder)
    done = folder.service(first, 1)
    done.rank(0).enter("done")
    done.rank(1).enter("done")
    write_json(done.record, {"load_s": 812.4, "failure": None})
    now = folder.service(second, 1)
    now.rank(0).enter("measuring", point=points[2])
    now.rank(1).enter("loading", shards="20/163")
    row(folder, status.describe(folder)["points"][0], valid=True)
    described = status.describe(folder)
    assert [point["state"] for point in described["points"]] == ["valid", "waiting", "running", "waiting"]
    text = status.lines(described)
    assert (
        text[0] == f"allocation 0 attempt 1: job 7 RUNNING, nodelist n[1-2], left 1:00:00, service {second} measuring"
    )
    assert text[1] == f"  service {first} parallel.max_model_len=8192: done, ready after 812.4 s"
    assert text[2] == f"  service {second} parallel.max_model_len=4096: measuring, rank 1 loading"
    assert text[3] == "1 of 4 points measured, 1 valid"


def test_a_failed_one_names_reason_and_diagnosis(folder: SweepDir, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_says(monkeypatch, "FAILED")
    _, (first, second) = names(folder)
    service = folder.service(first, 1)
    service.rank(0).enter("failed", reason="rank 1 (headless): NPU out of memory")
    write_json(service.record, {"load_s": None, "failure": "rank 1 (headless): NPU out of memory"})
    write_text(service.diagnosis, "cause")
    write_json(folder.allocation(0, 1).outcome, {"ended": "rank 1 is lost", "valid": False})
    items = status.describe(folder)["points"]
    row(folder, items[0], invalid_reason="rank 1 (headless): NPU out of memory")
    row(folder, items[2], invalid_reason="not run: rank 1 is lost")
    text = "\n".join(status.lines(status.describe(folder)))
    assert "job 7 FAILED, ended: rank 1 is lost" in text
    assert (
        f"service {first} parallel.max_model_len=8192: failed, rank 1 (headless): NPU out of memory, see "
        f"{service.diagnosis}" in text
    )
    assert "max_model_len=8192 bench.concurrency=1  invalid: rank 1 (headless): NPU out of memory" in text
    assert "max_model_len=4096 bench.concurrency=1  not run: rank 1 is lost" in text
    assert "1 of 4 points measured, 0 valid" in text
    assert second in text


def test_a_job_without_a_number_yet(folder: SweepDir) -> None:
    bare = AllocationDir(folder.allocation(0, 1).path)
    bare.job.unlink()
    [allocation] = status.describe(folder)["allocations"]
    assert (allocation["job_id"], allocation["state"]) == (None, "GONE"), "nobody is submitting it"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("PENDING|Priority||N/A|8:00:00", {"reason": "Priority", "starts": ""}),
        ("PENDING|None||N/A|8:00:00", {"reason": "", "starts": ""}),
        ("RUNNING|None|n[1-2]|2026-01-01T00:00:00|7:59:00", {"nodelist": "n[1-2]", "left": "7:59:00"}),
        ("", {}),
    ],
)
def test_squeues_words(answer: str, words: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, answer + "\n", "")
    monkeypatch.setattr(squeue.process, "run", lambda *_, **__: done)
    assert squeue.queue_words("7") == words


def test_after_a_job_that_died_every_point_has_its_reason_and_no_row_is_written(
    folder: SweepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_says(monkeypatch, "NODE_FAIL")
    monkeypatch.setattr(lost, "job_state", lambda _: "NODE_FAIL")
    points, (first, _) = names(folder)
    folder.service(first, 1).rank(0).enter("measuring", point=points[0])
    described = {point["point"]: point for point in status.describe(folder)["points"]}
    assert described[points[0]]["state"] == "invalid"
    assert described[points[0]]["invalid_reason"].startswith("rank 0 (head): lost in state measuring; its job 7 ended")
    assert {described[point]["state"] for point in points[1:]} == {"not run"}
    assert all("(NODE_FAIL)" in point["invalid_reason"] for point in described.values())
    table = read_table(folder, lost.all_lost(folder))
    assert table["invalid_reason"].tolist() == [described[point]["invalid_reason"] for point in table["point"]]
    assert not list(folder.path.glob("points/*/row.json"))
