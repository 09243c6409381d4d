"""Before anything is submitted: what is wrong or risky, and what another release changes."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from jobs.cli import OVERRIDES, Argument, Command
from jobs.core import chinese
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines.ascend.real import ask
from jobs.engines.base import Finding, engine_of
from jobs.sweep import check, compose, show
from jobs.sweep.check import Shared


def judge(points: Sequence[Sequence[str]], composer: compose.Composer = compose.default_composer) -> tuple[Shared, ...]:
    """Return the findings of all points, errors first; a point that cannot be composed is a finding too."""

    @functools.cache
    def once(groups: tuple[str, ...]) -> DictConfig:
        return composer(list(groups))

    def judged(overrides: Sequence[str]) -> tuple[Finding, ...]:
        try:
            [config] = compose.configs([overrides], lambda groups: once(tuple(groups)))
        except ConfigError as error:
            return (Finding.of(error),)
        return check.findings(config, memory=True)

    return check.shared(judged(overrides) for overrides in points)


def as_json(found: Sequence[Shared], points: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the findings as plain data, each with the override lists of its points."""
    errors = sum(one.finding.severity == "error" for one in found)
    return {
        "points": len(points),
        "errors": errors,
        "warnings": len(found) - errors,
        "findings": [asdict(one.finding) | {"points": [list(points[i]) for i in one.points]} for one in found],
    }


def _check(options: argparse.Namespace) -> int:
    points = compose.expand(options.overrides)
    found = judge(points)
    errors = sum(one.finding.severity == "error" for one in found)
    if options.json:
        print(json.dumps(as_json(found, points), default=str))
    else:
        for one in found:
            print(text(one, len(points)))
        counts = ((len(points), "point"), (errors, "error"), (len(found) - errors, "warning"))
        asked, *rest = [show.count(number, noun) for number, noun in counts]
        print(f"{asked}: {', '.join(rest)}")
    refused = _real(points) if options.real and not errors and not options.json else 0
    return 2 if errors or refused else 0


def text(one: Shared, points: int) -> str:
    """Return one finding in two lines: what and why; remedy and source."""
    finding = one.finding
    some = f" ({len(one.points)} of {points} points)" if len(one.points) < points else ""
    words = chinese.error(finding.key, f"{finding.value}{some}", finding.reason, finding.remedy, "\n    ")
    return f"{finding.severity} {finding.rule}: {words} [{finding.source}]"


def _real(points: Sequence[Sequence[str]]) -> int:
    """Ask the real code of each point's release, rank by rank; return how many points it refuses."""
    refused = 0
    releases: dict[str, list[tuple[Sequence[str], Config]]] = {}
    for point, config in zip(points, compose.configs(points), strict=True):
        if not engine_of(config).traits.npus:
            raise ConfigError("engine", config.engine.name, "it has no vllm-ascend", "Set engine=vllm_ascend.")
        releases.setdefault(config.engine.release, []).append((point, config))
    asked = (
        (point, config, answers)
        for release, of_it in releases.items()  # it is imported once for all of them
        for (point, config), answers in zip(of_it, ask.ask_points(release, [one for _, one in of_it]), strict=True)
    )
    for point, config, answers in asked:
        print(f"{' '.join(point) or '(the defaults)'}: vllm-ascend {config.engine.release}")
        for rank, answer in enumerate(answers):
            said = "accepts it" if answer.refused is None else f"refuses it: {answer.refused}"
            print(f"    rank {rank}: the real code {said}")
        refused += any(answer.refused is not None for answer in answers)
    return refused


REAL: Argument = (
    "--real",
    {"action": "store_true", "help": "also ask the release's own code, on this machine and without an NPU: minutes"},
)
COMMANDS = (Command("check", _check, "list everything that is wrong or risky with these points", (OVERRIDES, REAL)),)
