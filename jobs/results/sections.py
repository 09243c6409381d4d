"""Sections of a report that come from the files of services and allocations: time, balance, failures, memory."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from jobs.core import hidden
from jobs.core.errors import RunError
from jobs.core.foreign import SMALL, load_text
from jobs.core.records import read_states, tolerant
from jobs.core.rundir import AllocationDir, ServiceDir
from jobs.core.tasks import ServiceRecord, read_outcome, read_record
from jobs.results.gather import Run

D = TypeVar("D")
T = TypeVar("T")

PHASES = ("load_s", "failed_start_s", "warmup_s", "measure_s", "teardown_s")
"""Phases in which nodes are held. Waiting in the queue holds none."""


def told(read: Callable[[D], T], folder: D) -> T | None:
    """Return what a file of a directory says; None where it is half-written, or of another version."""
    with contextlib.suppress(RunError, ValidationError):
        return read(folder)
    return None


def record_of(folder: ServiceDir) -> ServiceRecord:
    """Return how an attempt at a service went, as far as its file says."""
    return told(read_record, folder) or ServiceRecord()


def attempts(run: Run) -> Iterator[tuple[str, ServiceDir]]:
    """Return every attempt at every service of a sweep, oldest first."""
    for planned in run.plan.services:
        for folder in run.sweep.service_attempts(planned.service):
            yield planned.service, folder


def time_by_phase(run: Run) -> dict[str, Any]:
    """Return seconds and node-hours of each phase.

    `measure_s` of a row is its windows and their drains, or the whole run of an external client. `share` of a
    phase is of all node-hours that were held; the useful share is that of `measure_s`. What a job held beyond its
    phases, from the start of rank 0 to its outcome, stands as `other_s`: canary and quality questions among it.
    """
    seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    node_s: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    def add(phase: str, amount: float | None, nodes: Any) -> None:
        seconds[phase] += amount or 0.0
        node_s[phase] += (amount or 0.0) * float(nodes or 1)

    for row in run.rows:
        for phase in () if row.get("reused_from") else ("warmup_s", "measure_s"):
            add(phase, row.get(phase), row.get("nodes"))
    queues: dict[str, float] = {}
    for _, folder in attempts(run):
        record = record_of(folder)
        add("load_s", record.load_s, record.nodes)
        add("teardown_s", record.teardown_s, record.nodes)
        add("failed_start_s", _failed_start(folder, record), record.nodes)
        if record.queue_s is not None:
            queues[str(record.job_id)] = record.queue_s
    held, queue, known = 0.0, 0.0, False
    for job in _allocations(run):
        found = _held(job, queues)
        if found is not None:
            queue, held, known = queue + found[0], held + found[1] * found[2], True
    total = max(held, sum(node_s.values())) if known else sum(node_s.values())
    phases = [
        {
            "phase": name,
            "seconds": seconds[name],
            "node_hours": node_s[name] / 3600,
            "share": _share(node_s[name], total),
        }
        for name in PHASES
    ]
    other = total - sum(node_s.values())
    phases.append({"phase": "other_s", "seconds": None, "node_hours": other / 3600, "share": _share(other, total)})
    return {
        "phases": phases,
        "node_hours": total / 3600,
        "queue_s": queue if known else None,
        "useful_share": _share(node_s["measure_s"], total),
    }


def _share(part: float, total: float) -> float | None:
    return part / total if total else None


def _failed_start(folder: ServiceDir, record: ServiceRecord) -> float:
    """Return the seconds of a start that did not get ready, by the states of rank 0; 0 for any other service."""
    if not record.failure or record.load_s:
        return 0.0
    states = [entry for entry in read_states(folder.rank(0).states) if entry.get("time") is not None]
    return max(0.0, states[-1]["time"] - states[0]["time"] - (record.teardown_s or 0.0)) if states else 0.0


def _allocations(run: Run) -> Iterator[AllocationDir]:
    for index in range(len(run.plan.allocations)):
        yield from run.sweep.attempts(index)


def _held(job: AllocationDir, queues: Mapping[str, float]) -> tuple[float, float, int] | None:
    """Return seconds in the queue, seconds held and nodes of one job; None: it has not ended, or began no service."""
    record, outcome = tolerant(job.job), told(read_outcome, job)
    queue = queues.get(str(record.get("job_id")))
    if "submitted" not in record or not outcome or not outcome.time or queue is None:
        return None
    return queue, max(0.0, outcome.time - record["submitted"] - queue), int(record.get("nodes") or 1)


def against_plan(run: Run) -> dict[str, Any]:
    """Return what was planned beside what came: points, and the seconds of each service."""
    counts = Counter("valid" if row["valid"] else "invalid" for row in run.rows)
    return {
        "points": len(run.rows),
        "valid": counts["valid"],
        "invalid": counts["invalid"],
        "services": [_service_against_plan(run, service) for service in run.plan.data["services"]],
        "allocations": len(run.plan.allocations),
        "predicted_node_hours": sum(one.node_hours or 0.0 for one in run.plan.allocations),
    }


def _service_against_plan(run: Run, service: Mapping[str, Any]) -> dict[str, Any]:
    rows = [row for row in run.rows if row["service"] == service["service"]]
    folders = [folder for name, folder in attempts(run) if name == service["service"]]
    records = [record_of(folder) for folder in folders]
    own = [row for row in rows if not row.get("reused_from")]
    took = sum(row.get(name) or 0.0 for row in own for name in ("warmup_s", "measure_s"))
    took += sum((record.load_s or 0.0) + (record.teardown_s or 0.0) for record in records)
    took += sum(map(_failed_start, folders, records))
    return {
        "service": service["service"],
        "points": len(service["points"]),
        "valid": sum(bool(row["valid"]) for row in rows),
        "attempts": len(records),
        "predicted_s": service.get("predicted_s"),
        "seconds": round(took, 1) if records else None,
    }


def balance(run: Run) -> list[dict[str, Any]]:
    """Return for each row the share of tokens of every data-parallel engine, and the largest over the mean."""
    found = []
    for row in run.rows:
        try:
            tokens = json.loads(row.get("engine_tokens") or "{}")
        except ValueError:
            continue
        total = sum(tokens.values())
        if len(tokens) > 1 and total:
            shares = {engine: count / total for engine, count in tokens.items()}
            found.append({"point": row["point"], "shares": shares, "peak": max(shares.values()) * len(shares)})
    return found


def failures(run: Run) -> list[dict[str, Any]]:
    """Return each reason for invalid rows with its points, and the diagnosis of its services where there is one."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in run.rows:
        if not row["valid"]:
            groups.setdefault(str(row["invalid_reason"]), []).append(row)
    diagnoses = {name: _text(folder) for name, folder in attempts(run)}
    found = []
    for reason, rows in groups.items():
        told = next((text for row in rows if (text := diagnoses.get(row["service"]))), None)
        points = [row["point"] for row in rows]
        found.append({"reason": reason, "points": points, "diagnosis": told})
    return found


def _text(folder: ServiceDir) -> str | None:
    try:
        return hidden.visible(load_text(folder.diagnosis, SMALL))
    except RunError:
        return None


def notices(run: Run) -> list[dict[str, str]]:
    """Return warnings of the services, and what they left behind on the nodes."""
    return [
        {"service": name, "text": text}
        for name, folder in attempts(run)
        for record in [record_of(folder)]
        for text in (*record.warnings, *record.leftovers)
    ]


def memory(run: Run) -> list[dict[str, Any]]:
    """Return for each service the KV cache that was predicted (None: not recorded) and the one that it reported."""
    found = []
    for name, folder in attempts(run):
        record = record_of(folder)
        if record.kv_cache_tokens or record.predicted_kv_tokens:
            found.append({"service": name, "predicted": record.predicted_kv_tokens, "measured": record.kv_cache_tokens})
    return found
