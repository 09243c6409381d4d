"""Why something failed, from any log."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from jobs.cli import Command
from jobs.diagnose import diagnose_each


def _diagnose(options: argparse.Namespace) -> int:
    found = diagnose_each(options.logs)
    if options.json:
        print(json.dumps([{"name": name} | one.as_json() for name, one in found]))
    else:
        print("\n\n".join(f"{name}\n{one.text()}" for name, one in found))
    return 0


LOGS = ("logs", {"nargs": "+", "type": Path, "metavar": "DIR_OR_LOG", "help": "run directories, or any logs"})

COMMANDS = (Command("diagnose", _diagnose, "find the first failing rank, its cause and the remedy", (LOGS,)),)
