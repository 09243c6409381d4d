"""Before anything is submitted: what would be done, what each service needs, what can be set."""

from __future__ import annotations

import argparse
import json

from jobs import compose, schema, show, sweep
from jobs.ascend.memory import predict_config
from jobs.plan import as_json
from jobs.service import checks
from jobs.verbs import OVERRIDES, Verb


def _plan(options: argparse.Namespace) -> int:
    compose.check(options.overrides)
    made = sweep.plan(compose.expand(options.overrides))
    if options.json:
        print(json.dumps(as_json(made), ensure_ascii=False))
        return 0
    out = show.console()
    out.print(show.plan_text(made))
    if warnings := show.warnings_text(checks.shared(point.config for point in made.points)):
        out.print(warnings, markup=False)
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


VERBS = (
    Verb("plan", _plan, "show points, services, allocations and exact commands", (OVERRIDES,)),
    Verb("memory", _memory, "predict weights and KV cache of every service, line by line", (OVERRIDES,)),
    Verb("keys", _keys, "list every config key with its scope and meaning"),
)
