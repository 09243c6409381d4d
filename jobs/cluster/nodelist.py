"""Where a rank runs: hosts of a nodelist, and the place of a Slurm task in it.

Pure: `task_from_slurm` is handed the environment that it reads.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.core.errors import ConfigError, RunError

_NAME = re.compile(r"(?:[^\[\],\t\n ]|\[[^\[\]]*\]|[\[\]])+")  # a comma in brackets does not end a name
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_NUMBERS = re.compile(r"([0-9]{1,64})(?:-([0-9]{1,64})?)?")
_MOST_HOSTS = 65_536  # scontrol's limit of one range; here of one name with all its brackets


def expand_nodelist(text: str) -> tuple[str, ...]:
    """Return the hosts of a Slurm nodelist as `scontrol show hostnames` prints them.

    Order and duplicates are kept, numbers are padded to the width of the lower bound, and `a[1-]` is `a1`.
    Of several brackets in one name the last runs fastest, then the first, the second and so on: that is
    Slurm's order (22.05, src/common/hostlist.c), and rank k lives on host k of it. A suffix behind the last
    bracket (`a[1-2]-ib`) is read too: older releases refuse it, and so never print it.

    Raises:
        ConfigError: unbalanced or nested brackets, an empty, reversed or non-numeric range, too many hosts.
            Where scontrol guesses (`a[1-2` becomes the host `a]`), this refuses.
    """
    hosts: list[str] = []
    for name in _NAME.findall(text):
        literals = _BRACKETS.split(name)[::2]
        if any("[" in literal or "]" in literal for literal in literals):
            raise _bad_nodelist(text, f"the brackets of {name!r} are not in pairs")
        brackets = [_spans(text, inside) for inside in _BRACKETS.findall(name)]
        sizes = (sum(len(numbers) for numbers, _ in spans) for spans in brackets)
        if math.prod(sizes) > _MOST_HOSTS:
            raise _bad_nodelist(text, f"{name!r} stands for more than {_MOST_HOSTS:,} hosts")
        digits = [[f"{n:0{width}d}" for numbers, width in spans for n in numbers] for spans in brackets]
        for choice in itertools.product(*reversed(digits[:-1]), *digits[-1:]):
            in_order = (*reversed(choice[:-1]), *choice[-1:], "")
            hosts.append("".join(itertools.chain(*zip(literals, in_order, strict=True))))
    return tuple(hosts)


def _spans(text: str, inside: str) -> list[tuple[range, int]]:
    """The numbers of one bracket as (range, width) pairs."""
    spans = []
    for item in inside.split(","):
        match = _NUMBERS.fullmatch(item)
        if not match:
            raise _bad_nodelist(text, f"{item!r} in [{inside}] is neither a number nor a range like 1-4")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise _bad_nodelist(text, f"the range {item!r} runs backwards")
        if high - low >= _MOST_HOSTS:
            raise _bad_nodelist(text, f"the range {item!r} has more than {_MOST_HOSTS:,} hosts")
        spans.append((range(low, high + 1), len(match[1])))
    return spans


def _bad_nodelist(text: str, reason: str) -> ConfigError:
    remedy = "Write it as Slurm does, for example a[01-04,7],b; `scontrol show hostnames LIST` expands a list"
    return ConfigError("nodelist", text, reason, remedy)


@dataclass(frozen=True)
class Task:
    """The place of this process in its Slurm step: one task a node, rank k on hosts[k]; or all of them on one host."""

    rank: int
    ranks: int
    job_id: int
    hosts: tuple[str, ...]
    host: str
    on_loopback: bool = False
    head_pid: int | None = None
    """Process id of rank 0 where all ranks are on one host; None there: it has ended already."""


def task_from_slurm(env: Mapping[str, str]) -> Task:
    """Read rank, size, job id and hosts from the environment that srun gives a task.

    The step's nodelist is preferred to the job's: a step may run on fewer nodes. With one task a node every
    distribution but `arbitrary` puts task k on the k-th node of that list (srun(1), --distribution).

    Raises:
        RunError: a variable is missing or unreadable, the step has not one task a node, or Slurm says that
            this task runs on another node than its rank implies.
    """
    rank, ranks, job_id = (_number(env, name) for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID"))
    key = "SLURM_STEP_NODELIST" if env.get("SLURM_STEP_NODELIST") else "SLURM_JOB_NODELIST"
    nodelist = _variable(env, key)
    try:
        hosts = expand_nodelist(nodelist)
    except ConfigError as error:
        raise RunError(key, nodelist, error.reason, error.remedy) from error
    if len(hosts) != ranks:
        reason = f"{nodelist} has {len(hosts)} nodes, and each runs one task"
        raise RunError("SLURM_NTASKS", ranks, reason, "Start the step with --ntasks-per-node=1")
    if not 0 <= rank < ranks:
        reason = f"the step has ranks 0 to {ranks - 1}"
        raise RunError("SLURM_PROCID", rank, reason, "Start all ranks by one srun")
    host = env.get("SLURMD_NODENAME") or hosts[rank]
    if host != hosts[rank]:
        reason = f"rank {rank} belongs on {hosts[rank]}, the node {rank} of {nodelist}"
        remedy = "Leave out --distribution=arbitrary and SLURM_HOSTFILE"
        raise RunError("SLURMD_NODENAME", host, reason, remedy)
    return Task(rank, ranks, job_id, hosts, host)


def batch_job(env: Mapping[str, str]) -> tuple[int, int]:
    """Return the id and the number of nodes of the batch job that we are in. RunError: this process is in none."""
    return _number(env, "SLURM_JOB_ID"), _number(env, "SLURM_JOB_NUM_NODES")


def _variable(env: Mapping[str, str], name: str) -> str:
    value = env.get(name)
    if not value:
        remedy = "Start it by srun inside an allocation, or use cluster=local"
        raise RunError(name, "not set", "this process is not a task of a Slurm step", remedy)
    return value


def _number(env: Mapping[str, str], name: str) -> int:
    value = _variable(env, name)
    try:
        return int(value)
    except ValueError as error:
        raise RunError(name, value, "it is not a whole number", "Start it by srun, which sets it") from error
