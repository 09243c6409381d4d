"""Which nodes failed lately: what the next submission leaves out, or proposes to leave out."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import AfterValidator, Field

from jobs.cluster.base import scheduler
from jobs.cluster.nodelist import expand_nodelist
from jobs.core import names
from jobs.core.config import Config
from jobs.core.errors import UserError
from jobs.core.foreign import SMALL, load_form
from jobs.core.records import Number
from jobs.core.rundir import Root

EVIDENCE_HOURS = 24.0
"""How long a node that failed is left out or proposed to be: by the next day somebody has looked at it."""


@dataclass(frozen=True)
class Sick:
    """A node that failed, when (Unix seconds), and by what."""

    node: str
    time: float
    reason: str

    def __str__(self) -> str:
        hours = (time.time() - self.time) / 3600
        ago = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"
        return f"{self.node} failed its checks {ago} ago: {self.reason}"


@dataclass(frozen=True)
class _Evidence:
    """What a file says (preflight/evidence.py); the node becomes a word of the batch script."""

    node: Annotated[str, AfterValidator(names.host)]
    time: Number
    reasons: Annotated[tuple[str, ...], Field(min_length=1)]


def sick(root: Root) -> list[Sick]:
    """Return the nodes whose evidence has not expired."""
    found = []
    for path in root.nodes():
        with contextlib.suppress(UserError):  # half a file, or a stranger's, is no evidence
            data = load_form(path, _Evidence, SMALL, ours=True)
            if time.time() - data.time < EVIDENCE_HOURS * 3600:
                found.append(Sick(data.node, data.time, data.reasons[0]))
    return found


def to_exclude(config: Config, root: Root) -> list[Sick]:
    """Return the sick nodes that this config neither excludes nor asks for by name."""
    named: set[str] = set()
    for nodelist in (config.cluster.exclude, config.cluster.nodelist):
        with contextlib.suppress(UserError):  # sbatch will say what is wrong with it
            named.update(expand_nodelist(nodelist or ""))
    return [one for one in sick(root) if one.node not in named]


def without_sick(config: Config, root: Root) -> Config:
    """Return the config with the sick nodes in cluster.exclude, if preflight.exclude_sick asks for it."""
    found = to_exclude(config, root) if config.preflight.exclude_sick else []
    if not found:
        return config
    exclude = ",".join([*([config.cluster.exclude] if config.cluster.exclude else []), *(one.node for one in found)])
    return replace(config, cluster=replace(config.cluster, exclude=exclude))


def proposal(config: Config, root: Root) -> list[str]:
    """Return lines for people before a submission: which nodes are left out, or might be."""
    found = to_exclude(config, root) if scheduler(config.cluster.kind).queues else []
    if not found:
        return []
    names = ",".join(one.node for one in found)
    if config.preflight.exclude_sick:
        end = f"left out: cluster.exclude={names} (preflight.exclude_sick)"
    else:
        them = "it" if len(found) == 1 else "them"
        end = f"to leave {them} out: 'cluster.exclude=\"{names}\"', or preflight.exclude_sick=true"
    return [*(str(one) for one in found), end]
