"""The model of a config, as far as it can be seen from here."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jobs.ascend.architecture import Architecture, load
from jobs.config import Config
from jobs.errors import ConfigError
from jobs.settings import from_root


def architecture_of(config: Config) -> Architecture | None:
    """Return the architecture of `model`; None where its config.json is not visible from here."""
    try:
        return required(config)
    except ConfigError:
        return None


def required(config: Config) -> Architecture:
    """Return the architecture of `model`, read once.

    Raises:
        ConfigError: its config.json is not visible from here, or is not of a known form.
    """
    return _load(config.model.name, config.model.path)


@cache
def _load(name: str, path: str) -> Architecture:
    return load(name, Path(from_root(path)))
