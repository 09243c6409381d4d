"""What a sweep writes down before it starts: plan, configs, provenance, and rows of what is not run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.allocation.node import container, fingerprint
from jobs.core import masking
from jobs.core.config import Config, in_container
from jobs.core.files import write_json
from jobs.core.layout import Placement, planned
from jobs.core.rundir import SweepDir, new_sweep
from jobs.core.tasks import write_config
from jobs.engines.base import engine_of
from jobs.forecast.duration import Phases
from jobs.forecast.history import Forecast
from jobs.forecast.search import Search
from jobs.results.provenance import describe
from jobs.results.row import make_row, write_rows
from jobs.results.table import write_table
from jobs.sweep.plan import Plan


def place(made: Plan) -> SweepDir:
    """Make the directory of a new sweep. Raises RunError: it cannot be made."""
    settings = made.points[0].config
    root = Path(settings.results.root).absolute()
    return new_sweep(root, settings.results.name, datetime.now(), settings.cluster.share_group)


def record(
    made: Plan, search: Search | None = None, begun: Collection[str] = (), *, into: SweepDir | None = None
) -> SweepDir:
    """Write the run directory (`into`, or a new one): plan and configs. Nothing is submitted.

    Where a search chooses from its points, plan.json grows with those that it begins; of `begun` it has rows.

    Raises:
        RunError: it cannot be written.
    """
    sweep = into or place(made)
    _log_to(sweep)
    plan = as_json(made)
    for item, service in zip(plan["services"], made.services, strict=True):
        item["seen"] = asdict(fingerprint.of_this_host(service.config))
    if search:
        search = replace(search, plan=plan)
        write_json(sweep.search, search)
        plan = search.begun(begun)
    write_json(sweep.plan, plan)
    write_json(sweep.provenance, describe(sys.argv))
    for point in made.points:
        write_config(sweep, point.point, point.config)
        if reason := made.refused.get(point.point):
            row = make_row(point.point, point.service, point.config, invalid_reason=reason)
            write_rows(sweep, [row])
    if not made.allocations:
        write_table(sweep)
    return sweep


class _Masked(logging.Formatter):
    """Tracebacks hold values too."""

    def format(self, record: logging.LogRecord) -> str:
        return masking.text(super().format(record))


class _Log(logging.FileHandler):
    """On a full disk the log is what can be missed: whoever wrote to it has something better to say."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        pass


def _log_to(sweep: SweepDir) -> None:
    handler = _Log(sweep.log)
    handler.setFormatter(_Masked("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain data (the form of `python -m jobs plan --json`)."""
    return {
        "points": [
            {"point": p.point, "overrides": masking.mask(p.overrides), "service": p.service, "values": dict(p.values)}
            for p in plan.points
        ],
        "services": [
            {
                "service": service.service,
                "points": list(service.points),
                "engine": service.config.engine.name,
                "release": service.config.engine.release,
                "predicted_s": round(service.seconds),
                "phases": _phases_json(service.phases),
                "memory": _memory_json(service.forecast),
                "ranks": [_rank(service.config, place, plan.words) for place in planned(service.config)],
            }
            for service in plan.services
        ],
        "allocations": [
            {
                "services": list(allocation.services),
                "nodes": allocation.nodes,
                "predicted_s": round(allocation.seconds),
                "node_hours": round(allocation.node_hours, 3),
            }
            for allocation in plan.allocations
        ],
        "swept": list(plan.swept),
        "refused": [{"point": point, "reason": reason} for point, reason in plan.refused.items()],
        "dropped": [
            {"point": p.point, "overrides": masking.mask(p.overrides), "values": dict(p.values), "reason": one.reason}
            for one in plan.dropped
            for p in [one.point]
        ],
        "warnings": list(plan.warnings),
    }


def _phases_json(spent: Phases | None) -> dict[str, Any] | None:
    """Return the phases with whole seconds."""
    if spent is None:
        return None
    seconds = {f"{name}_s": round(value) for name, value in asdict(spent).items() if name != "source"}
    return seconds | {"source": spent.source}


def _memory_json(forecast: Forecast | None) -> dict[str, Any] | None:
    """Return what is known of a service's memory; `unknown` says why there is no sum."""
    if forecast is None:
        return None
    made = forecast.fit.prediction
    if made is None:
        return {"unknown": forecast.fit.unknown}
    return {
        "predicted_kv_tokens": made.kv_tokens_per_rank,
        "largest_max_model_len": made.largest_max_model_len,
        "uncertainty_gib": round(made.uncertainty_bytes / (1 << 30), 2),
        "allowance_source": made.allowance.source,
    }


def _rank(config: Config, place: Placement, words: container.Words) -> dict[str, Any]:
    """Return what one rank is started with: its environment, its command line, those of its container if it has one."""
    engine = engine_of(config)
    variables, argv = engine.environment(config, place), engine.argv(config, place)
    source = list(config.engine.source)
    found: dict[str, Any] = {"rank": place.rank, "role": place.role, "env": variables, "source": source, "argv": argv}
    if in_container(config):
        found["container"] = container.planned(config, place, argv, variables, words)
    return dict(masking.mask(found))
