"""Before anything is submitted: what is wrong or risky, and what another release changes."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from jobs import compose
from jobs.ascend.rules import Finding
from jobs.config import Config
from jobs.errors import ConfigError
from jobs.service import checks
from jobs.service.checks import Shared
from jobs.verbs import OVERRIDES, Verb


def judge(points: Sequence[Sequence[str]], composer: compose.Composer = compose.default_composer) -> list[Shared]:
    """Return the findings of all points, errors first; a point that cannot be composed is a finding too."""

    @functools.cache
    def once(groups: tuple[str, ...]) -> DictConfig:
        return composer(list(groups))

    configs: dict[int, Config] = {}
    broken: dict[str, tuple[Finding, list[int]]] = {}
    for index, words in enumerate(points):
        try:
            [configs[index]] = compose.configs([words], lambda groups: once(tuple(groups)))
        except ConfigError as error:
            finding = checks.from_error(error)
            broken.setdefault(repr(finding), (finding, []))[1].append(index)
    places = list(configs)
    found = [Shared(finding, tuple(at)) for finding, at in broken.values()]
    for one in checks.shared(configs.values(), memory=True):
        found.append(Shared(one.finding, tuple(places[index] for index in one.points)))
    return sorted(found, key=lambda one: one.finding.severity != "error")


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
    compose.check(options.overrides)
    points = [compose.ours(words) for words in compose.expand(options.overrides)]
    found = judge(points)
    errors = sum(one.finding.severity == "error" for one in found)
    if options.json:
        print(json.dumps(as_json(found, points), default=str))
    else:
        for one in found:
            print(text(one, len(points)))
        print(f"{count(len(points), 'point')}: {count(errors, 'error')}, {count(len(found) - errors, 'warning')}")
    return 2 if errors else 0


def count(number: int, noun: str) -> str:
    """Return `1 point`, `2 points`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def text(one: Shared, points: int) -> str:
    """Return one finding in two lines: what and why; remedy and source."""
    finding = one.finding
    some = f" ({len(one.points)} of {points} points)" if len(one.points) < points else ""
    return (
        f"{finding.severity} {finding.rule}: {finding.key} = {finding.value}{some}: {finding.reason.rstrip('.')}.\n"
        f"    {finding.remedy} [{finding.source}]"
    )


VERBS = (Verb("check", _check, "list everything that is wrong or risky with these points", (OVERRIDES,)),)
