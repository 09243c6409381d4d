"""How Slurm is asked for the nodes of an allocation, and whether this host can ask."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from typing import Any

from containers.pyxis import check_strays
from jobs.cluster.time_limit import SIGNAL_DELAY_S, limit_seconds
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.sweep_settings import Cluster

UNLIMITED_MIN = 365 * 24 * 60
"""submitit's local executor wants a number of minutes."""


QUEUE_S = 86_400.0
"""How long an interactive srun may queue and run."""


def kind_of(cluster: Cluster) -> str:
    """Return slurm or local; `auto` is Slurm where sbatch is on PATH."""
    if cluster.kind == "auto":
        return "slurm" if shutil.which("sbatch") else "local"
    return cluster.kind


def check_programs(kind: str) -> None:
    """Say before anything is written that this host cannot submit. A plan for Slurm can be made anywhere.

    Raises:
        ConfigError: cluster=slurm without sbatch or srun, or with options of pyxis in the shell.
    """
    check_shell(local=kind != "slurm")
    missing = [name for name in ("sbatch", "srun") if kind == "slurm" and not shutil.which(name)]
    if missing:
        reason = f"there is no {' and no '.join(missing)} on PATH"
        raise ConfigError("cluster.kind", "slurm", reason, "Log in to a Slurm node, or use cluster=local.")


def check_shell(env: Mapping[str, str] = os.environ, *, local: bool) -> None:
    """Refuse a shell whose variables would move every step of a job, the ranks too, into a container.

    Every way into Slurm asks this, before it writes anything where it can; `new_allocation` asks once more for all.

    Raises:
        ConfigError: a PYXIS_CONTAINER_* variable is set, and the ranks run in steps of Slurm.
    """
    if not local:
        check_strays(env)


def sbatch_parameters(config: Config, nodes: int, name: str) -> dict[str, Any]:
    """Return submitit's parameters of one allocation. Pure; a null key is not emitted.

    Args:
        config: any config of the sweep.
        nodes: nodes of the allocation; one task a node.
        name: job name, as `squeue` shows it. Jobs of one name run one at a time (--dependency=singleton): so a
            resubmitted allocation and the next one of the sweep never run together.
    """
    cluster = config.cluster
    seconds = limit_seconds(cluster.time_limit)
    # --kill-on-bad-exit fires on a code other than 0 only: --wait ends the step after a rank that exits 0.
    srun = ["--kill-on-bad-exit=1", f"--wait={config.limits.srun_wait_s}", *cluster.srun_args]
    parameters: dict[str, Any] = {
        "job_name": name,
        "nodes": nodes,
        "ntasks_per_node": 1,
        # Null: the partition's own default. Zero: no limit is asked for (sbatch(1), --time).
        "time": None if cluster.time_limit is None else math.ceil(seconds / 60) if seconds else 0,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "gres": cluster.gres,
        "constraint": cluster.constraint,
        "nodelist": cluster.nodelist,
        "exclude": cluster.exclude,
        "exclusive": cluster.exclusive or None,
        "mem": cluster.mem,
        "cpus_per_task": cluster.cpus_per_task,
        "dependency": "singleton",
        "setup": list(cluster.setup) or None,
        "wckey": None,
        "stderr_to_stdout": True,
        "signal_delay_s": SIGNAL_DELAY_S,
        "srun_args": srun,
    }
    extra: dict[str, Any] = {"no-requeue": True}
    if cluster.reservation:
        extra["reservation"] = cluster.reservation
    extra |= {key.lstrip("-").replace("_", "-"): value for key, value in cluster.sbatch_args.items()}
    parameters["additional_parameters"] = {key: value for key, value in extra.items() if value not in (None, False)}
    # A None for these two is for submitit, which has a value of its own for a key that is left out.
    return {key: value for key, value in parameters.items() if value is not None or key in ("time", "wckey")}


NOT_FOR_SRUN = ("setup", "srun_args", "signal_delay_s", "stderr_to_stdout", "wckey", "dependency", "time")
