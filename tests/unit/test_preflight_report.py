"""What remains of the checks: the table, the record, the evidence against a node, the proposal at the next start."""

from __future__ import annotations

import io
import json
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from core_help import change, composer, config
from fake_slurm import FakeSlurm
from preflight_help import ONE, TWO, judge, node, nodes, npu_change, port_change
from rich.console import Console

from jobs.__main__ import main
from jobs.allocation import interface
from jobs.allocation.preflight import evidence, report
from jobs.allocation.preflight.conduct import Result
from jobs.allocation.preflight.facts import Holder
from jobs.allocation.preflight.findings import CHECKS, Finding
from jobs.cli import launch
from jobs.cluster.interfaces import Address
from jobs.cluster.sick_nodes import proposal, sick, without_sick
from jobs.cluster.slurm import Slurm
from jobs.core.errors import ConfigError
from jobs.core.files import read_json
from jobs.core.rundir import AllocationDir, Root
from jobs.core.tasks import read_task

SLURM = config("cluster=slurm")


def printed(findings: list[Finding], *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, markup=False)
    console.print(report.table(findings, [ONE, TWO]))
    for line in report.details(findings):
        console.print(line)
    return out.getvalue()


def test_the_table_has_a_column_a_node_and_says_below_what_to_do() -> None:
    text = printed(judge(nodes(**npu_change(3, health="Alarm"))), terminal=False)
    [line] = [line for line in text.splitlines() if line.strip().startswith("npu.health")]
    assert line.split()[:3] == ["npu.health", "pass", "FAIL"]
    assert f"FAIL {TWO} NPU 3: npu.health: its health is Alarm. See npu-smi" in text
    assert "\x1b" not in text


def test_in_a_log_the_table_is_plain_text() -> None:
    lines = report.text(judge(nodes(**npu_change(3, health="Alarm"))), [ONE, TWO]).splitlines()
    assert lines[0].split()[:3] == ["check", ONE, TWO]
    assert len(lines) == 2 + len(CHECKS)
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)


def test_colour_is_for_terminals() -> None:
    assert "\x1b[" in printed(judge(nodes()), terminal=True)


def test_several_devices_of_a_node_are_counted_and_each_has_its_line() -> None:
    facts = nodes(**port_change(2, link="DOWN"))
    facts[1] = replace(facts[1], npus=replace(facts[1].npus, npus=nodes(**npu_change(0, used_mb=9000))[1].npus.npus))  # type: ignore[type-var, union-attr]
    text = printed([*judge(facts), Finding("npu.memory", "fail", TWO, "x", "y", "NPU 1")], terminal=False)
    assert "FAIL x2" in text
    assert text.count("FAIL npu-node2") == 3


def test_what_could_not_run_is_said_once_for_each_reason() -> None:
    findings = judge([node(0, npus=None), node(1, npus=None)])
    lines = [line.plain for line in report.details(findings)]
    assert len([line for line in lines if "engine has no NPUs" in line]) == 2, "one a node"
    assert report.summary(findings, 0.04).endswith("14 not run (engine has no NPUs) in 0.0 s")


def test_the_record_holds_findings_and_facts() -> None:
    result = Result(tuple(judge(nodes(**npu_change(3, health="Alarm")))), tuple(nodes()), 1.5)
    record = json.loads(json.dumps(result.as_json()))
    assert (record["state"], record["seconds"]) == ("fail", 1.5)
    [one] = [one for one in record["findings"] if one["state"] == "fail"]
    assert {one["node"], one["device"], one["check"]} == {TWO, "NPU 3", "npu.health"}
    assert one["remedy"]
    assert [fact["node"] for fact in record["facts"]] == [ONE, TWO]


# -- evidence ------------------------------------------------------------------------------------------------


def keep(nodes_dir: Root, findings: list[Finding]) -> None:
    evidence.save(nodes_dir, (ONE, TWO), findings, "4711")


def test_a_sick_node_is_remembered_until_it_is_well_again(tmp_path: Path) -> None:
    known = Root(tmp_path)
    keep(known, judge(nodes(**npu_change(3, health="Alarm"))))
    [one] = sick(known)
    assert one.node == TWO
    assert "NPU 3: npu.health" in one.reason
    assert read_json(known.node(TWO))["job_id"] == "4711"
    keep(known, judge([node(0, npus=None), node(1, npus=None)]))
    assert len(sick(known)) == 1, "a rehearsal says nothing about NPUs"
    keep(known, judge(nodes()))
    assert sick(known) == []


def test_evidence_expires(tmp_path: Path) -> None:
    known = Root(tmp_path)
    keep(known, judge(nodes(**npu_change(3, health="Alarm"))))
    for hours, left in ((23, 1), (25, 0)):
        old = read_json(known.node(TWO)) | {"time": time.time() - hours * 3600}
        known.node(TWO).write_text(json.dumps(old))
        assert len(sick(known)) == left


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"node": "a", "time": "x", "reasons": ["r"]}'])
def test_a_broken_file_is_no_evidence(tmp_path: Path, text: str) -> None:
    known = Root(tmp_path)
    known.node(TWO).parent.mkdir()
    known.node(TWO).write_text(text)
    assert sick(known) == []


def test_wrong_settings_and_strangers_ports_are_no_fault_of_a_node(tmp_path: Path) -> None:
    known = Root(tmp_path)
    keep(known, judge([node(0, busy={13389: Holder("x")}), node(1, interface_problem="no such interface")]))
    keep(known, judge(nodes(**port_change(4, tls=True))))
    assert sick(known) == []


def test_the_launcher_proposes_and_only_on_request_excludes(tmp_path: Path) -> None:
    known = Root(tmp_path)
    assert proposal(SLURM, known) == []
    keep(known, judge(nodes(**npu_change(3, health="Alarm"))))
    first, last = proposal(SLURM, known)
    assert first.startswith(f"{TWO} failed its checks 0 min ago: {TWO} NPU 3: npu.health")
    assert f"'cluster.exclude=\"{TWO}\"'" in last
    assert without_sick(SLURM, known) is SLURM
    asked = change(SLURM, preflight__exclude_sick=True, cluster__exclude="bad[1-2]")
    assert without_sick(asked, known).cluster.exclude == f"bad[1-2],{TWO}"
    assert "left out" in proposal(asked, known)[-1]


@pytest.mark.parametrize("key", ["cluster__exclude", "cluster__nodelist"])
def test_a_node_that_the_user_names_is_not_proposed(tmp_path: Path, key: str) -> None:
    known = Root(tmp_path)
    keep(known, judge(nodes(**npu_change(3, health="Alarm"))))
    named = change(SLURM, **{key: "npu-node[1-2]"}, preflight__exclude_sick=True)
    assert proposal(named, known) == []
    assert without_sick(named, known) is named


def test_the_launcher_says_it_before_it_submits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(Root(tmp_path), judge(nodes(**npu_change(3, health="Alarm"))))
    launch.launch([["cluster=slurm", f"results.root={tmp_path}", "launch.dry_run=true"]], composer)
    said = capsys.readouterr().out
    assert f"note: {TWO} failed its checks" in said
    assert said.index("note: ") < said.index("dry run: nothing was submitted")


def test_local_runs_exclude_nothing(tmp_path: Path) -> None:
    known = Root(tmp_path)
    keep(known, judge(nodes(**npu_change(3, health="Alarm"))))
    assert proposal(config("engine=simulator"), known) == []


# -- the interface of a rank, the verb ----------------------------------------------------------------------------


def test_a_rank_with_a_wrong_interface_still_meets_the_others() -> None:
    wrong = change(SLURM, hccl__socket_ifname="nosuchinterface")
    (name, address, _), problem = interface.usable_interface(wrong)
    assert problem is not None
    assert problem.startswith("hccl.socket_ifname=nosuchinterface: no interface of this host matches")
    assert (name, address) == interface.own_interface(change(SLURM, hccl__socket_ifname="auto"))[:2]
    for setting in (
        {"preflight__enabled": False},
        {"preflight__skip": ("network",)},
        {"preflight__warn_only": ("network.interface",)},
    ):
        with pytest.raises(ConfigError):
            interface.usable_interface(change(wrong, **setting))


def test_auto_passes_over_what_is_down_or_leads_to_no_other_node(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"lo": "127.0.0.1", "cni-podman0": "10.88.0.1", "bond0": "10.1.0.1", "enp1": "10.2.0.1"}
    known = {name: (Address(ip, 24),) for name, ip in own.items()}
    state = namedtuple("state", "isup")
    monkeypatch.setattr(interface, "interface_addresses", lambda: known)
    monkeypatch.setattr(interface, "addresses_of", lambda _: ["127.0.1.1"])
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {name: state(name != "bond0") for name in own})
    auto = change(SLURM, hccl__socket_ifname="auto")
    assert interface.own_interface(auto) == ("enp1", "10.2.0.1", 24)
    monkeypatch.setattr(
        psutil, "net_if_stats", lambda: {name: state(not name.startswith(("bond", "enp"))) for name in own}
    )
    assert interface.own_interface(auto)[0] == "cni-podman0"  # nothing better is up


def test_the_verb_checks_this_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["engine=simulator", f"results.root={tmp_path}", "preflight.skip=[host]"]
    # HCCL's own order would take a bridge of a container runtime that has no container.
    assert main(["preflight", "--json", *words, "hccl.socket_ifname=lo"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["reason"] is None
    states = {one["check"]: one["state"] for one in record["findings"]}
    assert states["network.interface"] == "pass"
    assert states["network.path"] == states["npu.health"] == "not-run"
    assert main(["preflight", *words, "hccl.socket_ifname=nosuchinterface"]) == 1
    assert "network.interface: hccl.socket_ifname=nosuchinterface" in capsys.readouterr().out


NODES = ("engine=simulator", "cluster=slurm", "cluster.partition=npu", "cluster.gres='npu:8'", "cluster.mem='0'")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    return fake


def test_nodes_are_asked_for_as_for_a_sweep(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Slurm, "state", lambda *_: "NODE_FAIL")
    limits = ("limits.rendezvous_s=60", "limits.preflight_s=100")
    assert main(["preflight", *NODES, f"results.root={tmp_path}/runs", *limits]) == 1
    assert "preflight = 2 nodes: its job ended (NODE_FAIL)" in capsys.readouterr().err
    [job] = slurm.jobs.values()
    wanted = {"nodes": "2", "ntasks-per-node": "1", "partition": "npu", "gres": "npu:8", "mem": "0", "exclusive": True}
    assert job["asked"].items() >= (wanted | {"time": "6"}).items(), "250 s with the signal before the end, and 1 min"
    [folder] = (tmp_path / "runs").glob("preflight_*/allocations/0/1")
    assert read_task(AllocationDir(folder)).checks_only


def test_ctrl_c_ends_the_job_of_the_checks(slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([KeyboardInterrupt])

    def state(*_: object) -> str:
        for interruption in asked:
            raise interruption
        return "PENDING"

    monkeypatch.setattr(Slurm, "state", state)
    assert main(["preflight", *NODES, f"results.root={tmp_path}/runs"]) == 130
    assert [job["state"] for job in slurm.jobs.values()] == ["CANCELLED"]
