"""What another release changes against the settings as written, item by item."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jobs import compose
from jobs.ascend.migration import defaults, migrate
from jobs.service import checks
from jobs.verbs import OVERRIDES, Verb


def explain_overrides(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each point the releases, the changes that its engine.release makes, and the defaults that differ.

    Raises:
        ConfigError: the overrides cannot be composed.
    """
    compose.check(overrides)
    points = [compose.ours(words) for words in compose.expand(overrides)]
    found = []
    for words, one in zip(points, compose.written(points), strict=True):
        made, changes = migrate(one.config, one.explicit)
        asked = checks.question(made)
        told = [name for name, value in {**asked.settings, **asked.env}.items() if value is not None]
        found.append(
            {
                "overrides": list(words),
                "written_for": one.config.engine.written_for,
                "release": one.config.engine.release,
                "changes": [asdict(change) for change in changes],
                "defaults": [asdict(change) for change in defaults(one.config, told)],
            }
        )
    return found


def text(point: dict[str, Any]) -> str:
    """Return one point's changes as a list for people."""
    written, release = point["written_for"], point["release"]
    lines = [" ".join(point["overrides"]) or "(no overrides)"]
    if not point["changes"]:
        lines.append(f"  release {release}: everything is as written" + (f" for {written}" if written else ""))
    else:
        lines.append(f"  release {release}, written for {written}: {len(point['changes'])} changes")
    for change in [*point["changes"], *point["defaults"]]:
        lines.append(f"  {change['key']}: {_value(change['before'])} -> {_value(change['after'])}")
        lines.append(f"      {change['reason']} [{change['source']}]")
    return "\n".join(lines)


def _value(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value)


def _explain(options: argparse.Namespace) -> int:
    found = explain_overrides(options.overrides)
    print(json.dumps(found) if options.json else "\n\n".join(text(point) for point in found))
    return 0


VERBS = (Verb("explain", _explain, "say what engine.release changes against the settings as written", (OVERRIDES,)),)
