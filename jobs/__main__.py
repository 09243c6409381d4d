"""`python -m jobs VERB`: plan, memory, keys, status, follow, table, resume, diagnose, cancel. All take --json."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jobs import compose, jobstate, show, sweep
from jobs import config as schema
from jobs.ascend.memory import predict_config
from jobs.diagnose import diagnose_each
from jobs.errors import UserError
from jobs.follow import follow
from jobs.plan import as_json
from jobs.results.table import read_table, write_table
from jobs.rundir import SweepDir, read_json


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

    def verb(name: str, run: Any, text: str, *arguments: tuple[str, dict[str, Any]]) -> None:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print one JSON value")
        for flag, options in arguments:
            sub.add_argument(flag, **options)
        sub.set_defaults(verb=run)

    overrides = ("overrides", {"nargs": "*", "metavar": "OVERRIDE", "help": "as launch.py -m takes them"})
    run = ("run", {"type": Path, "metavar": "RUN", "help": "directory of a sweep"})
    verb("plan", _plan, "show points, services, allocations and exact commands", overrides)
    verb("memory", _memory, "predict weights and KV cache of every service, line by line", overrides)
    verb("keys", _keys, "list every config key with its scope and meaning")
    verb("status", _status, "show the state of every allocation and point", run)
    verb("follow", _follow, "show progress until the table is there, then print it", run)
    verb("table", _table, "make the table again from the files and print it", run)
    retry = ("--retry-failed", {"action": "store_true", "help": "run failed points again as well"})
    verb("resume", _resume, "submit what is left of a sweep; finished valid points are never run again", run, retry)
    logs = ("logs", {"nargs": "+", "type": Path, "metavar": "DIR_OR_LOG", "help": "run directories, or any logs"})
    verb("diagnose", _diagnose, "find the first failing rank, its cause and the remedy", logs)
    verb("cancel", _cancel, "cancel this sweep's own jobs and nothing else", run)
    return parser


def _plan(options: argparse.Namespace) -> int:
    compose.check(options.overrides)
    made = sweep.plan(compose.expand(options.overrides))
    if options.json:
        print(json.dumps(as_json(made), ensure_ascii=False))
        return 0
    out = show.console()
    out.print(show.plan_text(made))
    out.print("\n" + show.commands_text(made), markup=False)
    return 0


def _memory(options: argparse.Namespace) -> int:
    compose.check(options.overrides)
    services = sweep.plan(compose.expand(options.overrides)).services
    found = [predict_config(service.config) for service in services]
    if options.json:
        values = [one.as_json() for one in found]
        print(json.dumps(values[0] if len(values) == 1 else values))
        return 0
    for service, one in zip(services, found, strict=True):
        print(f"service {service.service}")
        print("\n".join(f"  {term.gib:9.3f} GiB  {term.name}  ({term.source})" for term in one.terms))
        print(f"  {one.kv_bytes / 2**30:9.3f} GiB  for the KV cache, {one.kv_bytes_per_token:,} bytes a token")
        print(f"  {one.kv_tokens_per_rank:,} tokens in each data-parallel rank")
        print(f"  largest max_model_len that starts: {one.largest_max_model_len:,}")
    return 0


def _keys(options: argparse.Namespace) -> int:
    rows = [{"key": key, "scope": scope, "help": schema.help_of(key)} for key, scope in schema.schema().items()]
    if options.json:
        print(json.dumps(rows))
    else:
        width = max(len(row["key"]) for row in rows)
        print("\n".join(f"{row['key']:<{width}}  {row['scope']:<7}  {row['help']}" for row in rows))
    return 0


def _sweep(options: argparse.Namespace) -> SweepDir:
    return sweep.open_sweep(options.run)


def _resume(options: argparse.Namespace) -> int:
    found = _sweep(options)
    sweep.finish(found, show.console(stderr=options.json), retry_failed=options.retry_failed)
    return _follow(options)


def _diagnose(options: argparse.Namespace) -> int:
    found = diagnose_each(options.logs)
    if options.json:
        print(json.dumps([{"name": name} | one.as_json() for name, one in found]))
    else:
        print("\n\n".join(f"{name}\n{one.text()}" for name, one in found))
    return 0


def _status(options: argparse.Namespace) -> int:
    found = _sweep(options)
    allocations = [
        {
            "allocation": int(folder.path.parent.name),
            "attempt": int(folder.path.name),
            "job_id": read_json(folder.job)["job_id"] if folder.job.exists() else None,
            "state": jobstate.job_state(folder),
        }
        for folder in found.allocations()
    ]
    table = read_table(found)
    points = json.loads(table[["point", "service", "valid", "invalid_reason"]].to_json(orient="records"))
    if options.json:
        print(json.dumps({"allocations": allocations, "points": points}))
        return 0
    for item in allocations:
        print(f"allocation {item['allocation']} attempt {item['attempt']}: job {item['job_id']} {item['state']}")
    for item in points:
        print(f"point {item['point']} (service {item['service']}): {item['invalid_reason'] or 'valid'}")
    return 0


def _follow(options: argparse.Namespace) -> int:
    found = _sweep(options)
    valid = follow(found, show.console(stderr=options.json), bar=False if options.json else None)
    return _print(found, options, valid)


def _table(options: argparse.Namespace) -> int:
    found = _sweep(options)
    return _print(found, options, bool(write_table(found)["valid"].all()))


def _print(found: SweepDir, options: argparse.Namespace, valid: bool) -> int:
    if options.json:
        print(read_table(found).to_json(orient="records"))
    else:
        sweep.print_table(found, show.console())
    return 0 if valid else 1


def _cancel(options: argparse.Namespace) -> int:
    cancelled = [read_json(f.job)["job_id"] for f in _sweep(options).allocations() if jobstate.cancel(f)]
    print(
        json.dumps({"cancelled": cancelled})
        if options.json
        else f"cancelled: {', '.join(cancelled) or 'nothing to cancel'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
