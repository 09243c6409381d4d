"""A service for hand tests on this machine: it answers the line that is printed, and stops when it is cancelled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_rehearsal import ROOT, engines, hears_ctrl_c, the_sweep, until, verb

from jobs.allocation import serving
from jobs.core.files import read_json, read_lines
from jobs.core.rundir import AllocationDir

pytestmark = pytest.mark.usefixtures("warm")


def serve(root: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "serve", "engine=simulator", f"results.root={root}", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hears_ctrl_c,
    )


def only(root: Path) -> AllocationDir:
    [folder] = the_sweep(root).allocations()
    return folder


def test_it_answers_and_a_cancel_is_its_good_end(tmp_path: Path) -> None:
    process = serve(tmp_path, "--json", "bench.endpoint=chat")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    info = json.loads(output)
    assert info["base_url"].startswith("http://127.0.0.1:")
    assert info["tunnel"] is None

    line = serving.request(info)
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(answer.stdout)["usage"]["completion_tokens"] > 0
    key = Path(info["api_key_file"]).read_text()
    assert key not in line, "a key on a command line can be read by every user of the host"
    without = subprocess.run(
        ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"{info['base_url']}/models"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert without.stdout == "401"

    again = verb("reach", info["sweep"])
    assert again.returncode == 0
    assert line in again.stdout
    assert f"python -m jobs cancel {info['sweep']}" in again.stdout

    folder = only(tmp_path)
    assert verb("cancel", info["sweep"]).returncode == 0
    until(folder.outcome.exists, "the end")
    until(lambda: engines(tmp_path) == [], "the engines' end")
    assert not folder.serving.exists()
    outcome = read_json(folder.outcome)
    assert (outcome["ended"], outcome["valid"], outcome["left"]) == (None, True, [])
    [row] = [read_json(path) for path in folder.sweep.path.glob("points/*/row.json")]
    assert (row["valid"], row["invalid_reason"][:22]) == (False, "served for hand tests ")
    after = verb("reach", info["sweep"])
    assert after.returncode == 1
    assert "Traceback" not in after.stderr


def test_ctrl_c_detaches_and_the_service_comes(tmp_path: Path) -> None:
    process = serve(tmp_path, "engine.rehearsal.load_s=3")
    until(lambda: any((tmp_path / "latest").glob("services/*/*/rank0/state.jsonl")), "the start")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "detached: it goes on" in errors
    folder = only(tmp_path)
    until(folder.serving.exists, "the service")
    assert verb("cancel", str(folder.sweep.path)).returncode == 0
    until(folder.outcome.exists, "the end")
    until(lambda: engines(tmp_path) == [], "the engines' end")


def test_a_service_that_fails_says_why(tmp_path: Path) -> None:
    fault = "engine.rehearsal.faults=[{rank: 1, kind: exit, code: 3, when: load}]"
    process = serve(tmp_path, "--json", fault)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert json.loads(output)["error"]["reason"].startswith("rank 1")
    assert engines(tmp_path) == []


def test_an_engine_that_dies_while_it_serves_ends_it_with_its_reason(tmp_path: Path) -> None:
    process = serve(tmp_path, "--json")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    folder = only(tmp_path)
    [loading] = [
        entry
        for path in folder.sweep.path.glob("services/*/*/rank1/state.jsonl")
        for entry in read_lines(path)
        if "pid" in entry
    ]
    os.kill(loading["pid"], signal.SIGKILL)
    until(folder.outcome.exists, "the end")
    [row] = [read_json(path) for path in folder.sweep.path.glob("points/*/row.json")]
    assert row["invalid_reason"].startswith("rank 1")
    assert read_json(folder.outcome)["valid"] is False
    until(lambda: engines(tmp_path) == [], "the engines' end")
