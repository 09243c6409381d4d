"""The lab is what it says: two hosts, a working Slurm with accounting, real faults, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import debian
import netns
import processes
import pytest
import slurm_conf
import submitit
from daemons import SERVICES, daemon_names
from lab import Lab, main
from layout import HOSTS, SYSTEM_SLURM_CONF, Layout
from processes import LabError, Process, wait_until

ONE, TWO = "npu-node1", "npu-node2"


def state(lab: Lab, job: str) -> str:
    return lab.slurm("scontrol", "--oneliner", "show", "job", job).partition("JobState=")[2].split()[0]


def submit(lab: Lab, *options: str, command: str = "sleep 300") -> str:
    return lab.slurm("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={command}")


def wait_state(lab: Lab, job: str, wanted: str, timeout: float = 30) -> None:
    wait_until(lambda: state(lab, job) == wanted, timeout, f"job {job} is {wanted}", poll=0.1)


def connects(lab: Lab, node: str, address: str) -> bool:
    """Can a process on `node` open a connection to slurmd at `address`?"""
    code = f"import socket; socket.create_connection(({address!r}, {lab.layout.slurmd_port}), 1)"
    return lab.node_exec(node, [sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.lab
def test_submitit_runs_one_task_on_each_node_and_accounting_knows_it(quiet: Lab, tmp_path: Path) -> None:
    def where() -> tuple[str, str, str]:
        import os
        import socket

        # The name alone is the node's own; the address comes from the interface in the node's namespace.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("10.213.0.1", 9))
            return socket.gethostname(), probe.getsockname()[0], os.environ["SLURM_PROCID"]

    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(
        nodes=2,
        tasks_per_node=1,
        timeout_min=5,
        slurm_gres="npu:8",
        slurm_srun_args=["--kill-on-bad-exit=1", "--wait=5"],
    )
    job = executor.submit(where)
    assert job.results() == [(ONE, "10.213.0.11", "0"), (TWO, "10.213.0.12", "1")]

    def accounted() -> str:
        return quiet.slurm(
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            "--jobs",
            job.job_id,
            "--format=State,NodeList",
        )

    # While a job completes, sacct may name only the nodes that are not done yet.
    wait_until(lambda: accounted() == "COMPLETED|npu-node[1-2]", 20, "sacct has the whole job", poll=0.1)
    # submitit asks sacct at its own pace, and keeps what it saw last.
    wait_until(lambda: job.watcher.get_state(job.job_id, mode="force") == "COMPLETED", 20, "submitit knows the end")


@pytest.mark.lab
def test_npus_are_counted(quiet: Lab) -> None:
    first = submit(quiet, "--nodes=2", "--gres=npu:8")
    wait_state(quiet, first, "RUNNING")
    second = submit(quiet, "--gres=npu:1")
    wait_until(lambda: quiet.slurm("squeue", "-h", "-j", second, "-o", "%r") == "Resources", 10, "it must wait")
    quiet.slurm("scancel", first)
    wait_state(quiet, second, "RUNNING")
    quiet.slurm("scancel", second)


@pytest.mark.lab
def test_exclusive_keeps_the_node(quiet: Lab) -> None:
    first = submit(quiet, "--nodes=1", "--exclusive", f"--nodelist={ONE}")
    wait_state(quiet, first, "RUNNING")
    second = submit(quiet, "--nodes=1")
    wait_state(quiet, second, "RUNNING")
    assert quiet.slurm("squeue", "-h", "-j", second, "-o", "%N") == TWO
    quiet.slurm("scancel", first, second)


@pytest.mark.lab
def test_urgent_partition_cancels_jobs_of_the_default_one(quiet: Lab) -> None:
    ours = submit(quiet, "--nodes=2", "--exclusive")
    wait_state(quiet, ours, "RUNNING")
    urgent = submit(quiet, "--nodes=2", "--exclusive", "--partition=urgent", command="true")
    wait_state(quiet, urgent, "COMPLETED")
    assert state(quiet, ours) == "PREEMPTED"


@pytest.mark.lab
def test_a_cut_cable_parts_the_nodes_and_heals(quiet: Lab) -> None:
    assert connects(quiet, ONE, "10.213.0.12")
    quiet.cut("2")
    try:
        assert not connects(quiet, ONE, "10.213.0.12")
        assert not connects(quiet, TWO, "10.213.0.11")
        assert "NO-CARRIER" in quiet.node_exec(TWO, ["ip", "link", "show", "eth0"]).stdout
    finally:
        quiet.heal("2")
    wait_until(lambda: connects(quiet, ONE, "10.213.0.12"), 10, "connected again")


@pytest.mark.lab
def test_a_job_outlives_its_slurmd(quiet: Lab) -> None:
    job = submit(quiet, f"--nodelist={TWO}")
    wait_state(quiet, job, "RUNNING")
    quiet.kill_slurmd(TWO)
    try:
        assert not connects(quiet, ONE, "10.213.0.12")
        assert "sleep 300" in quiet.node_exec(TWO, ["ps", "-eo", "args"]).stdout
        assert not quiet.is_up()
    finally:
        quiet.start_slurmd(TWO)
    assert state(quiet, job) == "RUNNING"
    quiet.slurm("scancel", job)


@pytest.mark.lab
def test_up_on_a_running_lab_leaves_every_process_alone(quiet: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    before = quiet.status()
    assert main(["up"]) == 0
    assert quiet.status() == before
    assert "up already" in capsys.readouterr().out
    assert main(["status"]) == 0


@pytest.mark.lab
def test_another_root_does_not_touch_this_lab(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    root = lab.layout.root
    for verb in ("up", "down"):
        assert main(["--root", f"{root}-other", verb]) == 1
        assert capsys.readouterr().err == f"lab: this machine's lab is at {root}: give --root {root}\n"
    assert not Path(f"{root}-other").exists()
    assert lab.is_up()


@pytest.mark.lab
def test_a_lab_on_the_network_of_another_is_refused(lab: Lab) -> None:
    """Its slurmd would wait for the wrong controller, and say only that it cannot be reached."""
    root = lab.layout.root.with_name("serving-lab-twin")
    twin = Lab(Layout(root, name="twin", subnet=lab.layout.subnet, first_port=27817, system_conf=False))
    with pytest.raises(LabError, match=rf"{lab.layout.bridge} has {lab.layout.address} already"):
        twin.up()
    assert not root.exists()


@pytest.mark.lab
def test_down_leaves_nothing_even_after_crashes(lab: Lab) -> None:
    """A second lab: its job ignores SIGTERM, its slurmctld and a slurmd are killed; then down."""
    root = lab.layout.root.with_name("serving-lab-spare")
    layout = Layout(root, name="spare", subnet="10.214.0", first_port=27817, system_conf=False)
    spare = Lab(layout)
    spare.down()  # of a test run that was killed
    hosts = HOSTS.read_text()
    try:
        spare.up()
        job = submit(spare, "--nodes=2", command="trap '' TERM; while :; do sleep 1; done")
        wait_state(spare, job, "RUNNING")
        # Two slurmd, the job's slurmstepd and its shell: the shell comes a moment after the state.
        wait_until(lambda: len(spare.on_nodes()) >= 4, 30, "the job's processes")
        on_nodes = spare.on_nodes()
        services = [process for name in SERVICES if (process := spare.process(name)) is not None]
        assert len(services) == len(SERVICES)
        os.kill(services[-1].pid, signal.SIGKILL)
        spare.kill_slurmd("spare-node2")
        assert traces(layout) != []
    finally:
        spare.down()
    assert [process for process in (*on_nodes, *services) if process.alive] == []
    assert traces(layout) == []
    assert HOSTS.read_text() == hosts
    spare.down()  # twice is fine
    assert SYSTEM_SLURM_CONF.readlink() == lab.layout.slurm_conf
    assert lab.is_up()


@pytest.mark.lab
@pytest.mark.parametrize("network", ["stays", "goes"])
def test_a_machine_that_went_down_leaves_no_job_behind(lab: Lab, network: str) -> None:
    """A second lab with a running job loses every process at once; `up` then finds no job."""
    root = lab.layout.root.with_name("serving-lab-spare")
    layout = Layout(root, name="spare", subnet="10.214.0", first_port=27817, system_conf=False)
    spare = Lab(layout)
    spare.down()
    try:
        spare.up()
        wait_state(spare, submit(spare, "--nodes=2"), "RUNNING")
        everything = [process for name in daemon_names(layout) if (process := spare.process(name)) is not None]

        def gone() -> bool:  # a job that is said to run still starts processes
            living = [process for process in (*everything, *spare.on_nodes()) if process.alive]
            for process in living:
                process.signal(signal.SIGKILL)
            return not living

        wait_until(gone, 10, "all are gone")
        if network == "goes":
            netns.remove(layout)
        spare.up()
        assert spare.slurm("squeue", "--noheader") == ""
        spare.wait_idle()
    finally:
        spare.down()


def traces(layout: Layout) -> list[str]:
    """Every process, mount, link and directory that names this lab."""
    processes_now = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/self/mounts").read_text()
    lines = [line for line in (processes_now + mounts).splitlines() if str(layout.root) in line]
    links = [entry.name for entry in Path("/sys/class/net").glob(f"{layout.name}-*")]
    return [*lines, *links, *([str(layout.root)] if layout.root.exists() else [])]


# -- without a lab -------------------------------------------------------------------------------------------


def test_hosts_lines_come_and_go_and_the_rest_stays() -> None:
    layout, before = Layout(), "127.0.0.1 localhost\n# a note\n"
    text = slurm_conf.with_hosts_block(before, layout) + "10.0.0.1 other\n"
    assert slurm_conf.with_hosts_block(text, layout).count("lab begin") == 1
    assert slurm_conf.hosts_owner(text, layout) == layout.root
    assert f"{layout.nodes[1].address} npu-node2\n" in text
    assert slurm_conf.without_hosts_block(text, layout) == before + "10.0.0.1 other\n"
    assert slurm_conf.without_hosts_block(before, layout) == before
    assert slurm_conf.hosts_owner(before, layout) is None


def test_two_layouts_share_no_name_and_no_path() -> None:
    one, two = Layout(), Layout(root=Path("/var/lib/two"), name="two", subnet="10.214.0", first_port=27817)
    mine = set(slurm_conf.files(one, "here"))
    assert mine.isdisjoint(slurm_conf.files(two, "here"))
    assert {one.bridge, *(n.name for n in one.nodes)}.isdisjoint({two.bridge, *(n.name for n in two.nodes)})


def test_a_reused_process_id_is_not_our_process() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        process = Process.of(child.pid)
        assert process is not None
        assert process.alive
        assert not Process(child.pid, process.started - 1).alive
        Process(child.pid, process.started - 1).signal(9)
        assert process.alive
    finally:
        child.kill()
    # Not reaped yet: a zombie is not alive.
    wait_until(lambda: not process.alive, 5, "gone")
    child.wait()


def test_a_daemon_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    argv = ("sh", "-c", "echo no port left; exit 3")
    daemon = processes.Daemon("d", argv, dict(os.environ), tmp_path / "record", tmp_path / "output")
    daemon.start()
    with pytest.raises(LabError, match="no port left"):
        daemon.wait_ready(lambda: False, timeout=5)


def test_end_kills_what_ignores_sigterm() -> None:
    argv = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    process = Process.of(child.pid)
    assert process is not None
    processes.end([process], grace=0.2)
    assert child.wait() == -9


@pytest.mark.parametrize("user", ["nobody"])
def test_without_root_up_says_so_and_exits_with_3(user: str) -> None:
    if os.geteuid() != 0:
        command = [sys.executable]
    else:
        command = ["setpriv", "--reuid", user, "--clear-groups", "/usr/bin/python3"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("lab.py")), "up"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "needs root" in done.stderr


def test_not_debian_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "needs Debian" in (debian.unavailable() or "")


@pytest.mark.parametrize("key", ["3", "npu", ""])
def test_an_unknown_node_is_refused_by_name(key: str) -> None:
    with pytest.raises(ValueError, match="Valid: 1, 2, npu-node1, npu-node2"):
        Layout().node(key)
