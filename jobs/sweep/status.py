"""How far a sweep is, by its files and by what the cluster says: for `follow` and `status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.cluster import base
from jobs.cluster.base import ENDED
from jobs.cluster.squeue import may_never_start
from jobs.core.errors import RunError
from jobs.core.lock import holder, is_free
from jobs.core.planfile import PlannedPoint, begun_services, read_plan
from jobs.core.records import read_states
from jobs.core.rundir import AllocationDir, SweepDir
from jobs.core.tasks import Outcome, read_outcome, read_record
from jobs.results.row import NOT_RUN, read_row
from jobs.results.table import unreadable
from jobs.sweep.lost import attempts, job_id, lost_rows, states


def phase(folder: AllocationDir) -> str:
    """Return in a few words what an allocation does now: who submits it, or its service, state, loaded shards."""
    if not folder.job.exists() and not is_free(folder.submitting):
        return f"being submitted by {holder(folder.submitting)}"
    for service in reversed(begun_services(folder)):
        if known := states(folder, service.service):
            last = known[-1]
            return f"service {service.service} {last['state']} {last.get('shards') or last.get('staged', '')}".rstrip()
    return ""


def describe(sweep: SweepDir) -> dict[str, Any]:
    """Return the state of every allocation, service and point as plain data (`python -m jobs status --json`)."""
    folders = list(sweep.allocations())
    allocations = [_allocation(folder) for folder in folders]
    lost: dict[str, Mapping[str, Any]] = {}
    for folder, known in zip(folders, allocations, strict=True):
        lost |= lost_rows(folder, known["state"])
    running = {
        state["point"]
        for folder, known in zip(folders, allocations, strict=True)
        if known["state"] not in ENDED
        for service in begun_services(folder)
        for state in states(folder, service.service)[-1:]
        if "point" in state
    }
    plan = read_plan(sweep)
    points = [_point(sweep, item, running, lost) for item in plan.points]
    for one in (service for known in allocations for service in known["services"]):
        one["setting"] = plan.setting(one["service"])
    return {"sweep": str(sweep.path), "allocations": allocations, "points": points}


def _allocation(folder: AllocationDir) -> dict[str, Any]:
    state = base.job_state(folder)
    outcome = read_outcome(folder) or Outcome()
    queue = base.queue_words(folder) if state not in ENDED else {}
    return {
        "allocation": folder.index,
        "attempt": folder.attempt,
        "job_id": job_id(folder) if folder.job.exists() else None,
        "state": state,
        "phase": phase(folder),
        "ended": outcome.ended,
        "resubmitted": outcome.resubmitted,
        "services": [_service(folder, service.service) for service in begun_services(folder)],
    } | queue


def _service(folder: AllocationDir, service: str) -> dict[str, Any]:
    """Return where a service is, its load, and why it failed."""
    known: dict[str, Any] = {"service": service, "state": "waiting", "attempt": None, "since": None, "ranks": {}}
    for attempt in attempts(folder, service)[-1:]:
        record = read_record(attempt)
        ranks = {rank.path.name.removeprefix("rank"): read_states(rank.states) for rank in attempt.ranks()}
        last = {rank: entries[-1] for rank, entries in ranks.items() if entries}
        head: Mapping[str, Any] = last.get("0", {})
        known |= {
            "state": head.get("state", "waiting"),
            "shards": head.get("shards"),
            "since": head.get("time"),
            "attempt": int(attempt.path.name),
            "ranks": {rank: entry["state"] for rank, entry in last.items()},
            "load_s": record.load_s,
            "failure": record.failure,
            "diagnosis": str(attempt.diagnosis) if attempt.diagnosis.exists() else None,
        }
    return known


def _point(
    sweep: SweepDir, item: PlannedPoint, running: set[str], lost: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    row = lost.get(item.point, {})
    if (path := sweep.point(item.point).row).exists():
        try:
            row = read_row(path)
        except RunError as error:
            row = {"valid": False, "invalid_reason": unreadable(error)}
    if not row:
        state = "running" if item.point in running else "waiting"
    elif row["valid"]:
        state = "valid"
    else:
        state = "not run" if str(row["invalid_reason"]).startswith(NOT_RUN) else "invalid"
    return {
        "point": item.point,
        "service": item.service,
        "values": item.values,
        "state": state,
        "valid": bool(row.get("valid")),
        "invalid_reason": row.get("invalid_reason") if row else "not run yet",
        "truncated": bool(row.get("truncated")),
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return what `describe` found, for people."""
    text = []
    for one in found["allocations"]:
        words = [f"allocation {one['allocation']} attempt {one['attempt']}: job {one['job_id']} {one['state']}"]
        words += [f"{name} {one[name]}" for name in ("reason", "nodelist", "starts", "left") if one.get(name)]
        words += ["it may never start"] if may_never_start(one.get("reason") or "") else []
        words += [one["phase"]] if one["phase"] and one["state"] not in ENDED else []
        words += [f"ended: {one['ended']}"] if one["ended"] else []
        text.append(", ".join(words))
        for service in one["services"]:
            name = " ".join(filter(None, (service["service"], service["setting"])))
            text.append(f"  service {name}: {_service_words(service)}")
    done = sum(point["state"] in ("valid", "invalid") for point in found["points"])
    valid = sum(point["valid"] for point in found["points"])
    text.append(f"{done} of {len(found['points'])} points measured, {valid} valid")
    for point in found["points"]:
        values = " ".join(f"{key}={value}" for key, value in point["values"].items())
        state = str(point["state"])
        if state in ("invalid", "not run"):
            state += f": {str(point['invalid_reason']).removeprefix(NOT_RUN)}"
        text.append("  ".join(word for word in (f"  point {point['point']}", values, state) if word))
    return text


def _service_words(service: Mapping[str, Any]) -> str:
    words = [str(service["state"]) + (f" {service['shards']}" if service.get("shards") else "")]
    words += [f"ready after {service['load_s']} s"] if service.get("load_s") else []
    others = {rank: state for rank, state in service["ranks"].items() if state != service["state"]}
    words += [f"rank {rank} {state}" for rank, state in sorted(others.items())]
    words += [str(service["failure"])] if service.get("failure") else []
    words += [f"see {service['diagnosis']}"] if service.get("diagnosis") else []
    return ", ".join(words)
