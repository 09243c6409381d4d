"""From override lists to validated configs, fast: Hydra composes once a choice of groups.

Hydra's basic launcher composes the whole tree for every point (about 150 ms each). Here a value override is
applied to a plain copy of the composed tree and validated by the schema (issue 2, launcher plugin).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jobs import config as schema
from jobs.config import CONF, Config
from jobs.errors import ConfigError, nearest

Composer = Callable[[list[str]], DictConfig]
"""Composes the whole tree from group choices."""


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse override strings by Hydra's own grammar.

    Raises:
        ConfigError: the text is not an override.
    """
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(error.override, "(override)", reason, "Write it as key=value.") from None


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Expand comma sweeps to one override list a point, in Hydra's order: the last key changes fastest."""
    choices = [
        [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()]
        if item.is_sweep_override()
        else [str(item.input_line)]
        for item in parse(overrides)
    ]
    return [list(point) for point in itertools.product(*choices)]


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
    """Compose the project's own `conf/` with these group choices."""
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="launch"):
        return compose("config", overrides=group_overrides)


def configs(points: Iterable[Sequence[str]], composer: Composer = default_composer) -> list[Config]:
    """Return one validated config a point.

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
        for text, item in zip(overrides, items, strict=True):
            if not _is_structural(item, known):
                _apply(tree, item, text)
        result.append(schema.build(_resolved(tree)))
    return result


def check(overrides: Sequence[str]) -> None:
    """Raise ConfigError for what can be seen in the overrides alone: unknown keys, groups, options."""
    known = groups()
    for item in parse(overrides):
        if not _is_structural(item, known):
            schema.check_key(item.key_or_group)


def _is_structural(item: Override, known: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether Hydra itself must compose this: hydra.* keys, group choices, package renames, deletions."""
    key = item.key_or_group
    if key.startswith("hydra") or item.package or "/" in key or item.is_delete():
        return True
    if key not in known:
        return False
    choices = item.value() if not item.is_sweep_override() else list(item.sweep_iterator())
    for choice in choices if isinstance(choices, list) else [choices]:
        if choice is not None and str(choice) not in known[key]:
            options = ", ".join(known[key])
            raise ConfigError(
                key,
                choice,
                f"there is no such option in conf/{key}",
                nearest(str(choice), known[key]) + f" ({options})",
            )
    return True


def _tree(structural: tuple[str, ...], composer: Composer) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(composer(list(structural)), resolve=False)
    except HydraException as error:
        raise ConfigError(
            " ".join(structural) or "conf",
            "(groups)",
            str(error).splitlines()[0],
            "See python launch.py --help.",
        ) from None
    if not isinstance(container, dict):
        raise ConfigError("conf", type(container), "a config is a mapping", "Check conf/config.yaml.")
    return {str(key): value for key, value in container.items() if key != "hydra"}


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    return list(value) if isinstance(value, list) else value


def _apply(tree: dict[str, Any], item: Override, text: str) -> None:
    key = item.key_or_group
    schema.check_key(key)
    if item.is_sweep_override():
        raise ConfigError(
            key,
            text.partition("=")[2],
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
