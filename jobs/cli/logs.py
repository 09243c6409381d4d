"""Why something failed, from any log."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from jobs.cli import Command
from jobs.core import chinese, hidden
from jobs.core.errors import RunError
from jobs.core.foreign import SMALL, load_visible
from jobs.core.planfile import read_plan
from jobs.core.rundir import SweepDir
from jobs.diagnose import as_case, diagnose_each, read_each


def _diagnose(options: argparse.Namespace) -> int:
    if options.as_case:
        cases = [as_case(logs, sizes) for _, logs, sizes in read_each(options.logs)]
        print(hidden.visible(yaml.safe_dump(cases, allow_unicode=True, sort_keys=False, width=1000)), end="")
        return 0
    found = diagnose_each(options.logs)
    rows, settings = list(_invalid(options.logs)), _settings(options.logs)
    if options.json:
        told = [
            {"name": name, "setting": settings.get(name, "")} | one.as_json() | {"rows": dict(_of(rows, name))}
            for name, one in found
        ]
        print(json.dumps(told))
    else:
        heads = {name: f"{name}  {settings.get(name, '')}".rstrip() for name, _ in found}
        for_people = chinese.diagnosis if chinese.is_asked() else str
        texts = (for_people("\n".join([one.text(), *_words(_of(rows, name))])) for name, one in found)
        print(
            "\n\n".join(f"{chinese.printed(heads[name])}\n{text}" for (name, _), text in zip(found, texts, strict=True))
        )
    return 0


def _settings(paths: Iterable[Path]) -> dict[str, str]:
    """Return what the services of sweeps are, by the names that a diagnosis has for them."""
    found: dict[str, str] = {}
    for sweep in map(SweepDir, paths):
        with contextlib.suppress(RunError):  # a log, or a plan that cannot be read
            plan = read_plan(sweep)
            found |= {f"service {one.service}": plan.setting(one.service) for one in plan.services}
    return found


def _invalid(paths: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """Yield service, point and reason of the rows of sweeps that are not valid: no log may tell why."""
    for sweep in map(SweepDir, paths):
        for name in sorted(sweep.point_names()):
            with contextlib.suppress(RunError):  # no row is there, or another user's is none
                row = load_visible(sweep.point(name).row, SMALL)
                if isinstance(row, dict) and row.get("valid") is False:
                    yield str(row.get("service")), name, str(row.get("invalid_reason"))


def _of(rows: Iterable[tuple[str, str, str]], name: str) -> list[tuple[str, str]]:
    return [(point, reason) for service, point, reason in rows if name == f"service {service}"]


def _words(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    points: dict[str, list[str]] = {}
    for point, reason in rows:
        points.setdefault(reason, []).append(point)
    for reason, alike in points.items():
        yield f"  not valid: {', '.join(alike)}: {reason}"


LOGS = ("logs", {"nargs": "+", "type": Path, "metavar": "DIR_OR_LOG", "help": "run directories, or any logs"})

AS_CASE = (
    "--as-case",
    {"action": "store_true", "help": "print the least of it that fails alike, redacted, to report it"},
)

COMMANDS = (Command("diagnose", _diagnose, "find the first failing rank, its cause and the remedy", (LOGS, AS_CASE)),)
