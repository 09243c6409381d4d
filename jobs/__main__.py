"""`python -m jobs VERB`: everything beside launch.py. Every verb takes --json."""

from __future__ import annotations

import argparse
import json
import sys

from jobs.cli import ask, batch, check, explain, image, logs, model, preflight, results, runs, serve
from jobs.core.errors import UserError
from jobs.core.output import until_closed
from jobs.sweep import launch

MODULES = (ask, check, explain, preflight, runs, results, logs, model, image, serve, batch)
VERBS = tuple(verb for module in MODULES for verb in module.VERBS)

GROUPS = {"model": model.HELP}
"""Verbs of two words: the first word and what is said of it."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Returns its exit code: 0 good, 1 a run failed, 2 the question cannot be asked."""
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    # argparse takes no more overrides once an option has followed them: `plan a=1 --json b=2`.
    if any(word.startswith("-") for word in more) or (more and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        options.overrides += more
    try:
        code: int = options.verb(options)
    except UserError as error:
        if options.json:
            print(
                json.dumps(
                    {"error": dict(zip(("key", "value", "reason", "remedy"), error.args, strict=True))}, default=str
                )
            )
            return error.exit_code
        launch.fail(error)
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    groups = {"": verbs}
    for verb in VERBS:
        # "model fetch" is the verb `fetch` of the group `model`.
        group, _, name = verb.name.rpartition(" ")
        if group not in groups:
            parent = verbs.add_parser(group, help=GROUPS[group], description=GROUPS[group])
            groups[group] = parent.add_subparsers(required=True, metavar="VERB")
        sub = groups[group].add_parser(name, help=verb.help, description=verb.help)
        sub.add_argument("--json", action="store_true", help="print one JSON value")
        for flag, options in verb.arguments:
            sub.add_argument(flag, **options)
        sub.set_defaults(verb=verb.run)
    return parser


def program() -> None:
    """The console script `serving-sweep`: a command where the first argument names one, else launch.py."""
    ours = {verb.name.split()[0] for verb in VERBS}.intersection(sys.argv[1:2])
    sys.exit(until_closed(main if ours else launch.main))


if __name__ == "__main__":
    sys.exit(until_closed(main))
