"""Registries of back ends: which names a config key may hold, and the module that brings each.

A registry knows its own names without importing anything. The module of a name is imported when it is first asked for
and registers it there:

    @register("vllm_bench")
    class VllmBench(BenchClient): ...

A distribution of a site adds a name by an entry point `name = "its.module"` in the registry's group; own names win.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from jobs.core.errors import ConfigError

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """The back ends of one kind.

    Args:
        key: dotted config key that holds the name, for errors.
        group: entry-point group in which other distributions add names.
        own: the module of each name that this project brings.
    """

    def __init__(self, key: str, group: str, own: Mapping[str, str]) -> None:
        self.key, self.group, self.own = key, group, own
        self._classes: dict[str, Callable[[], T]] = {}
        self._made: dict[str, T] = {}

    @cached_property
    def _others(self) -> Mapping[str, tuple[str, ...]]:
        """The modules of each name that other distributions bring: one, unless two of them quarrel about it."""
        found = {(point.name, point.value) for point in entry_points(group=self.group)}
        return {name: tuple(sorted(value for n, value in found if n == name)) for name in sorted(n for n, _ in found)}

    def names(self) -> tuple[str, ...]:
        """Return all names: this project's first."""
        return tuple(dict.fromkeys((*self.own, *self._classes, *self._others)))

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a name. What is installed is looked through for names of others only."""
        return name in self.own or name in self._classes or name in self._others

    def register(self, name: str) -> Callable[[C], C]:
        """Return the decorator that makes a class, which needs no arguments, the back end of this name."""

        def add(cls: C) -> C:
            self._classes[name] = cls
            self._made.pop(name, None)
            return cls

        return add

    def get(self, name: str) -> T:
        """Return the back end of this name, always the same object.

        Raises:
            ConfigError: there is none, two distributions bring one, or its module does not import or register it.
        """
        if name not in self._made:
            if name not in self._classes:
                self._load(name)
            self._made[name] = self._classes[name]()
        return self._made[name]

    def _load(self, name: str) -> None:
        modules = (self.own[name],) if name in self.own else self._others.get(name, ())
        if len(modules) != 1:
            reason = f"{' and '.join(modules)} both bring it" if modules else "there is no such back end"
            raise self._error(name, reason)
        try:
            import_module(modules[0])
        except ImportError as error:
            raise self._error(name, f"{modules[0]} cannot be imported: {error}") from error
        if name not in self._classes:
            raise self._error(name, f"{modules[0]} does not register it")

    def _error(self, name: str, reason: str) -> ConfigError:
        return ConfigError(self.key, name, reason, f"Valid values are {', '.join(self.names())}.")


CLIENTS: Registry[Any] = Registry(
    "bench.client",
    "serving_sweep.clients",
    {"vllm_bench": "jobs.measure.clients.vllm_bench", "ais_bench": "jobs.measure.clients.ais_bench"},
)
"""External benchmark clients: jobs/measure/clients/base.py."""

SCHEDULERS: Registry[Any] = Registry(
    "cluster.kind",
    "serving_sweep.schedulers",
    {name: f"jobs.cluster.{name}" for name in ("slurm", "script", "local", "current")},
)
"""What brings an allocation to its nodes: jobs/cluster/base.py."""

ENGINES: Registry[Any] = Registry(
    "engine.name",
    "serving_sweep.engines",
    {
        "vllm_ascend": "jobs.engines.ascend.engine",
        "vllm_cpu": "jobs.engines.vllm.cpu",
        "simulator": "jobs.engines.simulator.backend",
    },
)
"""Programs that serve: jobs/engines/base.py."""

RUNTIMES: Registry[Any] = Registry(
    "container.runtime",
    "serving_sweep.runtimes",
    {name: f"containers.{name}" for name in ("enroot", "pyxis", "docker", "podman", "apptainer")},
)
"""Container runtimes: containers/base.py."""
