"""`python -m jobs COMMAND`: everything beside launch.py. Every command takes --json."""

from __future__ import annotations

import argparse
import json
import sys

from jobs.cli import (
    batch,
    check,
    errors,
    explain,
    image,
    keys,
    launch,
    logs,
    model,
    plan,
    preflight,
    results,
    runs,
    serve,
)
from jobs.cli.output import until_closed
from jobs.core.errors import UserError

MODULES = (plan, keys, check, explain, preflight, runs, results, logs, model, image, serve, batch)
COMMANDS = tuple(command for module in MODULES for command in module.COMMANDS)

GROUPS = {"model": model.HELP}
"""Commands of two words: the first word and what is said of it."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0 good, 1 a run failed, 2 the question cannot be asked."""
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    # argparse takes no more overrides once an option has followed them: `plan a=1 --json b=2`.
    if any(word.startswith("-") for word in more) or (more and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        options.overrides += more
    try:
        code: int = options.command(options)
    except UserError as error:
        if options.json:
            print(
                json.dumps(
                    {"error": dict(zip(("key", "value", "reason", "remedy"), error.args, strict=True))}, default=str
                )
            )
            return error.exit_code
        return errors.show(error)
    except KeyboardInterrupt:
        return errors.INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    groups = {"": commands}
    for command in COMMANDS:
        # "model fetch" is the command `fetch` of the group `model`.
        group, _, name = command.name.rpartition(" ")
        if group not in groups:
            parent = commands.add_parser(group, help=GROUPS[group], description=GROUPS[group])
            groups[group] = parent.add_subparsers(required=True, metavar="COMMAND")
        sub = groups[group].add_parser(name, help=command.help, description=command.help)
        sub.add_argument("--json", action="store_true", help="print one JSON value")
        for flag, options in command.arguments:
            sub.add_argument(flag, **options)
        sub.set_defaults(command=command.run)
    return parser


def program() -> None:
    """The console script `serving-sweep`: a command where the first argument names one, else launch.py."""
    ours = {command.name.split()[0] for command in COMMANDS}.intersection(sys.argv[1:2])
    sys.exit(until_closed(main if ours else launch.main))


if __name__ == "__main__":
    sys.exit(until_closed(main))
