"""Why something failed, from any log."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from jobs.cli import Command
from jobs.core import masking
from jobs.diagnose import as_case, diagnose_each, read_each


def _diagnose(options: argparse.Namespace) -> int:
    if options.as_case:
        cases = [as_case(logs, sizes) for _, logs, sizes in read_each(options.logs)]
        print(masking.visible(yaml.safe_dump(cases, allow_unicode=True, sort_keys=False, width=1000)), end="")
        return 0
    found = diagnose_each(options.logs)
    if options.json:
        print(json.dumps([{"name": name} | one.as_json() for name, one in found]))
    else:
        print("\n\n".join(f"{name}\n{one.text()}" for name, one in found))
    return 0


LOGS = ("logs", {"nargs": "+", "type": Path, "metavar": "DIR_OR_LOG", "help": "run directories, or any logs"})

AS_CASE = (
    "--as-case",
    {"action": "store_true", "help": "print the least of it that fails alike, redacted, to report it"},
)

COMMANDS = (Command("diagnose", _diagnose, "find the first failing rank, its cause and the remedy", (LOGS, AS_CASE)),)
