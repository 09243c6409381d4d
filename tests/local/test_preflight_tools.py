"""One node through the stand-ins of npu-smi and hccn_tool, which refuse what the real ones refuse."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from preflight_help import fake_node

from jobs.allocation.preflight import tools
from jobs.allocation.preflight.facts import Npus
from jobs.allocation.preflight.findings import NO_TIME
from jobs.allocation.preflight.tools import Tools
from jobs.engines.ascend.npu_smi import NpuProcess


def tools_of(folder: Path, seconds: float = 60.0) -> Tools:
    path = f"{folder}:{os.environ['PATH']}"
    return Tools(path, time.monotonic() + seconds, threading.Event(), folder / "no-ascend", folder / "dev")


def look(folder: Path, count: int, *, fabric: bool = True) -> Npus:
    return tools_of(folder).npus(count, [], fabric=fabric)


def test_a_node_with_many_sicknesses_is_seen_as_it_is(tmp_path: Path) -> None:
    state = {
        "version": "25.3.rc1",
        "npus": {
            "1": {"health": "Alarm", "processes": [[4711, "python3", 37709]]},
            "2": {"name": "910B4", "used_mb": 9000, "total_mb": 32768},
            "3": {"missing": True},
        },
        "ports": {"0": {"link": "DOWN", "health": "Fault", "tls": 1}, "1": {"ip": None, "tls": None}},
    }
    node = fake_node(tmp_path, state, count=4)
    (node / "dev/davinci3").unlink()
    seen = look(node, 4)
    assert seen.problem is None
    assert [(n.index, n.name, n.health, n.used_mb) for n in seen.npus] == [
        (0, "910B2", "OK", 3382),
        (1, "910B2", "Alarm", 3382),
        (2, "910B4", "OK", 9000),
    ]
    assert seen.npus[1].processes == (NpuProcess(4711, "python3", 37709),)
    assert seen.closed == {"davinci3": tools.GONE}
    assert (seen.driver, seen.firmware, seen.cann) == ("25.3.rc1", "7.8.0.2.212", None)
    down, unset, well, lost = seen.ports
    assert (down.link, down.health, down.tls) == ("DOWN", "Fault", True)
    assert (unset.address, unset.problem, unset.tls) == (None, None, False)
    assert (well.link, well.tls, well.address, well.netmask) == ("UP", False, "10.20.0.22", "255.255.255.0")
    assert lost.problem is not None
    assert lost.problem.broken


def test_versions_come_from_the_drivers_files_where_they_are(tmp_path: Path) -> None:
    node = fake_node(tmp_path, {}, count=1)
    for name, version in (("driver", "25.5.1"), ("firmware", "7.8.0.5.216")):
        (node / "no-ascend" / name).mkdir(parents=True)
        (node / "no-ascend" / name / "version.info").write_text(f"Version={version}\nascendhal_version=7.35.23\n")
    seen = look(node, 1, fabric=False)
    assert (seen.driver, seen.firmware) == ("25.5.1", "7.8.0.5.216")
    assert seen.ports == ()


def test_without_the_tools_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "PLACES", ())
    bare = Tools(str(tmp_path), time.monotonic() + 9, threading.Event(), tmp_path, tmp_path)
    seen = bare.npus(2, [], fabric=True)
    assert seen.problem is not None and not seen.problem.broken
    assert seen.problem.reason == "npu-smi is not on this node"
    assert seen.ports_problem is not None
    assert seen.ports_problem.reason == "hccn_tool is not on this node"
    assert set(seen.closed) == {"davinci0", "davinci1", *tools.DEVICES}


def test_no_right_is_not_a_fault_of_the_npu(tmp_path: Path) -> None:
    state = {"smi": {"says": "dcmi module initialize failed. ret is -8005", "exit": 1}, "hccn": {"denied": True}}
    seen = look(fake_node(tmp_path, state, count=2), 2)
    assert seen.problem is not None and seen.ports_problem is not None
    assert (seen.problem.broken, seen.ports_problem.broken) == (False, False)
    assert "no right to ask npu-smi" in seen.problem.reason
    assert "no right to ask hccn_tool" in seen.ports_problem.reason


@pytest.mark.parametrize("state", [{"exit": 255, "says": "Segmentation fault"}, {"exit": 0}, {"hang_s": 60}])
def test_a_tool_that_crashes_says_nothing_or_hangs_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, object]
) -> None:
    monkeypatch.setattr(tools, "ANSWER_S", 1.0)
    seen = look(fake_node(tmp_path, {"smi": state}, count=1), 1, fabric=False)
    assert seen.problem is not None
    assert seen.problem.broken


def test_hccn_tool_runs_once_at_a_time_and_is_asked_again(tmp_path: Path) -> None:
    node = fake_node(tmp_path, {"hccn": {"hang_s": 0.05}}, count=1)
    with ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(lambda _: look(node, 1), range(2)))
    assert [one.ports[0].link for one in seen] == ["UP"] * 2


def test_pings_are_made_until_the_time_is_up(tmp_path: Path) -> None:
    node = fake_node(tmp_path, {"unreachable": ["10.0.0.2", [1, "10.0.0.3"]], "lossy": ["10.0.0.4"]}, count=2)
    wanted = [(0, "10.0.0.1", 1, 0), (0, "10.0.0.2", 1, 1), (1, "10.0.0.3", 1, 0), (0, "10.0.0.4", 1, 3)]
    made = tools_of(node).pings(0, wanted)
    assert [(ping.received, ping.why) for ping in made] == [(3, None), (0, None), (0, None), (2, None)]
    late = tools_of(node, seconds=0).pings(0, wanted)
    assert [ping.why for ping in late] == [NO_TIME] * 4


def test_a_stopped_rank_asks_nothing_any_more(tmp_path: Path) -> None:
    stopped = tools_of(fake_node(tmp_path, {}, count=1))
    stopped.stopped.set()
    assert stopped.npus(1, [], fabric=False).problem is not None
    assert [ping.why for ping in stopped.pings(0, [(0, "10.0.0.1", 1, 0)])] == [NO_TIME]


@pytest.mark.parametrize(
    "words",
    [
        ["npu-smi"],
        ["npu-smi", "info", "--json"],
        ["npu-smi", "info", "-t", "board", "-i", "9"],
        ["hccn_tool", "-i", "0"],
        ["hccn_tool", "-i", "0", "-link"],
        ["hccn_tool", "-i", "9", "-link", "-g"],
        ["hccn_tool", "-i", "0", "-nonsense", "-g"],
        ["hccn_tool", "-i", "0", "-ping", "-g", "10.0.0.1"],
        ["hccn_tool", "-i", "0", "-ping", "-g", "address", "node2"],
    ],
)
def test_the_stand_ins_are_strict(tmp_path: Path, words: list[str]) -> None:
    node = fake_node(tmp_path, {}, count=1)
    done = subprocess.run([str(node / words[0]), *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "10.0.0.1" not in done.stdout
