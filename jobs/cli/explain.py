"""What another release changes against the settings as written; and where a setting of a run came from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.cli import OVERRIDES, Command
from jobs.cli.output import tell
from jobs.core.errors import ConfigError
from jobs.core.rundir import SweepDir
from jobs.engines.ascend import release
from jobs.engines.ascend.migration import defaults, migrate
from jobs.engines.base import engine_of
from jobs.engines.vllm.findings import question
from jobs.sweep import compose, explain


def explain_overrides(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each point the releases, the changes that its engine.release makes, and the defaults that differ.

    Raises:
        ConfigError: the overrides cannot be composed, or nobody knows what a release changes.
    """
    points = compose.expand(overrides)
    found = []
    for point, one in zip(points, compose.written(points), strict=True):
        if engine_of(one.config).traits.released:
            release(one.config.engine.release)
        made, changes = migrate(one.config, one.explicit)
        asked = question(made)
        set_here = {**asked.settings, **asked.env, **asked.additional}
        told = [name for name, value in set_here.items() if value is not None]
        found.append({
            "overrides": list(point),
            "written_for": one.config.engine.written_for,
            "release": one.config.engine.release,
            "changes": [asdict(change) for change in changes],
            "defaults": [asdict(change) for change in defaults(one.config, told)],
        })  # fmt: skip
    return found


def text(point: dict[str, Any]) -> str:
    """Return one point's changes as a list for people."""
    written, asked = point["written_for"], point["release"]
    lines = [" ".join(point["overrides"]) or "(no overrides)"]
    if not point["changes"]:
        own = f"everything is as written for {written}" if written else "everything is as written"
        lines.append(f"  release {asked}: {own}")
    else:
        lines.append(f"  release {asked}, written for {written}: {len(point['changes'])} changes")
    for change in [*point["changes"], *point["defaults"]]:
        lines.append(f"  {change['key']}: {_value(change['before'])} -> {_value(change['after'])}")
        lines.append(f"      {change['reason']} [{change['source']}]")
    return "\n".join(lines)


def _value(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value)


def _explain(options: argparse.Namespace) -> int:
    if options.key is not None:
        return _explain_run(options)
    if runs := [one for one in options.overrides if "=" not in one and SweepDir(Path(one)).plan.exists()]:
        reason, remedy = "of a run one key is explained", f"Write: python -m jobs explain {runs[0]} --key KEY."
        raise ConfigError("RUN", runs[0], reason, remedy)
    found = explain_overrides(options.overrides)
    print(json.dumps(found)) if options.json else tell("\n\n".join(text(point) for point in found))
    return 0


def _explain_run(options: argparse.Namespace) -> int:
    if len(options.overrides) != 1:
        reason = "a key is explained in one run"
        raise ConfigError("--key", options.key, reason, "Write: python -m jobs explain RUN --key KEY.")
    found = explain.explain(Path(options.overrides[0]), options.key)
    print(json.dumps(asdict(found), ensure_ascii=False)) if options.json else tell(explain.text(found))
    return 0


WHAT = (OVERRIDES[0], {**OVERRIDES[1], "help": "as launch.py -m takes them; with --key: the directory of a sweep"})
KEY = ("--key", {"metavar": "KEY", "help": "of a run: what set this config key, variable or flag, and what ranks had"})

COMMANDS = (
    Command(
        "explain",
        _explain,
        "say what engine.release changes; with --key: where a setting of a run came from",
        (WHAT, KEY),
    ),
)
