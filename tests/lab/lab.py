"""A real Slurm with two nodes on one machine: `python tests/lab/lab.py up|down|status|install|cut N|heal N`.

Two network namespaces on a private bridge play the nodes; munge, MariaDB, slurmdbd, slurmctld and two slurmd
run as they do on a site. It needs root on Debian and nothing else: no step by hand, no package of Python.

Exit codes: 0 done, 1 it failed (`status`: the lab is not up), 2 wrong use, 3 not possible on this machine.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import debian
import netns
import processes
import slurm_conf
from daemons import (
    SERVICES,
    answers,
    daemon,
    daemon_names,
    database_setup,
    prepare_mariadb,
    prepare_munge,
)
from layout import HOSTS, SYSTEM_SLURM_CONF, Layout
from processes import LabError, Process, run, wait_until

USABLE = {"idle", "mixed", "allocated", "completing"}


class LabUnavailableError(LabError):
    """This machine cannot hold the lab. Exit code 3."""


class Lab:
    """One lab: make it, take it away, and break it on purpose."""

    def __init__(self, layout: Layout | None = None) -> None:
        self.layout = layout or Layout()

    # -- making and removing -------------------------------------------------------------------------------

    def up(self) -> None:
        """Bring up whatever is not up; return when both nodes can take jobs. Prints one line a step."""
        began = time.monotonic()

        def say(what: str) -> None:
            print(f"{time.monotonic() - began:5.1f} s  {what}", flush=True)

        if reason := debian.unavailable():
            raise LabUnavailableError(reason)
        with self._lock():
            self._check_ownership()
            if holder := netns.holder(self.layout):
                raise LabError(f"{holder} has {self.layout.address} already: another lab? Take it down first")
            if self.is_up():
                say("the lab is up already")
            else:
                self._make(say)
        print(self.usage(), flush=True)

    def _make(self, say: Callable[[str], None]) -> None:
        lab = self.layout
        lab.root.mkdir(exist_ok=True)
        lab.marker.touch()
        spools = [lab.spool(node) for node in lab.nodes]
        if self.process("slurmctld") is None and not any(self.on_nodes()):
            # All went down at once with the lab up: no job has a process left, and Slurm would wait for them.
            for directory in (lab.controller_state, *spools):
                shutil.rmtree(directory, ignore_errors=True)
        for directory in (lab.etc / "plugstack.conf.d", lab.log, lab.run, lab.controller_state, *spools):
            directory.mkdir(exist_ok=True, parents=True)
        if packages := debian.missing():
            say(f"installing {' '.join(packages)}")
            debian.install(packages, lab.log / "apt.log")
        munged, mariadbd, slurmdbd, slurmctld = (daemon(lab, name) for name in SERVICES)
        self._configure()
        say(f"configuration in {lab.etc}")

        prepare_munge(lab)
        munged.start()
        prepare_mariadb(lab)
        mariadbd.start()
        netns.make(lab)
        say(f"nodes {', '.join(f'{node.name} ({node.address})' for node in lab.nodes)} on {lab.bridge}")
        munged.wait_ready(lambda: answers(lab.munge_socket))
        mariadbd.wait_ready(lambda: answers(lab.mariadb_socket))
        say("munged and mariadbd answer")

        slurmdbd.start()
        slurmdbd.wait_ready(lambda: answers((lab.address, lab.slurmdbd_port)))
        self._register()
        say("slurmdbd answers, the cluster is registered")
        slurmctld.start()
        slurmctld.wait_ready(lambda: answers((lab.address, lab.slurmctld_port)))
        # A slurmd that finds no controller does not listen either until it has given up on it, 30 s later.
        for node in lab.nodes:
            daemon(lab, node.name).start()
        for node in lab.nodes:
            self.start_slurmd(node.name)
        self._resume()
        wait_until(self.nodes_usable, 60, f"both nodes can take jobs (logs: {lab.log})")
        say(f"slurmctld answers, {', '.join(f'{name} {state}' for name, state in self.node_states().items())}")

    def install(self, log: Path) -> None:
        """Install the Debian packages alone, so that `up` finds them: the longest part of a first `up`."""
        if reason := debian.unavailable():
            raise LabUnavailableError(reason)
        for packages in (debian.PACKAGES, debian.BESIDE):
            if lacking := debian.missing(packages):
                debian.install(lacking, log)

    def down(self) -> None:
        """End the lab's jobs and processes, then remove all that it made. Does nothing where nothing is."""
        lab = self.layout
        if os.geteuid() != 0:
            raise LabUnavailableError("only root can take the lab down")
        with self._lock():
            self._check_ownership()
            self._cancel_jobs()
            self._end(daemon_names(lab))
            processes.end(database_setup(lab).session(), grace=1)
            # What jobs and `node_exec` left behind is known by its namespace.
            while left := self.on_nodes():
                processes.end(left, grace=1)
            netns.remove(lab)
            before = HOSTS.read_text()
            if (after := slurm_conf.without_hosts_block(before, lab)) != before:
                HOSTS.write_text(after)
            if self._system_conf_is_ours():
                SYSTEM_SLURM_CONF.unlink()
            if lab.root.exists():
                # The marker goes last: after a crash in between the next `down` still knows its own.
                for directory in (path for path in lab.root.iterdir() if path != lab.marker):
                    shutil.rmtree(directory)
                lab.marker.unlink(missing_ok=True)
                lab.root.rmdir()

    def is_up(self) -> bool:
        """True if every daemon runs, every cable is in and both nodes can take jobs."""
        lab = self.layout
        return (
            all(self.process(name) is not None for name in daemon_names(lab))
            and all(netns.cable_is_in(node) for node in lab.nodes)
            and not self._changed_files()
            and self.nodes_usable()
        )

    def usage(self) -> str:
        """Return the one line that says how to use the lab."""
        if self._system_conf_is_ours():
            return "use it: sbatch, srun, sinfo, sacct as on any cluster (/etc/slurm/slurm.conf is the lab's)"
        return f"use it: export SLURM_CONF={self.layout.slurm_conf}"

    def status(self) -> list[str]:
        """Return one line for each part: what it is and how it is."""
        lines = []
        for name in daemon_names(self.layout):
            process = self.process(name)
            what = name if name in SERVICES else f"slurmd of {name}"
            lines.append(f"{what}: {'not running' if process is None else f'process {process.pid}'}")
        states = self.node_states()
        for node in self.layout.nodes:
            cable = "in" if netns.cable_is_in(node) else "out"
            lines.append(f"{node.name} ({node.address}): {states.get(node.name, 'unknown')}, cable {cable}")
        return lines

    # -- what tests do with it -----------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """The environment of this process with SLURM_CONF set to this lab's."""
        return {**os.environ, "SLURM_CONF": str(self.layout.slurm_conf)}

    def enter(self, node: str) -> list[str]:
        """Return the words to put before a command (for Popen) that shall run on the node."""
        return netns.enter(self.layout, self.layout.node(node))

    def node_exec(
        self, node: str, argv: Sequence[str], *, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node to its end: its host name, its network, this machine's files."""
        return run([*self.enter(node), *argv], check=check, env=self.env, timeout=timeout)

    def slurm(self, *argv: str, timeout: float = 60) -> str:
        """Run a Slurm command in the root namespace; return its output, stripped. LabError if it fails."""
        return run(argv, env=self.env, timeout=timeout).stdout.strip()

    def cut(self, node: str) -> None:
        """Pull the node's network cable."""
        netns.set_cable(self.layout.node(node), up=False)

    def heal(self, node: str) -> None:
        """Plug the node's network cable in again."""
        netns.set_cable(self.layout.node(node), up=True)

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL the node's slurmd; job steps live on, as on a real node. Returns when it is gone."""
        process = self.process(self.layout.node(node).name)
        if process is not None:
            process.signal(signal.SIGKILL)
            wait_until(lambda: not process.alive, 10, f"slurmd of {node} is gone")

    def start_slurmd(self, node: str) -> None:
        """Start the node's slurmd unless it runs. Returns when it answers on the network."""
        where = self.layout.node(node)
        slurmd = daemon(self.layout, where.name)
        slurmd.start()
        slurmd.wait_ready(lambda: answers((where.address, self.layout.slurmd_port)))

    def process(self, name: str) -> Process | None:
        """Return the process of a daemon: `munged`, `mariadbd`, `slurmdbd`, `slurmctld`, or a node's slurmd by
        the node's name; None if it does not run."""
        return daemon(self.layout, name).process()

    def on_nodes(self) -> list[Process]:
        """Return every process on the nodes: those in their network namespaces."""
        lab = self.layout
        return [process for node in lab.nodes for process in processes.inside(lab.namespace(node, "net"))]

    def node_states(self) -> dict[str, str]:
        """Return the state of each node in sinfo's words (`idle`, `down*`, ...); empty without slurmctld."""
        if self.process("slurmctld") is None:
            return {}
        done = run(["sinfo", "--noheader", "--Node", "--format=%N %T"], check=False, env=self.env)
        return dict(line.split() for line in done.stdout.splitlines())

    def nodes_usable(self) -> bool:
        """True if both nodes answer and can take jobs."""
        states = self.node_states()
        return all(states.get(node.name) in USABLE for node in self.layout.nodes)

    def wait_idle(self, timeout: float = 60) -> None:
        """Wait until both nodes are idle and no job is left, at most `timeout` seconds."""

        def idle() -> bool:
            states = self.node_states()
            nodes = all(states.get(node.name) == "idle" for node in self.layout.nodes)
            return nodes and not self.slurm("squeue", "--noheader", "--format=%A")

        try:
            wait_until(idle, timeout, "idle", poll=0.1)
        except LabError:
            jobs = self.slurm("squeue", "--noheader", "--format=%A %T %r").splitlines()
            raise LabError(f"not idle after {timeout:.0f} s: nodes {self.node_states()}, jobs {jobs}") from None

    # -- parts ---------------------------------------------------------------------------------------------

    def _changed_files(self) -> dict[Path, str]:
        controller = socket.gethostname().split(".")[0]
        wanted = slurm_conf.files(self.layout, controller)
        return {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}

    def _configure(self) -> None:
        lab = self.layout
        if changed := self._changed_files():
            # Slurm marks nodes down when its daemons have read different files: all of them start anew.
            slurm = ("slurmdbd", "slurmctld", *(node.name for node in lab.nodes))
            self._end(slurm)
            for path, text in changed.items():
                path.touch(mode=0o600 if path.name == "slurmdbd.conf" else 0o644)
                path.write_text(text)
        before = HOSTS.read_text()
        if (after := slurm_conf.with_hosts_block(before, lab)) != before:
            HOSTS.write_text(after)  # Not replaced: in a container this file is a mount.
        if lab.system_conf and not self._system_conf_is_ours():
            SYSTEM_SLURM_CONF.parent.mkdir(exist_ok=True)
            SYSTEM_SLURM_CONF.symlink_to(lab.slurm_conf)

    def _end(self, names: Sequence[str]) -> None:
        processes.end([part for name in names for part in daemon(self.layout, name).session()], grace=5)

    def _register(self) -> None:
        name = self.layout.name
        known = self.slurm("sacctmgr", "--noheader", "--parsable2", "list", "cluster", "format=cluster")
        if name not in known.splitlines():
            self.slurm("sacctmgr", "--immediate", "add", "cluster", name)  # with it: account root, user root

    def _resume(self) -> None:
        for name, state in self.node_states().items():
            if state.startswith(("drain", "fail")):
                self.slurm("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def _cancel_jobs(self) -> None:
        if self.process("slurmctld") is None:
            return
        try:
            jobs = self.slurm("squeue", "--noheader", "--format=%A", timeout=10).split()
            if jobs:
                run(["scancel", *jobs], check=False, env=self.env, timeout=10)
                wait_until(lambda: not self.slurm("squeue", "--noheader", timeout=10), 5, "jobs have ended")
        except LabError:
            return  # What is left is ended by its namespace.

    def _check_ownership(self) -> None:
        lab = self.layout
        if lab.root.exists() and any(lab.root.iterdir()) and not lab.marker.exists():
            raise LabError(f"{lab.root} is there and is not a lab's: give another --root")
        owner = slurm_conf.hosts_owner(HOSTS.read_text(), lab)
        if owner is not None and owner != lab.root:
            raise LabError(f"this machine's lab is at {owner}: give --root {owner}")
        taken = SYSTEM_SLURM_CONF.exists() or SYSTEM_SLURM_CONF.is_symlink()
        if lab.system_conf and taken and not self._system_conf_is_ours():
            raise LabError(f"{SYSTEM_SLURM_CONF} is there and is not the lab's: this machine has a Slurm already")

    def _system_conf_is_ours(self) -> bool:
        return SYSTEM_SLURM_CONF.is_symlink() and SYSTEM_SLURM_CONF.readlink() == self.layout.slurm_conf

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One `up` or `down` at a time. The lock is on the directory above: nothing stays behind."""
        descriptor = os.open(self.layout.root.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb of the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="lab.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Layout().root, help="directory of all state [%(default)s]")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="install, make and start what is missing")
    verbs.add_parser("down", help="stop and remove all of it")
    verbs.add_parser("status", help="one line for each part; exit 1 if the lab is not up")
    install = verbs.add_parser("install", help="install the packages that `up` would install, and nothing else")
    install.add_argument("--log", type=Path, default=Path("/dev/stderr"), help="where apt's words go [%(default)s]")
    for verb, what in (("cut", "pull the network cable of node N"), ("heal", "plug it in again")):
        verbs.add_parser(verb, help=what).add_argument("node", metavar="N", help="1, 2 or the node's name")
    words = parser.parse_args(argv)
    lab = Lab(Layout(root=words.root.absolute()))
    try:
        if words.verb == "up":
            lab.up()
        elif words.verb == "down":
            lab.down()
        elif words.verb == "install":
            lab.install(words.log)
        elif words.verb == "status":
            print("\n".join(lab.status()))
            return 0 if lab.is_up() else 1
        else:
            (lab.cut if words.verb == "cut" else lab.heal)(words.node)
    except LabUnavailableError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("lab: interrupted; `up` goes on from here, `down` removes what is there", file=sys.stderr)
        return 130
    except (LabError, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
