"""From overrides to points, and from the overrides of a point to its validated config: Hydra composes once a choice of
groups.

Hydra's basic launcher composes the whole tree for every point (about 150 ms each). Here a value override is
applied to a plain copy of the composed tree and validated by the schema.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jobs.core import schema
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import override_parts, plain
from jobs.core.foreign import from_yaml
from jobs.core.load import USUAL_CONCURRENCY, open_loop
from jobs.core.schema import CONF
from jobs.engines.ascend.migration import migrate
from jobs.sweep import grammar

Composer = Callable[[list[str]], DictConfig]
"""Composes the whole tree from group choices."""

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
"""What Hydra raises when it cannot compose: an option, a sweeper, a value or a YAML file is wrong."""


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Check overrides and expand their sweeps to one list a point, as Hydra's basic sweeper does.

    Overrides of Hydra itself (`hydra.verbose=true`) ask nothing and are left out.

    The last key changes fastest; of two overrides of one key the later one holds, in the earlier one's place. An
    experiment may bring a sweep of its own (`hydra.sweeper.params`); its keys come first.

    Raises:
        ConfigError: no override, an unknown key or option, a sweep that cannot be enumerated.
    """
    overrides = grammar.spelled(overrides)
    grammar.check(overrides)
    choices: dict[str, list[str]] = {}
    for item in grammar.parse([*_brought(overrides), *overrides]):
        values = grammar.sweep_values(item) if item.is_sweep_override() else [item.get_value_element_as_str()]
        choices[item.get_key_element()] = [f"{item.get_key_element()}={value}" for value in values]
    grammar.check_count(math.prod(map(len, choices.values())), "the sweep", " ".join(overrides))
    return [grammar.ours(point) for point in itertools.product(*choices.values())]


def _brought(overrides: Sequence[str]) -> list[str]:
    """Return the sweep that the chosen experiment brings, as overrides."""
    chosen = [text for text in overrides if text.startswith("experiment=") and "," not in text]
    if not chosen or not _may_bring(chosen[-1].partition("=")[2]):
        return []
    schema.register()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="launch"):
            tree = compose("config", overrides=chosen[-1:], return_hydra_config=True)
    except COMPOSITION_ERRORS as error:
        raise composition_error(error, chosen) from None
    return [f"{key}={value}" for key, value in (tree.hydra.sweeper.params or {}).items()]


def _may_bring(experiment: str) -> bool:
    """Whether an experiment has a sweep, as far as its file tells: to compose it takes long.

    It may have the sweep of another file that it begins with; one that only chooses among groups has not.
    """
    path = CONF / "experiment" / f"{experiment}.yaml"
    if not path.exists() or "hydra" in (text := path.read_text(encoding="utf-8")):
        return True
    begins = (from_yaml(text) or {}).get("defaults") or ()
    return any(not isinstance(one, dict) or not all(key.startswith("override /") for key in one) for one in begins)


def default_composer(group_overrides: list[str]) -> DictConfig:
    """Compose the project's own `conf/` with these group choices, each choice once; the result is not to be changed."""
    return _composed(tuple(group_overrides))


@cache
def _composed(group_overrides: tuple[str, ...]) -> DictConfig:
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="launch"):
        return compose("config", overrides=list(group_overrides))


def configs(points: Iterable[Sequence[str]], composer: Composer = default_composer) -> list[Config]:
    """Return one validated config a point, for its engine.release: see `written` and jobs/engines/ascend/migration.py.

    Raises:
        ConfigError: unknown key or group option, wrong type, ambiguous value.
    """
    return [migrate(one.config, one.explicit)[0] for one in written(points, composer)]


@dataclass(frozen=True)
class Written:
    """A config as its presets have it. `explicit`: the keys that the point's own overrides set."""

    config: Config
    explicit: tuple[str, ...]


def written(points: Iterable[Sequence[str]], composer: Composer = default_composer) -> list[Written]:
    """Return one validated config a point, as written; `composer` is called once for a distinct choice of groups.

    Raises:
        ConfigError: unknown key or group option, wrong type, ambiguous value.
    """
    known = grammar.groups()
    trees: dict[tuple[str, ...], tuple[dict[str, Any], bool]] = {}
    result = []
    for overrides in points:
        items = grammar.parse(overrides)
        structural = tuple(str(item.input_line) for item in items if grammar.is_structural(item, known))
        if structural not in trees:
            made = _tree(structural, composer)
            trees[structural] = made, _has_interpolation(made)
        template, interpolated = trees[structural]
        tree = plain(template)
        was_open = _is_open(tree["bench"])
        for item in items:
            if not grammar.is_structural(item, known):
                _apply(tree, item)
                interpolated = interpolated or _has_interpolation(item.value())
        explicit = tuple(key for item in items for key in _said(item, known))
        _set_concurrency(tree["bench"], explicit, was_open=was_open)
        if interpolated and _has_interpolation(tree):
            tree = _resolved(tree)
        result.append(Written(schema.build(tree), explicit))
    return result


def _set_concurrency(bench: dict[str, Any], explicit: Sequence[str], *, was_open: bool) -> None:
    """Give a closed loop the usual concurrency where it has none, and take from an open one what nobody set for it.

    A rate or a trace is a load of its own: a concurrency beside it is a cap, under which a queue forms in the client.
    So one that a preset brought for its closed loop goes where the point's own overrides open the loop.
    """
    if "bench.concurrency" in explicit:
        return
    if not _is_open(bench):
        bench["concurrency"] = bench.get("concurrency") or USUAL_CONCURRENCY
    elif not was_open:
        bench["concurrency"] = None


def _is_open(bench: Mapping[str, Any]) -> bool:
    return open_loop(bench.get("search"), bench.get("request_rate"), bench.get("workload", "random"))


PRESETS = ("engine", "experiment")
"""Groups that are written for one release; a choice in any other group is the caller's own word."""


def _said(item: Override, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the keys that one override sets: its own, or those of the option that it chooses (moe=flat)."""
    group, choice = item.key_or_group, item.value()
    if not grammar.is_structural(item, known):
        return (group,)
    if group in PRESETS or group not in known or not isinstance(choice, str):
        return ()
    return _keys_of(group, choice)


@cache
def _keys_of(group: str, choice: str) -> tuple[str, ...]:
    text = (CONF / group / f"{choice}.yaml").read_text(encoding="utf-8")
    tree = from_yaml(text) or {}
    return tuple(_leaves(tree, "" if "@package _global_" in text else f"{group}."))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}"


def _tree(structural: tuple[str, ...], composer: Composer) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(composer(list(structural)), resolve=False)
    except COMPOSITION_ERRORS as error:
        raise composition_error(error, structural) from None
    if not isinstance(container, dict):
        raise ConfigError("conf", type(container), "a config is a mapping", "Check conf/config.yaml.")
    return {str(key): value for key, value in container.items() if key != "hydra"}


def composition_error(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Return one of COMPOSITION_ERRORS as an error that names the override which it speaks of, if any."""
    reason = str(error).partition("Config search path:")[0]
    if isinstance(error.__cause__, OmegaConfBaseException) and str(error.__cause__) not in reason:
        reason += f": {str(error.__cause__).splitlines()[0]}"
    reason = " ".join(reason.split())
    for text in overrides:
        key, value = override_parts(text)
        if key in reason:
            return ConfigError(key, value or text, reason, "See python launch.py --help and python -m jobs keys.")
    return ConfigError("conf", "(composition)", reason, "Check the files in conf/.")


def _apply(tree: dict[str, Any], item: Override) -> None:
    schema.check_key(item.key_or_group, grammar.value_text(item))
    grammar.refuse_sweeps([str(item.input_line)])
    value: Any = item.value()
    for part in reversed(item.key_or_group.split(".")):
        value = {part: value}
    _merge(tree, value)


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _has_interpolation(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_interpolation(child) for child in value.values())
    if isinstance(value, list | tuple):
        return any(_has_interpolation(child) for child in value)
    return isinstance(value, str) and "${" in value


def _resolved(tree: dict[str, Any]) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "conf")
        raise ConfigError(key, "${...}", str(error).splitlines()[0], "Check the interpolation.") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
