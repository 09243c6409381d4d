"""What can be set, and what a sweep writes: the tables of docs/keys.md and docs/files.md are printed here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from jobs.cli import Command
from jobs.core import chinese, rundir, schema
from jobs.core.errors import ConfigError, nearest
from jobs.core.filetable import files_of

KEYS_PAGE = """# Every config key

Printed by `python -m jobs keys --markdown`. The default is that of the schema, before a file of `conf/` is read. Scope:

- `sweep`: does not alter what is asked; all points of a sweep have the same.
- `service`: a change needs a new start of the engine.
- `point`: a change needs only another measuring window on the same service.
"""

FILES_PAGE = """# Every file of a sweep

Printed by `python -m jobs files --markdown`.
"""


def _keys(options: argparse.Namespace) -> int:
    rows = [
        _key(key, scope) for key, scope in schema.schema().items() if not options.words or _is_of(key, options.words)
    ]
    if not rows:
        remedy = nearest(options.words[0], schema.schema(), ["a part of a key, for example hccl, or none for all"])
        raise ConfigError("WORD", " ".join(options.words), "no key has it in its name", remedy)
    if options.json:
        print(json.dumps(rows))
    elif options.markdown:
        parts = [KEYS_PAGE]
        for section in dict.fromkeys(row["key"].partition(".")[0] for row in rows):
            own = [row for row in rows if row["key"].partition(".")[0] == section]
            cells = [
                (row["key"], row["type"], f"`{json.dumps(row['default'])}`", row["scope"], row["help"]) for row in own
            ]
            parts.append(f"## {section}\n\n{_table(('key', 'type', 'default', 'scope', 'meaning'), cells)}")
        print("\n".join(parts), end="")
    else:
        width = max(len(row["key"]) for row in rows)
        print("\n".join(f"{row['key']:<{width}}  {row['scope']:<7}  {chinese.localized(row['help'])}" for row in rows))
    return 0


def _is_of(key: str, words: Iterable[str]) -> bool:
    return any(word in key for word in words)


def _key(key: str, scope: str) -> dict[str, Any]:
    default, kind = schema.default_of(key), schema.type_of(key)
    return {"key": key, "scope": scope, "type": kind, "default": default, "help": schema.help_of(key)}


def _files(options: argparse.Namespace) -> int:
    folders = rundir.FOLDERS.items()
    rows = [(f"{where}{file.name}", file.holds) for where, folder in folders for file in files_of(folder)]
    if options.json:
        print(json.dumps([{"file": name, "holds": holds} for name, holds in rows]))
    elif options.markdown:
        print(
            f"{FILES_PAGE}\n{_table(('file', 'what it holds'), [(f'`{name}`', holds) for name, holds in rows])}", end=""
        )
    else:
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:<{width}}  {chinese.localized(holds)}" for name, holds in rows))
    return 0


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells)


WORDS = ("words", {"nargs": "*", "metavar": "WORD", "help": "only keys with one of these in their names"})
MARKDOWN = ("--markdown", {"action": "store_true", "help": "print the page of docs/"})

COMMANDS = (
    Command("keys", _keys, "list every config key with its scope and meaning", (WORDS, MARKDOWN)),
    Command("files", _files, "list every file that a sweep writes, and what it holds", (MARKDOWN,)),
)
