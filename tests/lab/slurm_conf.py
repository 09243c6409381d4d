"""The lab's configuration files as pure functions of its layout."""

from __future__ import annotations

from pathlib import Path

from layout import Layout

MARKER = "# Written by tests/lab: removed by `lab.py down`."

CPUS = 16
NPUS = 8
MEMORY_MB = 1_000_000
"""Declared, not checked (config_overrides), and not consumed (CR_CPU): an Atlas 800I A2 node has 1 TB."""


def slurm_conf(lab: Layout, controller: str) -> str:
    """Return slurm.conf; `controller` is the short host name of the root namespace."""
    names = ",".join(node.name for node in lab.nodes)
    nodes = "\n".join(
        f"NodeName={node.name} NodeAddr={node.address} CPUs={CPUS} RealMemory={MEMORY_MB} Gres=npu:{NPUS}"
        for node in lab.nodes
    )
    return f"""{MARKER}
ClusterName={lab.name}
SlurmctldHost={controller}({lab.address})
SlurmctldPort={lab.slurmctld_port}
SlurmdPort={lab.slurmd_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={lab.munge_socket}
StateSaveLocation={lab.controller_state}
SlurmdSpoolDir={lab.root}/slurmd-%n
SlurmctldPidFile={lab.run}/slurmctld.pid
SlurmdPidFile={lab.run}/slurmd-%n.pid
SlurmctldLogFile={lab.log}/slurmctld.log
SlurmdLogFile={lab.log}/slurmd-%n.log
PlugStackConfig={lab.etc}/plugstack.conf
MailProg=/bin/true

# One small machine plays two big nodes.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
GresTypes=npu
{nodes}

# Sites share nodes by CPU and NPU; `urgent` takes them from `npu`.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=npu Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=1 OverSubscribe=NO
PartitionName=urgent Nodes={names} MaxTime=INFINITE PriorityTier=10 OverSubscribe=NO PreemptMode=OFF

# A dead node is noticed in half a minute and comes back by itself; KillWait is the sites' value.
SlurmdTimeout=30
ReturnToService=2
KillWait=30

# Tests should wait for their jobs, not for the scheduler.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0

JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={lab.address}
AccountingStoragePort={lab.slurmdbd_port}
# To slurmdbd this, and not AuthInfo, names munge's socket (slurm.conf(5), AccountingStoragePass).
AccountingStoragePass={lab.munge_socket}
AccountingStorageTRES=gres/npu
"""


def slurmdbd_conf(lab: Layout) -> str:
    """Return slurmdbd.conf. The database knows root by its socket (unix_socket), so there is no password."""
    return f"""{MARKER}
DbdHost=localhost
DbdAddr={lab.address}
DbdPort={lab.slurmdbd_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={lab.munge_socket}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
LogFile={lab.log}/slurmdbd.log
PidFile={lab.run}/slurmdbd.pid
"""


def files(lab: Layout, controller: str) -> dict[Path, str]:
    """Return every configuration file: path -> text. slurmdbd wants mode 600 for its own."""
    return {
        lab.slurm_conf: slurm_conf(lab, controller),
        lab.etc / "gres.conf": f"{MARKER}\nName=npu Count={NPUS}\n",
        # slurmd starts the cgroup plugin even if nothing uses it; version 1 touches nothing when it starts.
        lab.etc / "cgroup.conf": f"{MARKER}\nCgroupPlugin=cgroup/v1\n",
        lab.etc / "plugstack.conf": f"{MARKER}\ninclude {lab.etc}/plugstack.conf.d/*.conf\n",
        lab.etc / "slurmdbd.conf": slurmdbd_conf(lab),
    }


def hosts_block(lab: Layout) -> str:
    """Return the lines for /etc/hosts, between two marker lines."""
    lines = [f"{lab.address} {lab.login}", *(f"{node.address} {node.name}" for node in lab.nodes)]
    return "\n".join([f"# {lab.name} lab begin: {lab.root}", *lines, f"# {lab.name} lab end", ""])


def with_hosts_block(text: str, lab: Layout) -> str:
    """Return /etc/hosts with this lab's lines at its end, once."""
    rest = without_hosts_block(text, lab)
    newline = "" if not rest or rest.endswith("\n") else "\n"
    return rest + newline + hosts_block(lab)


def without_hosts_block(text: str, lab: Layout) -> str:
    """Return /etc/hosts without this lab's lines; everything else stays as it is."""
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        inside = inside or line.startswith(f"# {lab.name} lab begin")
        if not inside:
            kept.append(line)
        inside = inside and not line.startswith(f"# {lab.name} lab end")
    return "".join(kept)


def hosts_owner(text: str, lab: Layout) -> Path | None:
    """Return the root of the lab whose lines with this name are in /etc/hosts, or None."""
    for line in text.splitlines():
        head, _, root = line.partition(" lab begin: ")
        if root and head == f"# {lab.name}":
            return Path(root)
    return None
