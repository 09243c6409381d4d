"""The daemons of the lab: how each is called, what it needs on the disk, whether it answers."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
from pathlib import Path

import netns
from layout import Layout
from processes import Daemon, end

SERVICES = ("munged", "mariadbd", "slurmdbd", "slurmctld")
"""The daemons of the root namespace, in the order in which they start."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def daemon_names(lab: Layout) -> list[str]:
    """Return the names of all daemons; a node's slurmd has the name of its node."""
    return [*SERVICES, *(node.name for node in lab.nodes)]


def database_setup(lab: Layout) -> Daemon:
    """Return the job that makes the database's system tables. No daemon, but known as one: `up` may die first."""
    made, data = lab.mariadb / "made", lab.mariadb / "data"
    words = ["--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db", "--skip-name-resolve"]
    words += ["--auth-root-authentication-method=socket", "--auth-root-socket-user=root"]
    argv = ("sh", "-c", 'mariadb-install-db "$@" && touch "$0"', str(made), *words)
    return Daemon("database", argv, {"PATH": PATH}, lab.run / "database.process", lab.log / "database.out")


def daemon(lab: Layout, name: str) -> Daemon:
    """Return the daemon with this name; ValueError if there is none."""
    env = {"PATH": PATH, "SLURM_CONF": str(lab.slurm_conf)}
    if name == "munged":
        words = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground"]
        words += [f"--socket={lab.munge_socket}", f"--key-file={lab.munge}/munge.key"]
        words += [f"--pid-file={lab.munge}/munged.pid", f"--log-file={lab.munge}/munged.log"]
        words += [f"--seed-file={lab.munge}/munged.seed"]
    elif name == "mariadbd":
        words = ["mariadbd", "--no-defaults", "--user=mysql", f"--datadir={lab.mariadb}/data"]
        words += [f"--socket={lab.mariadb_socket}", f"--pid-file={lab.mariadb}/mariadbd.pid"]
        words += [f"--tmpdir={lab.mariadb}", "--skip-networking", "--innodb-lock-wait-timeout=900"]
        # The lab may lose its accounting in a power cut; it need not wait for the disk.
        words += ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"]
    elif name == "slurmdbd":
        words = ["slurmdbd", "-D"]
        env["MYSQL_UNIX_PORT"] = str(lab.mariadb_socket)
    elif name == "slurmctld":
        words = ["slurmctld", "-D", "-f", str(lab.slurm_conf)]
    else:
        node = lab.node(name)
        words = [*netns.enter(lab, node), "slurmd", "-D", "-N", node.name, "-f", str(lab.slurm_conf)]
    return Daemon(name, tuple(words), env, lab.run / f"{name}.process", lab.log / f"{name}.out")


def prepare_munge(lab: Layout) -> None:
    """Make the key, once; munged insists that it owns key and directory."""
    owner, key = pwd.getpwnam("munge"), lab.munge / "munge.key"
    if key.exists():
        return
    lab.munge.mkdir(exist_ok=True)
    draft = lab.munge / "munge.key.draft"
    draft.touch(mode=0o600)
    draft.write_bytes(os.urandom(128))
    for path in (lab.munge, draft):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    draft.rename(key)


def prepare_mariadb(lab: Layout) -> None:
    """Make the database's system tables, once. Its root is the system's root, known by the socket."""
    owner, made, setup = pwd.getpwnam("mysql"), lab.mariadb / "made", database_setup(lab)
    if made.exists():
        return
    end(setup.session(), grace=1)
    shutil.rmtree(lab.mariadb, ignore_errors=True)
    lab.mariadb.mkdir()
    os.chown(lab.mariadb, owner.pw_uid, owner.pw_gid)
    setup.start()
    setup.wait_ready(made.exists, timeout=60)


def answers(address: Path | tuple[str, int]) -> bool:
    """True if something accepts connections at this socket file or (address, port)."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(address) if isinstance(address, Path) else address) == 0
