"""Which nodes failed lately: what the next submission leaves out, or proposes to leave out.

One file a node under results.root. It goes when the node passes again, and counts for a day
(jobs/cluster/sick_nodes.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence

from jobs.allocation.preflight.findings import CHECKS, Finding
from jobs.core.errors import RunError
from jobs.core.files import remove, write_json
from jobs.core.rundir import Root


def save(root: Root, hosts: Iterable[str], findings: Sequence[Finding], job: str) -> None:
    """Write the evidence against the nodes that failed by their own fault, and drop that against the others.

    A directory that cannot be written costs the evidence, not the allocation.
    """
    for host in hosts:
        bad = [one for one in findings if one.state == "fail" and one.node == host and CHECKS[one.check].node_fault]
        with contextlib.suppress(RunError, OSError):
            if bad:
                reasons = [str(one) for one in bad]
                write_json(root.node(host), {"node": host, "time": time.time(), "job_id": job, "reasons": reasons})
            elif _passed(host, findings):
                remove(root.node(host))


def _passed(host: str, findings: Sequence[Finding]) -> bool:
    """Whether the node's NPUs were looked at and are well: a rehearsal says nothing about them."""
    return any(one.node == host and one.check == "npu.health" and one.state in ("pass", "warn") for one in findings)
