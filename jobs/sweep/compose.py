"""From override lists to validated configs, fast: Hydra composes once a choice of groups.

Hydra's basic launcher composes the whole tree for every point (about 150 ms each). Here a value override is
applied to a plain copy of the composed tree and validated by the schema.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jobs.core import schema
from jobs.core.config import Config
from jobs.core.errors import ConfigError, nearest
from jobs.core.files import from_yaml
from jobs.core.schema import CONF
from jobs.engines.ascend.migration import migrate

Composer = Callable[[list[str]], DictConfig]
"""Composes the whole tree from group choices."""

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
"""What Hydra raises when it cannot compose: an option, a sweeper, a value or a YAML file is wrong."""


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse override strings by Hydra's own grammar.

    Raises:
        ConfigError: the text is not an override.
    """
    try:
        texts = [quoted(text) for text in overrides]
        return OverridesParser.create(cast(ConfigLoader, _Options())).parse_overrides(texts)
    except OverrideParseException as error:
        reason = " ".join(str(error).partition("\nSee ")[0].split())
        remedy = "Write it as key=value."
        if "#" in str(error.override):
            remedy += " Hydra takes a # only between quotes, which the shell must leave: 'key=\"a#b\"'."
        raise ConfigError("override", repr(error.override), reason, remedy) from None


_WORD = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s,\[\](){}'"]+""")


def quoted(text: str) -> str:
    """Return an override with quotes around every word of its value that holds a #, as in REGISTRY#IMAGE:TAG.

    Hydra's grammar has no # outside of quotes, and a shell takes the quotes away that a person writes. What already
    is quoted stays as it is, and so does a value with braces.
    """
    key, equals, value = text.partition("=")
    if not equals or "#" not in value or "{" in value:
        return text

    def tag(match: re.Match[str]) -> str:
        word = match.group()
        return f'"{word}"' if "#" in word and word[0] not in "'\"" else word

    return key + equals + _WORD.sub(tag, value)


class _Options:
    """The part of Hydra's config loader that its override parser asks for `model=glob(*)`."""

    def get_group_options(self, group: str, **_: Any) -> list[str]:
        return list(groups().get(group, ()))


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Expand comma sweeps to one override list a point, as Hydra's basic sweeper does.

    The last key changes fastest; of two overrides of one key the later one holds, in the earlier one's place. An
    experiment may bring a sweep of its own (`hydra.sweeper.params`); its keys come first.

    Raises:
        ConfigError: the text is no override, or a sweep that cannot be enumerated.
    """
    choices: dict[str, list[str]] = {}
    for item in [*parse(_brought(overrides)), *parse(overrides)]:
        values = sweep_values(item) if item.is_sweep_override() else [item.get_value_element_as_str()]
        choices[item.get_key_element()] = [f"{item.get_key_element()}={value}" for value in values]
    return [list(point) for point in itertools.product(*choices.values())]


def _brought(overrides: Sequence[str]) -> list[str]:
    """Return the sweep that the chosen experiment brings, as overrides."""
    chosen = [text for text in overrides if text.startswith("experiment=") and "," not in text]
    if not chosen:
        return []
    schema.register()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="launch"):
            tree = compose("config", overrides=chosen[-1:], return_hydra_config=True)
    except COMPOSITION_ERRORS as error:
        raise composition_error(error, chosen) from None
    return [f"{key}={value}" for key, value in (tree.hydra.sweeper.params or {}).items()]


def sweep_values(item: Override) -> list[str]:
    """Return the values of a sweep as Hydra writes them.

    Raises:
        ConfigError: it has no values, or no end (`interval(0,1)`).
    """
    try:
        values = list(item.sweep_string_iterator())
        if values:
            return values
        reason = "this sweep has no values"
    except (HydraException, ValueError) as error:
        reason = f"its values cannot be listed: {error}"
    raise ConfigError(item.key_or_group, _value_text(item), reason, "Write key=a,b or key=range(start,stop,step).")


def swept_keys(points: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the keys whose override differs between points, in order of first appearance."""
    seen: dict[str, set[str]] = {}
    for point in points:
        for text in point:
            key, _, value = text.lstrip("+~").partition("=")
            seen.setdefault(key, set()).add(value)
    counts = {key: sum(any(t.lstrip("+~").partition("=")[0] == key for t in p) for p in points) for key in seen}
    return tuple(k for k, values in seen.items() if len(values) > 1 or counts[k] != len(points))


def groups(conf: Path = CONF) -> Mapping[str, tuple[str, ...]]:
    """Return the config groups and their options, read from the directory `conf`."""
    return {
        folder.name: tuple(sorted(file.stem for file in folder.glob("*.yaml")))
        for folder in sorted(conf.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }


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
    """A config as its presets have it. `explicit`: the keys that the point's own words set."""

    config: Config
    explicit: tuple[str, ...]


def written(points: Iterable[Sequence[str]], composer: Composer = default_composer) -> list[Written]:
    """Return one validated config a point, as written.

    Args:
        points: override lists without sweeps.
        composer: composes the tree for one choice of groups; called once per distinct choice.

    Raises:
        ConfigError: unknown key or group option, wrong type, ambiguous value.
    """
    known = groups()
    trees: dict[tuple[str, ...], dict[str, Any]] = {}
    parsed: dict[str, Override] = {}
    result = []
    for overrides in points:
        for text in overrides:
            if text not in parsed:
                [parsed[text]] = parse([text])
        items = [parsed[text] for text in overrides]
        structural = tuple(text for text, item in zip(overrides, items, strict=True) if _is_structural(item, known))
        if structural not in trees:
            trees[structural] = _tree(structural, composer)
        tree = _copy(trees[structural])
        for item in items:
            if not _is_structural(item, known):
                _apply(tree, item)
        explicit = tuple(key for item in items for key in _said(item, known))
        result.append(Written(schema.build(_resolved(tree)), explicit))
    return result


PRESETS = ("engine", "experiment")
"""Groups that are written for one release; a choice in any other group is the caller's own word."""


def _said(item: Override, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the keys that one override sets: its own, or those of the option that it chooses (moe=flat)."""
    group, choice = item.key_or_group, item.value()
    if not _is_structural(item, known):
        return (group,)
    if group in PRESETS or group not in known or not isinstance(choice, str):
        return ()
    return _keys_of(group, choice)


@cache
def _keys_of(group: str, choice: str) -> tuple[str, ...]:
    text = (CONF / group / f"{choice}.yaml").read_text()
    tree = from_yaml(text) or {}
    return tuple(_leaves(tree, "" if "@package _global_" in text else f"{group}."))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}"


def ours(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those of Hydra itself (`hydra/sweeper=...`, `hydra.sweep.dir=...`)."""
    return [text for text in overrides if not text.lstrip("+~").startswith(("hydra.", "hydra/"))]


def first_point(overrides: Sequence[str]) -> list[str]:
    """Return one point of a sweep: the first value of each sweep that can be listed."""
    point = []
    for item in parse(overrides):
        if not item.is_sweep_override():
            point.append(str(item.input_line))
        elif item.is_discrete_sweep():
            point.append(f"{item.get_key_element()}={sweep_values(item)[0]}")
    return point


def check(overrides: Sequence[str]) -> None:
    """Raise ConfigError for what can be seen in the overrides alone: unknown keys, groups, options."""
    known = groups()
    items = parse(overrides)
    basic = not any(item.key_or_group == "hydra/sweeper" for item in items)
    for item in items:
        if item.is_sweep_override() and (basic or item.is_discrete_sweep()):
            sweep_values(item)
        if item.key_or_group == "hydra/launcher":
            raise ConfigError(
                "hydra/launcher", item.value(), "only the planner plans and submits", "Leave it out; see cluster.kind."
            )
        if not _is_structural(item, known):
            schema.check_key(item.key_or_group, _value_text(item))


def _value_text(item: Override) -> str:
    return str(item.input_line).partition("=")[2]


def _is_structural(item: Override, known: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether Hydra itself must compose this: hydra.* keys, group choices, package renames, deletions."""
    key = item.key_or_group
    if key.startswith("hydra") or item.package or "/" in key or item.is_delete():
        return True
    if key not in known:
        return False
    choices: Any = sweep_values(item) if item.is_sweep_override() else item.value()
    for choice in choices if isinstance(choices, list) else [choices]:
        if choice is None or choice == "null":
            raise ConfigError(key, "null", "a group is chosen or left out", f"Leave {key} out, or write '~{key}'.")
        if str(choice) not in known[key]:
            raise ConfigError(key, choice, f"there is no such option in conf/{key}", nearest(str(choice), known[key]))
    return True


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
        key, _, value = text.lstrip("+~").partition("=")
        if key in reason:
            return ConfigError(key, value or text, reason, "See python launch.py --help and python -m jobs keys.")
    return ConfigError("conf", "(composition)", reason, "Check the files in conf/.")


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    return list(value) if isinstance(value, list) else value


def _apply(tree: dict[str, Any], item: Override) -> None:
    key = item.key_or_group
    schema.check_key(key, _value_text(item))
    if item.is_sweep_override():
        raise ConfigError(
            key,
            _value_text(item),
            "several values need a sweep",
            f"Add -m, or write a list: '{key}=[...]'.",
        )
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    value = item.value()
    if isinstance(value, dict) and isinstance(node.get(last), dict):
        _merge(node[last], value)
    else:
        node[last] = value


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
    if not _has_interpolation(tree):
        return tree
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "conf")
        raise ConfigError(key, "${...}", str(error).splitlines()[0], "Check the interpolation.") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
