"""`python -m jobs COMMAND`: everything beside launch.py. Every command takes --json."""

from __future__ import annotations

import sys

try:
    import argparse
    import json
    from importlib import import_module

    from jobs.cli import JSON, MODEL, Command, output
    from jobs.core import chinese
    from jobs.core.errors import UserError
except KeyboardInterrupt:  # while it was still being loaded
    sys.exit(130)

SUBJECTS = {
    "plan": ("plan", "memory"),
    "keys": ("keys", "files"),
    "check": ("check",),
    "explain": ("explain",),
    "forecast": ("forecast",),
    "preflight": ("preflight",),
    "runs": ("status", "follow", "table", "resume", "cancel"),
    "results": ("collect", "report", "compare", "export"),
    "logs": ("diagnose",),
    "model": ("model",),
    "image": ("image",),
    "serve": ("serve", "reach"),
    "batch": ("prepare", "rest"),
    "tune": ("tune",),
    "decide": ("decide",),
}
"""Files of jobs/cli with the first words of their commands: all of them together take a second to be loaded."""


def commands(word: str = "") -> tuple[Command, ...]:
    """Return what can follow `python -m jobs`; where a command begins with `word`, those of its subject alone."""
    subjects = [subject for subject, words in SUBJECTS.items() if word in words] or SUBJECTS
    modules = [import_module(f"jobs.cli.{subject}") for subject in subjects]
    return tuple(command for module in modules for command in module.COMMANDS)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0 good, 1 a run failed, 2 the question cannot be asked."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        from jobs.results import provenance

        print(provenance.version())
        return 0
    parser = _parser(*arguments[:1])
    options, more = parser.parse_known_args(arguments)
    if "overrides" in options:
        more = [word for word in more if word not in ("-m", "--multirun")]  # as launch.py takes them
    # argparse takes no more overrides once an option has followed them: `plan a=1 --json b=2`.
    if any(word.startswith("-") for word in more) or (more and "overrides" not in options):
        unknown = chinese.localized("unrecognized arguments: %s") % " ".join(more)
        parser.error(f"{unknown} (python -m jobs {arguments[0]} --help)")
    if more:
        options.overrides += more
    try:
        code: int = options.command(options)
    except UserError as error:
        if options.json:
            said = dict(zip(("key", "value", "reason", "remedy"), error.args, strict=True))
            print(json.dumps({"error": said}, default=str))
            return error.exit_code
        return output.show(error)
    except KeyboardInterrupt:
        return output.INTERRUPTED
    return code


def _parser(word: str = "") -> argparse.ArgumentParser:
    if chinese.is_asked():
        argparse._ = chinese.localized  # type: ignore[attr-defined]  # argparse's own words
    parser = argparse.ArgumentParser(prog="python -m jobs", description=chinese.localized(__doc__ or ""))
    first = parser.add_subparsers(required=True, metavar="COMMAND")
    groups = {"": first}
    for command in commands(word):
        # "model fetch" is the command `fetch` of the group `model`.
        group, _, name = command.name.rpartition(" ")
        if group not in groups:
            parent = first.add_parser(group, help=chinese.localized(MODEL), description=chinese.localized(MODEL))
            groups[group] = parent.add_subparsers(required=True, metavar="COMMAND")
        words = chinese.localized(command.help)
        sub = groups[group].add_parser(name, help=words, description=words)
        sub.add_argument("--json", action="store_true", help=chinese.localized(JSON))
        for flag, options in command.arguments:
            sub.add_argument(flag, **{**options, "help": chinese.localized(options.get("help", ""))})
        sub.set_defaults(command=command.run)
    return parser


def program() -> None:
    """The console script `serving-sweep`: a command where the first argument names one, else launch.py."""

    def run() -> int | None:
        if any(word in words for word in sys.argv[1:2] for words in SUBJECTS.values()):
            return main()
        from jobs.cli import launch

        return launch.main()

    sys.exit(output.until_closed(run))


if __name__ == "__main__":
    sys.exit(output.until_closed(main))
