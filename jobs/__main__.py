"""`python -m jobs VERB`: everything beside launch.py. Every verb takes --json."""

from __future__ import annotations

import argparse
import json
import sys

from jobs import sweep
from jobs.errors import UserError
from jobs.verbs import ask, check, explain, logs, runs

VERBS = (*ask.VERBS, *check.VERBS, *explain.VERBS, *runs.VERBS, *logs.VERBS)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Returns its exit code: 0 good, 1 a run failed, 2 the question cannot be asked."""
    options = _parser().parse_args(arguments)
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
        sweep.fail(error)
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        sub = verbs.add_parser(verb.name, help=verb.help, description=verb.help)
        sub.add_argument("--json", action="store_true", help="print one JSON value")
        for flag, options in verb.arguments:
            sub.add_argument(flag, **options)
        sub.set_defaults(verb=verb.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
