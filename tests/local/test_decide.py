"""`python -m jobs decide` on real processes: Ctrl-C, a kill, a difference that is there, and none that can be shown."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_rehearsal import ROOT as PROJECT
from test_rehearsal import finish, hears_ctrl_c, the_sweep, until, verb

from jobs.core.files import read_lines
from jobs.core.rundir import SweepDir, sweeps_in

pytestmark = pytest.mark.usefixtures("warm")

QUICK = (
    *("engine=simulator", "engine.rehearsal.load_s=0.1", "bench.canary=off", "bench.check_share=0"),
    *("bench.warmup_s=0.1", "bench.window_s=0.8", "bench.repeats=1", "bench.input_tokens=64"),
)
LOADS = ("bench.concurrency=1", "bench.concurrency=8", "--difference", "30%", "--pairs", "20")


def words(root: Path, *asked: str) -> tuple[str, ...]:
    return ("decide", "--json", *asked, "--with", f"results.root={root}", *QUICK)


def begin(root: Path, *asked: str, into: Path | None = None) -> subprocess.Popen[str]:
    """Begin a decide. `into`: the file of its output; None: a pipe."""
    argv = [sys.executable, "-m", "jobs", *words(root, *asked)]
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(into.open("w")) if into else subprocess.PIPE
        pipes = {"stdout": output, "stderr": subprocess.STDOUT}
        return subprocess.Popen(argv, cwd=PROJECT, text=True, start_new_session=True, preexec_fn=hears_ctrl_c, **pipes)


def pairs(sweep: SweepDir) -> list[bool]:
    """Return of each pair of windows so far whether both are valid."""
    points = [read_lines(sweep.point(name).windows) for name in sweep.point_names()]
    return [all(line["valid"] for line in both) for both in zip(*points, strict=False)] if len(points) == 2 else []


def test_windows_of_two_loads_decide_and_go_on_after_a_kill(tmp_path: Path) -> None:
    process = begin(tmp_path, *LOADS)
    until(lambda: any(pairs(the_sweep(tmp_path))), "the first pair")
    process.kill()
    process.communicate(timeout=60)
    killed = the_sweep(tmp_path)
    assert verb("cancel", str(killed.path)).returncode == 0
    verb("follow", str(killed.path))  # to its end
    again = verb(*words(tmp_path, *LOADS))
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["answer"] == "better" and found["low"] > 0.3
    assert found["pairs_are"] == "windows" and 6 <= len(found["pairs"]) < 20
    assert len(sweeps_in(tmp_path)) == 2
    counted = sum(pairs(killed)), sum(pairs(the_sweep(tmp_path)))
    assert min(counted) > 0 and sum(counted) == len(found["pairs"]), "what was measured before the kill counts"


def test_equal_settings_stay_open_within_a_budget_and_ctrl_c_detaches(tmp_path: Path) -> None:
    asked = ("parallel.max_num_seqs=64", "parallel.max_num_seqs=65", "--difference", "1%", "--pairs", "1")
    process = begin(tmp_path, *asked)
    until(lambda: (tmp_path / "latest").exists() and any(map(_has_row, sweeps_in(tmp_path))), "the first start")
    process.send_signal(signal.SIGINT)
    assert "the same command follows it" in finish(process, 130)
    again = verb(*words(tmp_path, *asked))
    assert again.returncode == 1, again.stderr
    found = json.loads(again.stdout)
    assert found["answer"] == "open" and found["why"] == "the budget is spent"
    assert len(found["pairs"]) == 1 and found["pairs_are"] == "starts"
    assert len(sweeps_in(tmp_path)) == 1


def test_a_bisection_that_was_killed_goes_on_to_the_first_value_that_is_slower(tmp_path: Path) -> None:
    asked = ("--bisect", "bench.concurrency=4,5,64", "--goal", "ttft_ms_mean", "--difference", "90%")
    few = ("--pairs", "20", "bench.output_tokens=2", "bench.input_tokens=256")
    words = ("decide", "--json", *asked, *few[:2], "--with", f"results.root={tmp_path}", *QUICK, *few[2:])
    process = subprocess.Popen([sys.executable, "-m", "jobs", *words], cwd=PROJECT, stderr=subprocess.DEVNULL)
    until(lambda: len(sweeps_in(tmp_path)) == 1 and _has_row(sweeps_in(tmp_path)[0]), "a window of the first step")
    process.kill()
    process.wait(60)
    again = verb(*words)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["answer"] == "found" and found["first"] == "bench.concurrency=64"
    assert [one["answer"] for one in found["steps"]] == ["worse", "same"]
    assert [one["b"] for one in found["steps"]] == ["bench.concurrency=64", "bench.concurrency=5"]
    assert len(sweeps_in(tmp_path)) == 2, "the first step went on where it was"
    assert json.loads(verb(*words).stdout) == found and len(sweeps_in(tmp_path)) == 2


def _has_row(sweep: SweepDir) -> bool:
    return any(sweep.point(name).row.exists() for name in sweep.point_names())
