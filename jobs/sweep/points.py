"""Points: one resolved configuration each, named by what it asks. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from json.encoder import encode_basestring_ascii
from operator import attrgetter
from typing import Any

from jobs.core import schema
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import OneKey, dotted, plain


@dataclass(frozen=True)
class Point:
    """One fully resolved configuration: one row of the table. `values`: of the swept keys."""

    point: str
    service: str
    overrides: tuple[str, ...]
    values: Mapping[str, Any]
    config: Config


def identity(config: Config, *scopes: str) -> str:
    """Return a short hash of the leaves that belong to these scopes: same question, same name."""
    return _name(_texts(config), scopes)


@cache
def _leaves() -> tuple[tuple[str, str, Callable[[Config], Any]], ...]:
    """Return the scope, the text of the key and the reader of every leaf that names a point, in order of the text."""
    named = [(canonical(key), key, scope) for key, scope in schema.schema().items() if scope != "sweep"]
    return tuple((scope, text, attrgetter(key)) for text, key, scope in sorted(named))


def _texts(config: Config) -> list[tuple[str, str]]:
    """Return the scope and the text of every leaf of a config."""
    return [(scope, f"{name}:{canonical(read(config))}") for scope, name, read in _leaves()]


def _name(texts: Sequence[tuple[str, str]], scopes: Collection[str]) -> str:
    """Return the hash of the leaves that belong to these scopes, as `canonical` writes them in one mapping."""
    joined = ",".join([text for scope, text in texts if scope in scopes])
    return hashlib.sha256(f"{{{joined}}}".encode()).hexdigest()[:10]


def points_of(overrides: Sequence[Sequence[str]], configs: Sequence[Config], swept: Sequence[str]) -> list[Point]:
    """Return one point for every override list and its config; two lists may ask for the same point.

    `swept` are the keys whose overrides differ between points.

    Raises:
        ConfigError: a swept key does not change the question: its scope is the sweep.
    """
    leaves = swept_leaves(swept, configs)
    points = []
    for given, config in zip(overrides, configs, strict=True):
        texts = _texts(config)  # once for both names
        point, service = (_name(texts, scopes) for scopes in (("service", "point"), ("service",)))
        points.append(Point(point, service, tuple(given), {k: plain(dotted(config, k)) for k in leaves}, config))
    return points


def swept_leaves(swept: Sequence[str], configs: Sequence[Config]) -> tuple[str, ...]:
    """Return the keys that stand in the table: the swept keys, a swept group by every leaf that differs."""
    leaves: list[str] = []
    for key in swept:
        leaf = schema.leaf_of(key)
        scopes = {scope for name, scope in schema.schema().items() if name == leaf or name.startswith(key + ".")}
        if scopes == {"sweep"}:
            reason = "it belongs to the whole sweep and does not change what is asked"
            raise ConfigError(key, "(swept)", reason, "Give it one value, and start one sweep for each further value.")
        if leaf is not None and not schema.names_in(key):
            leaves.append(key)
            continue
        # A swept group (parallel=dp2_tp8,dp4_tp4; engine=...; experiment=...) may set keys of every section.
        prefix = key + "." if "." in key else ""
        for name, scope in schema.schema().items():
            wanted = (name == leaf or name.startswith(prefix)) and scope != "sweep"
            if wanted and _differs(configs, name):
                leaves += _parts(configs, name)
    return tuple(dict.fromkeys(leaves))


def _differs(configs: Sequence[Config], name: str) -> bool:
    return len({canonical(dotted(config, name)) for config in configs}) > 1


def _parts(configs: Sequence[Config], name: str) -> list[str]:
    """Return the keys of a mapping (`engine.env`, `bench.slo`) that differ; of any other leaf the leaf itself."""
    values = [dotted(config, name) for config in configs]
    if not all(isinstance(value, Mapping) for value in values):
        return [name]
    keys = dict.fromkeys(str(key) for value in values for key in value)
    return [f"{name}.{key}" for key in keys if "." not in key and _differs(configs, f"{name}.{key}")] or [name]


def canonical(value: Any) -> str:
    """Return the same text for the same value, whatever the order of its keys."""
    if value is None or isinstance(value, int):  # most leaves; json.dumps says the same
        return "null" if value is None else str(value).lower()
    if type(value) is str:
        return encode_basestring_ascii(value)
    if type(value) is float and math.isfinite(value):
        return repr(value)
    if isinstance(value, OneKey):
        value = vars(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{canonical(k)}:{canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    return json.dumps(value, default=str)
