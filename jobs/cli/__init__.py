"""The commands of `python -m jobs`: one file a subject, each with its list `COMMANDS`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Argument = tuple[str, Mapping[str, Any]]
"""Name or flag of an argument, and what argparse shall know of it."""

OVERRIDES: Argument = ("overrides", {"nargs": "*", "metavar": "OVERRIDE", "help": "as launch.py -m takes them"})
RUN: Argument = ("run", {"type": Path, "metavar": "RUN", "help": "directory of a sweep"})

JSON = "print one JSON value"
MODEL = "fetch, verify and stage the checkpoint"
"""What the commands `model ...` are for."""

NOT_WRITTEN = "report: not written, since you may only read this sweep"


@dataclass(frozen=True)
class Command:
    """One word after `python -m jobs`, or two (a group and its command).

    `run` gets the parsed options (`json` among them) and returns the exit code.
    """

    name: str
    run: Callable[[argparse.Namespace], int]
    help: str
    arguments: tuple[Argument, ...] = ()
