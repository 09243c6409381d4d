"""What can be set."""

from __future__ import annotations

import argparse
import json

from jobs.cli import Command
from jobs.core import schema


def _keys(options: argparse.Namespace) -> int:
    rows = [{"key": key, "scope": scope, "help": schema.help_of(key)} for key, scope in schema.schema().items()]
    if options.json:
        print(json.dumps(rows))
    else:
        width = max(len(row["key"]) for row in rows)
        print("\n".join(f"{row['key']:<{width}}  {row['scope']:<7}  {row['help']}" for row in rows))
    return 0


COMMANDS = (Command("keys", _keys, "list every config key with its scope and meaning"),)
