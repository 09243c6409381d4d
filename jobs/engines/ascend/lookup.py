"""The model of a config, as far as it can be seen from here."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import from_root
from jobs.engines.checkpoint.architecture import Architecture, Stored, load
from jobs.engines.checkpoint.checkpoint import weight_bytes


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
    return _load(config.model.name, config.model.path, config.model.load_format == "dummy")


@cache
def _load(name: str, path: str, dummy: bool) -> Architecture:
    """Return the architecture and, unless the weights are made up, what the checkpoint's files say of them."""
    where = Path(from_root(path))
    arch = load(name, where)
    found = None if dummy else weight_bytes(where)
    return replace(arch, stored=Stored(found.bytes, found.layers, found.source)) if found else arch
