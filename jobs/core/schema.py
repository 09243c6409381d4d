"""The schema as a whole: its keys and their scopes, validation of a tree, registration in Hydra's ConfigStore."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ValidationError
from pydantic.fields import FieldInfo

from jobs.core.config import Config, ServiceConfig
from jobs.core.errors import ConfigError, nearest
from jobs.core.fields import CODE, ROOT, OneKey, OneOf, Section, dotted
from jobs.core.foreign import form_of
from jobs.core.load import Load

CONF = CODE / "conf" if ROOT == CODE else CODE / "jobs/conf"
"""The presets: of a checkout, or those that setup.py puts into the wheel."""


@cache
def schema() -> Mapping[str, str]:
    """Return the scope of every leaf key by its dotted name; a mapping (`engine.env`, `bench.slo`) is one leaf."""
    return dict(_leaves(Config, "", "sweep"))


@cache
def _scopes() -> Mapping[type, str]:
    """Return the scope of each part of the three types (config.py)."""
    service = dict.fromkeys(get_type_hints(ServiceConfig).values(), "service")
    return service | {Load: "point"}


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    """Return the types of a section's fields: they are written as text, and to evaluate it takes long."""
    return get_type_hints(cls)


def _leaves(cls: type, prefix: str, scope: str) -> Iterator[tuple[str, str]]:
    hints = _hints(cls)
    for item in fields(cls):
        name, kind = prefix + item.name, hints[item.name]
        owner = next(base for base in cls.__mro__ if item.name in vars(base).get("__annotations__", {}))
        scope_of_it = _scopes().get(owner, scope)
        if _is(kind, Section) and not _is(kind, OneKey):
            yield from _leaves(kind, name + ".", _scopes().get(kind, scope_of_it))
        else:
            yield name, scope_of_it


def _is(kind: Any, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


@cache
def names() -> Mapping[str, str]:
    """Return the leaf of every dotted name with a type of its own: a leaf itself, a name in `bench.slo`."""
    kinds = {key: _hints(_class_of(key.rpartition(".")[0]))[key.rpartition(".")[2]] for key in schema()}
    inner = {f"{key}.{item.name}": key for key, kind in kinds.items() if _is(kind, OneKey) for item in fields(kind)}
    return {**inner, **{key: key for key in kinds}}


def names_in(key: str) -> tuple[str, ...]:
    """Return the dotted names of a mapping that takes no other ones (`bench.slo`); nothing for any other key."""
    return tuple(name for name, leaf in names().items() if leaf == key and name != key)


@cache
def open_mappings() -> frozenset[str]:
    """Return the dotted names of mappings that take any key (`engine.env`, `engine.args`, ...)."""
    return _open(Config, "") & schema().keys()


def _open(cls: type, prefix: str) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    hints = _hints(cls)
    for item in fields(cls):
        kind = hints[item.name]
        if _is(kind, Section):
            found |= _open(kind, prefix + item.name + ".")
        elif item.default_factory is not MISSING or "dict[" in str(item.type).split("tuple")[0]:
            found |= {prefix + item.name}
    return found


def leaf_of(key: str) -> str | None:
    """Return the schema leaf that a dotted key sets, or None: `engine.env.FOO` belongs to `engine.env`."""
    if key in names():
        return names()[key]
    for name in open_mappings():
        if key.startswith(name + "."):
            return name
    return None


def check_key(key: str, value: object) -> None:
    """Raise ConfigError with the nearest valid key where `key` is neither a leaf nor a section."""
    if leaf_of(key) or any(name.startswith(key + ".") for name in schema()):
        return
    section = key.partition(".")[0] + "."
    listed = [name for name in names() if name.startswith(section)] or [item.name for item in fields(Config)]
    raise ConfigError(key, value, "there is no such key", nearest(key, names(), listed))


LONGEST = 100_000
"""Letters of a text of the configuration: a word of a command line has 128 KiB at most (Linux, MAX_ARG_STRLEN)."""

LARGEST = 2**53
"""A number of the configuration beyond it is a slip: more cannot be counted in steps of one, nor waited for."""


def _check_sizes(values: Mapping[str, Any], section: str = "") -> None:
    for name, value in values.items():
        if isinstance(value, int | float):
            if LARGEST < abs(value) != math.inf:
                raise _wrong_size(section + name, repr(value), "it is too large")
        elif isinstance(value, Mapping) and section + name not in open_mappings():
            _check_sizes(value, f"{section}{name}.")
        elif value and len(text := str(value)) > LONGEST:
            raise _wrong_size(section + name, f"{text[:40]}... ({len(text):,} letters)", "it is too long")


def _wrong_size(key: str, value: str, reason: str) -> ConfigError:
    return ConfigError(key, value, reason, f"{key}: {help_of(key)}")


def build(values: Mapping[str, Any]) -> Config:
    """Turn plain nested mappings into a validated `Config`.

    Raises:
        ConfigError: unknown key (with the nearest valid one), wrong type, value out of range. The first
            error is raised; each names key, value, reason and remedy.
    """
    _check_sizes(values)
    try:
        return form_of(Config).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            check_key(key, first["input"])
        # pydantic appends the branch of a union to the location: the leaf is the longest known prefix.
        leaf = max((name for name in names() if key == name or key.startswith(name + ".")), key=len, default=key)
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(leaf, repr(first["input"]), reason, f"{leaf}: {help_of(leaf)}") from None


def help_of(key: str) -> str:
    """Return the help text of a key, with those of its names where only some are valid; nothing for what is none."""
    if key not in names():
        return ""
    inner = [f"{name.rpartition('.')[2]}: {help_of(name)} ({type_of(name)})" for name in names_in(key)]
    return "; ".join([own_help(key), *inner])


def own_help(key: str) -> str:
    """Return the help text of a key alone."""
    text: str = _field(key).metadata["help"]
    return text


def default_of(key: str) -> Any:
    """Return the default of a leaf key, before any file of conf/ is read."""
    return dotted(Config(), key)


def type_of(key: str) -> str:
    """Return in words what a leaf key takes."""
    section, _, name = key.rpartition(".")
    return _type_text(get_type_hints(_class_of(section), include_extras=True)[name])


def _class_of(section: str) -> type:
    cls: type = Config
    for part in filter(None, section.split(".")):
        cls = _hints(cls)[part]
    return cls


def _field(key: str) -> Field[Any]:
    section, _, name = key.rpartition(".")
    return next(item for item in fields(_class_of(section)) if item.name == name)


_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", dict: "mapping", type(None): "null"}
_LIMITS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))


def _type_text(kind: Any) -> str:
    base, *more = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    for one in more:
        if isinstance(one, AfterValidator) and isinstance(one.func, OneOf):
            return ", ".join(one.func.names())
    origin = get_origin(base)
    if origin in (UnionType, Union):
        text = " or ".join(_type_text(part) for part in get_args(base))
    elif origin is tuple:
        text = f"list of: {_type_text(get_args(base)[0])}"
    else:
        text = "mapping" if _is(base, OneKey) else _WORDS.get(origin or base, "whole number, or list of them")
    rules = [rule for one in more if isinstance(one, FieldInfo) for rule in one.metadata]
    limits = [f", {word} {getattr(rule, name):g}" for rule in rules for name, word in _LIMITS if hasattr(rule, name)]
    return text + "".join(limits)


@cache
def register() -> None:
    """Put the schema into Hydra's ConfigStore as `schema`.

    OmegaConf marks frozen dataclasses read-only, which would refuse the YAML files themselves: the flag is
    lifted on the node. The frozen object comes back from `build`.
    """
    from hydra.core.config_store import ConfigStore  # ranks, which only build a config, need neither
    from omegaconf import OmegaConf

    def thaw(node: Any) -> None:
        OmegaConf.set_readonly(node, None)
        for key in node:
            child = node._get_node(key)
            if OmegaConf.is_dict(child):
                thaw(child)

    OmegaConf.register_new_resolver("minus", lambda a, b: a - b, replace=True)  # ${minus:${a},${b}} in conf/
    node = OmegaConf.structured(Config)
    thaw(node)
    for name in open_mappings():
        child = OmegaConf.select(node, name)
        if OmegaConf.is_dict(child):
            OmegaConf.set_struct(child, False)
    ConfigStore.instance().store(name="schema", node=node, provider="jobs")
