"""What dead ranks of ours left on a node: enroot's roots, and containers of docker, which outlive their Slurm job.

Docker's containers are children of its daemon, outside of Slurm's cgroup: after a rank was killed its engine goes on
there, and holds its NPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from containers import docker, enroot
from jobs.core import process

ANSWER_S = 20.0
"""A daemon that needs longer to list its containers hangs."""

REMOVE_S = 120.0


def remove_containers(env: Mapping[str, str], say: Callable[[str], None]) -> list[str]:
    """Remove this user's containers of docker whose ranks have ended. Returns their names.

    Raises:
        RunError: there is no docker, or its daemon hangs.
    """
    shown = process.run(docker.list_argv(), env=env, timeout_s=ANSWER_S).stdout.splitlines()
    uid = os.getuid()
    living = {docker.owner(uid, tag) for tag in process.tags()}  # asked last: see enroot.leftovers
    removed = []
    for line in shown:
        name, _, owner = line.partition(" ")
        if owner.startswith(docker.owner(uid, "")) and owner not in living:  # not of another user of this daemon
            say(f"removing {name}, which was left behind")
            process.run(docker.remove_argv(name), env=env, timeout_s=REMOVE_S)
            removed.append(name)
    return removed


def remove_roots(paths: enroot.Paths, env: Mapping[str, str], say: Callable[[str], None]) -> list[str]:
    """Remove the roots of enroot whose ranks have ended. Returns their names.

    Raises:
        RunError: there is no enroot, or it hangs.
    """
    dead = enroot.leftovers(paths, process.tags)
    for name in dead:
        say(f"removing {name}, which was left behind")
        enroot.remove(name, paths, env)
    return dead
