"""A search is a sweep: one directory, which is followed, left by Ctrl-C, cancelled and resumed like any other."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from test_rehearsal import finish, start, the_sweep, until, verb

from jobs.cluster.base import ENDED, job_state
from jobs.core.files import read_json
from jobs.core.planfile import read_plan
from jobs.core.tasks import read_outcome
from jobs.forecast.search import read_search

pytestmark = pytest.mark.usefixtures("warm")

SPACE = "tune.space={parallel.max_num_seqs: [1, 16], bench.concurrency: [7, 8]}"
LOAD = ("bench.input_tokens=64", "bench.output_tokens=8", "bench.window_s=1", "bench.repeats=2")
SHORT = ("bench.warmup_s=0.2", "bench.canary=off")


def test_a_search_is_left_cancelled_and_resumed_to_its_answer(tmp_path: Path) -> None:
    process = start(tmp_path, "hydra/sweeper=tune", SPACE, "tune.budget_node_hours=1", *LOAD, *SHORT)
    until(lambda: len(list((tmp_path / "latest").glob("points/*/row.json"))) > 0, "a first row")
    sweep = the_sweep(tmp_path)
    until(lambda: len(read_plan(sweep).points) == 2, "a second start")
    os.killpg(process.pid, signal.SIGINT)
    assert "detached: the search goes on" in finish(process, 130)
    first = read_plan(sweep).points[0].point
    rows = {path: read_json(path) for path in sweep.path.glob("points/*/row.json")}
    done = {path: row["output_tok_per_s"] for path, row in rows.items() if row["valid"] and not row["truncated"]}
    told = verb("status", str(sweep.path))
    assert re.search(r"\d of \d points measured", told.stdout) and first in told.stdout
    verb("cancel", str(sweep.path))
    [folder] = sweep.allocations()
    until(lambda: read_outcome(folder) is not None and job_state(folder) in ENDED, "the end of the allocation")
    assert not read_json(sweep.answer)["over"]

    resumed = verb("resume", str(sweep.path))
    assert "the search goes on" in resumed.stdout and "best: parallel.max_num_seqs=" in resumed.stdout
    kept = {path: read_json(path)["output_tok_per_s"] for path in done}
    assert kept == done, "what was measured is not measured again"
    found, search = read_json(sweep.answer), read_search(sweep)
    assert found["over"] and found["answer"]["name"] in [one.candidate.name for one in search.settings]
    assert 0 < found["node_hours"] < 1
    begun = {one.point for one in read_plan(sweep).points}
    assert found["starts"] <= len(begun) < len(search.points), "only what was begun stands in the table"
    assert "nothing to do" in verb("resume", str(sweep.path)).stdout
