"""Where a setting of a run came from, how it reached each rank, and what the process really had."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.core import names, schema
from jobs.core.errors import RunError, nearest
from jobs.core.fields import dotted, override_parts, plain
from jobs.core.records import tolerant
from jobs.engines.vllm import command, environment
from jobs.results.gather import Run, read_config_plain, read_run
from jobs.results.sections import attempts
from jobs.sweep import grammar


@dataclass(frozen=True)
class Value:
    """The resolved value of a key in some points of a run, and what set it."""

    value: Any
    source: str
    points: tuple[str, ...]


@dataclass(frozen=True)
class Rank:
    """What one rank of one attempt at a service was given and had. None: there is none, or it is not known.

    `agrees` is None where the process was not read back, or the key shows in neither environment nor arguments.
    """

    service: str
    setting: str
    attempt: int
    rank: int
    way: str
    intended: str | None
    effective: str | None
    agrees: bool | None


@dataclass(frozen=True)
class Explanation:
    """Everything about one key of a run."""

    key: str
    config_key: str | None
    values: tuple[Value, ...]
    ranks: tuple[Rank, ...]


def explain(path: Path, key: str) -> Explanation:
    """Explain one key (`hccl.buffsize`), variable (`HCCL_BUFFSIZE`) or flag (`max-model-len`) of a run.

    Raises:
        RunError: the run cannot be read, or nothing in it has this key.
    """
    run = read_run(path)
    ranks = tuple(_ranks(run, key))
    config_key = _config_key(key, run)
    if config_key is None and not any(rank.intended or rank.effective for rank in ranks):
        known = [*schema.schema(), *environment.OWNED, *command.CONFIGURED]
        remedy = nearest(key, known, ["a config key (python -m jobs keys)", "a variable", "a flag of vllm serve"])
        raise RunError("--key", key, "no config key, variable or flag of this run has this name", remedy)
    values = () if config_key is None else tuple(_values(run, config_key))
    return Explanation(key, config_key, values, ranks)


def _config_key(key: str, run: Run) -> str | None:
    """Return the config key behind a variable, a flag or a key."""
    if key.startswith("--") or key in command.CONFIGURED:
        name = command.flag_name(key)
        given = dotted(run.config, "engine.args")
        mine = [word for word in given if command.flag_name(word) == name] if isinstance(given, Mapping) else []
        return f"engine.args.{mine[0]}" if mine else command.CONFIGURED.get(name)
    if key in environment.OWNED:
        return environment.OWNED[key]
    if schema.leaf_of(key):
        return key
    variables = dotted(run.config, "engine.env")
    return f"engine.env.{key}" if isinstance(variables, Mapping) and key in variables else None


def _values(run: Run, key: str) -> list[Value]:
    """Return each value with the points that have it."""
    found: dict[tuple[str, str], list[str]] = {}
    values: dict[tuple[str, str], Any] = {}
    for point in run.plan.points:
        try:
            config = read_config_plain(run.sweep.point(point.point).config)
        except RunError:
            continue
        value = dotted(config, key)
        source = source_of(key, value, point.overrides)
        name = (json.dumps(value, default=str), source)
        found.setdefault(name, []).append(point.point)
        values[name] = value
    return [Value(values[name], name[1], tuple(points)) for name, points in found.items()]


def source_of(key: str, value: Any, overrides: Sequence[str]) -> str:
    """Return what set a key: the override, the file of conf/ that holds its value, or the default of the schema.

    Files are read as they are now. Where none of them holds the value that the run had, that is said.
    """
    for text in reversed(overrides):
        name, _ = override_parts(text)
        if name not in grammar.groups() and (name == key or key.startswith(name + ".") or name.startswith(key + ".")):
            return f"override {text}"
    holders = list(_files(key, overrides))
    for name, held in reversed(holders):
        if _same(held, value):
            return str(name)
    merged: dict[str, Any] = plain(schema.default_of(key)) if schema.names_in(key) else {}
    for _, held in holders:
        merged |= held if isinstance(held, Mapping) else {}
    if holders and merged and _same(merged, value):
        return " and ".join(name for name, _ in holders)
    leaf = schema.leaf_of(key)
    if not holders and leaf is not None:
        return "default in jobs/core/config.py"
    return "unknown: conf/ has changed since this run" if holders else "unknown"


def _files(key: str, overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Return the files that set a key for these choices of groups, in the order in which they are composed."""
    choices = _choices(overrides)
    found: list[tuple[str, Any]] = []
    for group, option in choices.items():
        try:  # the overrides stand in the plan of any user
            path = schema.CONF / names.file_below(group) / names.file_name(f"{option}.yaml")
        except ValueError:
            continue
        if not path.exists():
            continue
        tree = read_config_plain(path) if path.read_text(encoding="utf-8").strip() else {}
        whole = path.read_text(encoding="utf-8").startswith("# @package _global_")
        inside = key if whole else key.removeprefix(group + ".") if key.startswith(group + ".") else None
        if inside is not None and _holds(tree, inside):
            found.append((f"conf/{group}/{option}.yaml", dotted(tree, inside)))
    return found


def _holds(tree: Mapping[str, Any], key: str) -> bool:
    """Return whether a file sets a key, to null perhaps."""
    parent, _, last = key.rpartition(".")
    node = dotted(tree, parent) if parent else tree
    return isinstance(node, Mapping) and last in node


def _same(held: Any, value: Any) -> bool:
    """Return whether a file's value is what the run had. An interpolation may be; 671e9 is a number to Hydra."""
    if isinstance(held, Mapping) and isinstance(value, Mapping):
        return held.keys() == value.keys() and all(_same(held[name], value[name]) for name in held)
    if isinstance(held, str) and isinstance(value, int | float):
        with contextlib.suppress(ValueError):
            return float(held) == value
    return bool(held == value) or (isinstance(held, str) and "${" in held)


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    """Return the option of every group in composing order: defaults, the experiment's own choices, overrides."""
    chosen: dict[str, str] = {}
    defaults = read_config_plain(schema.CONF / "config.yaml").get("defaults", [])
    given = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    order = [next(iter(item.items())) for item in defaults if isinstance(item, dict)]
    for group, option in order:
        if "/" not in group and " " not in group:
            chosen[group] = str(given.get(group, option))
    option = f"{chosen.get('experiment')}.yaml"
    experiment = schema.CONF / "experiment" / option
    if "/" not in option and experiment.exists():
        for item in read_config_plain(experiment).get("defaults", []):
            for name, option in item.items() if isinstance(item, dict) else ():
                group = name.removeprefix("override /")
                if group in chosen and group not in given:
                    chosen[group] = str(option)
    return chosen


def _ranks(run: Run, key: str) -> list[Rank]:
    config_key = _config_key(key, run)
    variables = {name for name, owner in environment.OWNED.items() if owner == config_key} | {key}
    if config_key and config_key.startswith("engine.env."):
        variables.add(config_key.removeprefix("engine.env."))
    flags = {flag for flag, owner in command.CONFIGURED.items() if owner == config_key}
    if key.startswith("--"):
        flags.add(command.flag_name(key))
    if config_key and config_key.startswith("engine.args."):
        flags.add(command.flag_name(config_key.removeprefix("engine.args.")))
    found = []
    for service, folder in attempts(run):
        for rank in folder.ranks():
            intended, real = tolerant(rank.command), tolerant(rank.effective)
            number = int(rank.path.name.removeprefix("rank"))
            places = [("environment", name, _env(intended, name), _env(real, name)) for name in sorted(variables)]
            places += [("argument", f"--{name}", _flag(intended, name), _flag(real, name)) for name in sorted(flags)]
            if config_key == "model.path":
                places.append(("argument", "after serve", _served(intended), _served(real)))
            for kind, name, wanted, got in places:
                if wanted is not None or got is not None:
                    agrees = wanted == got if real else None
                    way = f"{kind} {name}"
                    found.append(
                        Rank(
                            service, run.plan.setting(service), int(folder.path.name), number, way, wanted, got, agrees
                        )
                    )
    return found


def _env(record: Mapping[str, Any], name: str) -> str | None:
    value = (record.get("env") or {}).get(name)
    return None if value is None else str(value)


def _flag(record: Mapping[str, Any], name: str) -> str | None:
    """Return the value of a flag in argv; a flag without one is "true", its negation "false"."""
    argv = list(record.get("argv") or ())
    for place, word in enumerate(argv):
        flag, _, value = word.partition("=")
        if flag == f"--no-{name}":
            return "false"
        if flag == f"--{name}":
            following = argv[place + 1] if place + 1 < len(argv) else "--"
            return value or ("true" if following.startswith("--") else str(following))
    return None


def _served(record: Mapping[str, Any]) -> str | None:
    argv = list(record.get("argv") or ())
    return str(argv[argv.index("serve") + 1]) if "serve" in argv[:-1] else None


def text(found: Explanation) -> str:
    """Return an explanation in words."""
    lines = [found.key if found.config_key in (None, found.key) else f"{found.key} (config key {found.config_key})"]
    for one in found.values:
        lines.append(f"  value {json.dumps(one.value, ensure_ascii=False)}, set by {one.source}")
        if len(found.values) > 1:
            lines.append(f"    points {', '.join(one.points)}")
    if found.config_key is None:
        lines.append("  the config does not set it: it came from the environment of the job, or from the engine")
    for rank in found.ranks:
        said = "not read back" if rank.agrees is None else "as intended" if rank.agrees else "NOT as intended"
        had = "" if rank.agrees is None else f", the process had {rank.effective}"
        where = (
            f"service {' '.join(filter(None, (rank.service, rank.setting)))} attempt {rank.attempt} rank {rank.rank}"
        )
        lines.append(f"  {where}: {rank.way} = {rank.intended}{had}: {said}")
    if not found.ranks:
        lines.append("  it stands in neither the environment nor the arguments of any rank")
    return "\n".join(lines)
