"""Stand-ins for packages that are not here: every name exists, none works.

For the programs that run the real code of a release: ../run.py, which has this directory on its path, and
tools/extract_flags.py.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class _AnyType(type):
    """A class that has every attribute, and can be called, subscripted and put into a union."""

    def __getattr__(cls, name: str) -> Any:
        return stand_in(name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not StandIn:
            return super().__call__(*args, **kwargs)
        decorates = len(args) == 1 and not kwargs and callable(args[0])
        return args[0] if decorates else StandIn

    def __getitem__(cls, key: object) -> Any:
        return StandIn

    def __or__(cls, other: object) -> Any:
        return StandIn

    def __ror__(cls, other: object) -> Any:
        return StandIn

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __contains__(cls, item: object) -> bool:
        return False


class StandIn(metaclass=_AnyType):
    """Takes the place of every name that is asked for."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return {"type": "any"}


def stand_in(name: str) -> Any:
    """Return what a module, or a class, has under a name: nothing that Python itself asks for."""
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(name)
    return StandIn


class AnyModule(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        return stand_in(name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Offers a module of stand-ins for every name that `absent` is true of.

    `root`: where the real modules below such a one are; None: there are none.
    """

    def __init__(self, absent: Callable[[str], bool], root: Path | None = None) -> None:
        self._absent, self._root = absent, root

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return the module's spec; None: it is not absent."""
        if not self._absent(fullname):
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        spec.submodule_search_locations = [str(self._root / fullname.replace(".", "/"))] if self._root else []
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return the module."""
        return AnyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""
