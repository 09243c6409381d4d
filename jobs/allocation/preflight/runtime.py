"""Look at the container runtime of one node: is it there, does it answer, has its image space. Nothing here judges."""

from __future__ import annotations

import contextlib
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from containers.base import Env, Order
from containers.base import Runtime as Kind
from jobs.allocation.node import container
from jobs.allocation.node.container import RankContainer
from jobs.allocation.preflight import look as node
from jobs.allocation.preflight.facts import Need, Runtime
from jobs.core import process
from jobs.core.config import Config, in_container
from jobs.core.errors import RunError, UserError
from jobs.core.files import nearest_there
from jobs.core.log import log
from jobs.core.registry import RUNTIMES

ANSWER_S = 20.0

Needs = Sequence[tuple[str, Path, float, float]]
"""Config key or thing, directory, GiB while an image is imported, and GiB afterwards."""


def sweep(config: Config, job: str, rank: int, inherited: Env, *, npus: bool) -> tuple[str, ...]:
    """Remove what dead ranks of ours left in containers of this node. Returns the names of what was removed.

    It comes before the NPUs are looked at: a container that outlives its job holds them. So with NPUs every runtime
    of such containers that is here is asked, whatever that of this config is.
    """
    env, removed = container.outside(inherited), list[str]()
    local = container.local(config, container.Words.here(job), rank)
    for name in RUNTIMES.names():
        with contextlib.suppress(UserError, OSError):
            one: Kind = RUNTIMES.get(name)
            there = npus and one.apart and all(shutil.which(program, path=env.get("PATH")) for program in one.programs)
            if there or name == config.container.runtime:
                removed += one.sweep(local, env, log)
    return tuple(removed)


def look(config: Config, job: str, rank: int, inherited: Env) -> Runtime:
    """Return what the runtime of this config says of itself on this node."""
    runtime = config.container.runtime
    if not in_container(config):
        return Runtime(runtime)
    which = RankContainer(config, rank, f"{job}//{rank}", inherited)
    order = which.order(container.wanted(config, rank, words=container.Words.here(job)))
    try:
        container.check_host(config)
        version = _version(which.runtime, order, which.host)
        wanted, guessed = needs(config, order, which.host)
        return Runtime(runtime, version, needs=space(wanted, guessed=guessed))
    except RunError as error:
        key = f"{error.key} = {error.value}: " if error.key != "container.runtime" else ""
        return Runtime(runtime, problem=f"{key}{error.reason}", remedy=error.remedy)


def _version(runtime: Kind, order: Order, env: Env) -> str:
    if not runtime.apart:
        order.local.make()  # enroot says nothing without its directories
    done = process.run(runtime.version, env={**env, **order.local.env()}, timeout_s=ANSWER_S)
    if done.returncode == 0:
        return " ".join(done.stdout.split())
    said = " ".join((done.stderr or done.stdout).split())[-200:] or "it said nothing"
    reason = f"`{' '.join(runtime.version[:2])}` does not answer: {said}"
    raise RunError("container.runtime", runtime.name, reason, runtime.unanswered)


def needs(config: Config, order: Order, env: Env) -> tuple[Needs, bool]:
    """Return what the image needs, and whether its size is only assumed, since it is yet to come."""
    stock = container.of(config).look(order, env)
    size = config.preflight.thresholds.image_gib if stock.unpacked_gib is None else stock.unpacked_gib
    found = [(key, path, during * size, after * size) for key, path, during, after in stock.needs]
    return found, stock.unpacked_gib is None


def space(wanted: Needs, *, guessed: bool) -> tuple[Need, ...]:
    """Return the free space of each file system against the sum of what its directories need at one time."""
    groups: dict[int, list[tuple[str, Path, float, float]]] = defaultdict(list)
    for one in wanted:
        with contextlib.suppress(OSError):
            groups[nearest_there(one[1]).stat().st_dev].append(one)
    found = []
    for group in groups.values():
        free = node.space(nearest_there(group[0][1])).free_gib
        most = max(sum(one[2] for one in group), sum(one[3] for one in group))
        found.append(Need(", ".join(f"{key} {path}" for key, path, _, _ in group), free, most, guessed))
    return tuple(found)
