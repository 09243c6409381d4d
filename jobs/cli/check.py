"""Before anything is submitted: what is wrong or risky, and what another release changes."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from jobs.cli import OVERRIDES, Argument, Command
from jobs.cli.output import tell
from jobs.core import chinese
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines.ascend.real import ask
from jobs.engines.base import Finding, engine_of
from jobs.sweep import check, compose, road, show, space
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
        return (*check.findings(config, memory=True), *check.unused_image(config, overrides))

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
    if not any(one.finding.severity == "error" for one in found):
        found = (*_together(options.overrides, points), *found)
    if not options.json:
        found = check.alike_as_one(found)
    errors = sum(one.finding.severity == "error" for one in found)
    real = list(_real(points)) if options.real and options.json and not errors else None
    if options.json:
        print(json.dumps(as_json(found, points) | ({"real": real} if options.real else {}), default=str))
    else:
        for one in found:
            print(text(one, points))
        wrong = f"{show.count(errors, 'error')}, {show.count(len(found) - errors, 'warning')}"
        tell(f"{show.count(len(points), 'point')}: {wrong}")
    if options.real and not errors and not options.json:
        real = []
        for point in _real(points):
            real.append(point)
            tell(f"{' '.join(point['overrides']) or '(the defaults)'}: vllm-ascend {point['release']}")
            for rank, refused in enumerate(point["ranks"]):
                said = "accepts it" if refused is None else f"refuses it: {refused}"
                tell(f"    rank {rank}: the real code {said}")
    refused = any(rank is not None for point in real or () for rank in point["ranks"])
    return 2 if errors or refused else 0


def _together(overrides: Sequence[str], points: Sequence[Sequence[str]]) -> tuple[Shared, ...]:
    """Return why a plan, or a search, refuses points each of which could be asked: an objective, a budget, a space."""
    try:
        if any(text.lstrip("+").startswith("tune.space") for text in overrides):
            space.ask(overrides)
        else:
            road.plan(points)
    except ConfigError as error:
        return (Shared(Finding.of(error), tuple(range(len(points)))),)
    return ()


def text(one: Shared, points: Sequence[Sequence[str]]) -> str:
    """Return one finding in two lines: what and why; remedy and source."""
    finding, some = one.finding, show.of_points(one, points)
    words = chinese.error(finding.key, f"{finding.value}{some}", finding.reason, finding.remedy, "\n    ")
    return f"{chinese.printed(finding.severity)} {finding.rule}: {words} [{finding.source}]"


def _real(points: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Ask the real code of each point's release; yield by point why it refuses each rank (None: it accepts it)."""
    releases: dict[str, list[tuple[Sequence[str], Config]]] = {}
    for point, config in zip(points, compose.configs(points), strict=True):
        if not engine_of(config).traits.npus:
            raise ConfigError("engine", config.engine.name, "it has no vllm-ascend", "Set engine=vllm_ascend.")
        releases.setdefault(config.engine.release, []).append((point, config))
    for release, of_it in releases.items():  # it is imported once for all of them
        for (point, _), answers in zip(of_it, ask.ask_points(release, [one for _, one in of_it]), strict=True):
            yield {"overrides": list(point), "release": release, "ranks": [one.refused for one in answers]}


REAL: Argument = (
    "--real",
    {"action": "store_true", "help": "also ask the release's own code, on this machine and without an NPU: minutes"},
)
COMMANDS = (Command("check", _check, "list everything that is wrong or risky with these points", (OVERRIDES, REAL)),)
