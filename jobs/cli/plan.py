"""Before anything is submitted: what would be done, and what each service needs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from jobs.cli import OVERRIDES, Command
from jobs.cli.output import tell
from jobs.engines.prediction import GIB
from jobs.sweep import compose, road, show
from jobs.sweep.grouping import Service
from jobs.sweep.record import as_json
from jobs.sweep.services_text import set_apart


def _plan(options: argparse.Namespace) -> int:
    made = road.plan(compose.expand(options.overrides))
    if options.json:
        print(json.dumps(as_json(made), ensure_ascii=False))
        return 0
    out = show.console()
    show.print_plan(made, out)
    out.exact("\n" + show.commands_text(made))
    return 0


def _memory(options: argparse.Namespace) -> int:
    # What does not fit is what one asks this command about: nothing is refused, nothing is cut.
    overrides = [*options.overrides, "launch.infeasible=keep", "launch.budget_node_hours=null"]
    made = road.plan(compose.expand(overrides))
    services = made.services
    named = {point.service: setting for point, (setting, _) in zip(made.points, set_apart(made.points), strict=True)}
    if options.json:
        values = [_memory_json(service) | {"setting": named[service.service]} for service in services]
        print(json.dumps(values[0] if len(values) == 1 else values))
        return 0
    for service in services:
        heading = f"service {service.service}  {named[service.service] if len(services) > 1 else ''}".rstrip()
        tell("\n".join([heading, *(f"  {line}" for line in _memory_lines(service))]))
    return 0


def _memory_json(service: Service) -> dict[str, Any]:
    """Return the sum with what earlier runs showed beside it."""
    assert service.forecast
    fit, past = service.forecast.fit, service.forecast.past
    found: dict[str, Any] = {"service": service.service, "calibration": asdict(past) if past else None}
    if fit.prediction is None:
        return found | {"unknown": fit.unknown}
    found |= fit.prediction.as_json() | {"max_model_len": fit.length, "lacks_gib": fit.lacks_bytes / GIB}
    return found | {"full_length_sequences": fit.prediction.sequences(fit.length)}


def _memory_lines(service: Service) -> list[str]:
    """Return the sum line by line, what starts, and what earlier runs showed."""
    assert service.forecast
    fit, past = service.forecast.fit, service.forecast.past
    made = fit.prediction
    if made is None:
        return [f"no prediction: {fit.unknown}"]
    lines = [f"pipeline {stage}" for stage in made.stages]
    lines += [f"{term.gib:9.3f} GiB  {term.name}  ({term.source})" for term in made.terms]
    left = f"{made.kv_bytes / GIB:9.3f} GiB  for the KV cache, {made.kv_bytes_per_token:,} bytes a token"
    lines.append(left + (f"; give or take {made.uncertainty_bytes / GIB:.2f} GiB" if made.uncertainty_bytes else ""))
    if made.graphs_gib:
        least, most = made.graphs_gib
        beyond = (made.device_bytes - made.budget_bytes) / GIB
        lines.append(f"{least:g} to {most:g} GiB more for graphs, of the {beyond:.2f} GiB beyond the utilization")
    lines += [
        f"{made.kv_tokens_per_rank:,} tokens in each data-parallel rank",
        f"largest max_model_len that starts: {made.largest_max_model_len:,}",
        f"full-length sequences at once: {made.sequences(fit.length):,} in each data-parallel rank",
        f"max_model_len={fit.length:,}: {fit.refusal or fit.doubt or 'fits'}",
        *(f"behind it: {anchor}" for anchor in made.anchors),
    ]
    if past is None:
        return [*lines, "calibration: none, no run of this release and layout is known under results.root"]
    predicted, measured = past.predicted_kv_tokens, past.kv_tokens
    lines.append(f"calibration: {past.run}, {past.time}")
    if predicted is not None and measured:
        lines.append(f"  KV cache: {measured:,} tokens, predicted {predicted:,} ({predicted / measured - 1:+.1%})")
    if past.weights_gib and past.predicted_weights_gib:
        ratio = past.predicted_weights_gib / past.weights_gib - 1
        lines.append(
            f"  weights: {past.weights_gib:.2f} GiB, predicted {past.predicted_weights_gib:.2f} ({ratio:+.1%})"
        )
    if past.allowance_gib is not None:
        lines.append(f"  activations and HCCL buffers: {past.allowance_gib:.2f} GiB, used above")
    return lines


COMMANDS = (
    Command("plan", _plan, "show points, services, allocations and exact commands", (OVERRIDES,)),
    Command("memory", _memory, "predict weights and KV cache of every service, line by line", (OVERRIDES,)),
)
