"""Two commands at the same moment: one begins, and the other follows it, refuses, or has a directory of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_decide import LOADS, begin, words
from test_rehearsal import ROOT as PROJECT
from test_rehearsal import finish, start, the_sweep, until, verb

from jobs.core.files import read_json
from jobs.core.lock import exclusive
from jobs.core.rundir import Root, SweepDir, sweeps_in
from jobs.sweep.contest import ask, settings_of

pytestmark = pytest.mark.usefixtures("warm")

QUICK = ("bench.warmup_s=0.1", "bench.window_s=0.5", "bench.repeats=1", "bench.concurrency=1", "bench.canary=off")

LATE = """
import pathlib, sys, time
from jobs.allocation import submission
from jobs.cli.launch import main
submit, [begun, gate] = submission.submit_allocation, map(pathlib.Path, sys.argv[1:3])
def late(*given, **options):
    begun.touch()
    while not gate.exists():
        time.sleep(0.05)
    return submit(*given, **options)
submission.submit_allocation = late
sys.exit(main(sys.argv[3:]))
"""
"""launch.py that waits before its submission until it is let go on."""


def test_of_two_decides_at_once_one_begins_and_the_other_follows_it(tmp_path: Path) -> None:
    common = words(tmp_path, *LOADS)[words(tmp_path, *LOADS).index("--with") + 1 :]
    contest = ask(settings_of(LOADS[:2], common), "output_tok_per_s", 0.3)
    outputs = [tmp_path / "one", tmp_path / "two"]
    with exclusive(Root(tmp_path).deciding(contest.name)):
        both = [begin(tmp_path, *LOADS, into=path) for path in outputs]
        for path in outputs:
            until(lambda path=path: "is beginning the same question" in path.read_text(), "a decide that waits")
        assert sweeps_in(tmp_path) == []
    codes = [one.wait(120) for one in both]
    said = [path.read_text() for path in outputs]
    assert codes == [0, 0], said
    found = [json.loads(text.splitlines()[-1]) for text in said]
    assert found[0] == found[1] and found[0]["answer"] == "better"
    assert len(sweeps_in(tmp_path)) == 1, "one sweep, which both followed"
    assert sum("it runs already" in text for text in said) == 1


def test_a_resume_beside_the_launcher_waits_for_it_and_submits_nothing(tmp_path: Path) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    overrides = ("-m", "engine=simulator", f"results.root={tmp_path}", "results.name=x", *QUICK)
    argv = [sys.executable, "-c", LATE, str(begun), str(gate), *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    launcher = subprocess.Popen(argv, cwd=PROJECT, text=True, start_new_session=True, **pipes)
    until(begun.exists, "a sweep that is written and not submitted")
    sweep, output = SweepDir(tmp_path / "x"), tmp_path / "resumed"
    with output.open("w") as file:
        argv = [sys.executable, "-m", "jobs", "resume", str(sweep.path)]
        resumed = subprocess.Popen(argv, cwd=PROJECT, stdout=file, stderr=subprocess.STDOUT)
    until(lambda: "waiting: process" in output.read_text(), "a resume that waits")
    assert f"process {launcher.pid} on" in output.read_text()
    gate.touch()
    finish(launcher, 0)
    resumed.wait(60)
    told = output.read_text()
    assert "allocation 0 is " in told or "nothing to do" in told, "it came while the allocation ran, or after it"
    assert "Traceback" not in told
    assert [folder.path.name for folder in sweep.allocations()] == ["1"]
    assert len(list((sweep.path / "allocations").iterdir())) == 1, "nothing was submitted twice"


def test_two_launches_of_one_name_have_two_directories(tmp_path: Path) -> None:
    both = [start(tmp_path, "results.name=named", *QUICK) for _ in range(2)]
    said = [finish(one, 0) for one in both]
    for name in ("named", "named-2"):
        [row] = [read_json(path) for path in tmp_path.glob(f"{name}/points/*/row.json")]
        assert row["valid"] and sum(f"sweep {tmp_path / name}\n" in text.replace(" (there is", "\n") for text in said)
    assert sum("(there is a named already)" in text for text in said) == 1


def test_two_tunes_and_a_resume_at_once_are_two_searches(tmp_path: Path) -> None:
    asked = ("hydra/sweeper=tune", "tune.space={parallel.max_num_seqs: [1, 2]}", "tune.budget_node_hours=0.3")
    few = ("results.name=named", "bench.input_tokens=16", "bench.output_tokens=4", *QUICK[:3], QUICK[4])
    both = [start(tmp_path, *asked, *few) for _ in range(2)]
    sweep = SweepDir(tmp_path / "named")
    until(lambda: any(sweep.allocations()), "a search that runs")
    refused = verb("resume", str(sweep.path))
    assert "Traceback" not in refused.stdout + refused.stderr
    for one in both:
        finish(one, 0)
    for name in ("named", "named-2"):
        assert read_json(SweepDir(tmp_path / name).answer)["over"]
        assert len(list((tmp_path / name / "allocations").iterdir())) == 1
    assert the_sweep(tmp_path).path.name in ("named", "named-2")
