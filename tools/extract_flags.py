"""Print the `vllm serve` flags of one release as JSON, from its unpacked wheels. For maintainers.

    python tools/extract_flags.py FOLDER

`extract_release.py` calls this, in a process of its own. vLLM builds its parser at run time out of the type
hints of its config classes, so the parser itself is asked. Only the modules that take part in that are imported
from the wheel; everything else (torch, transformers, ...) is a stand-in, so that no engine environment is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REAL = (
    "vllm.config",
    "vllm.engine.arg_utils",
    "vllm.entrypoints.chat_utils",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.cli.types",
    "vllm.entrypoints.constants",
    "vllm.entrypoints.openai.cli_args",
    "vllm.entrypoints.serve.utils.constants",
    "vllm.entrypoints.utils",
    "vllm.envs",
    "vllm.logger",
    "vllm.logging_utils",
    "vllm.model_executor.layers.quantization",
    "vllm.reasoning",
    "vllm.transformers_utils.config",
    "vllm.utils",
    "vllm.version",
    "vllm._version",
    "vllm_ascend._build_info",
    "vllm_ascend.platform",
    "vllm_ascend.utils",
)
"""Modules (and what is below them) that are imported from the wheels."""

INSTALLED = ("packaging", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection", "yaml")
"""Packages of the running Python that are used as they are."""


class _AnyType(type):
    """A class that has every attribute, can be called, subscripted and put into a union."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return StandIn

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
    """Takes the place of every name of a module that is not there."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return {"type": "any"}


class _AnyModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return StandIn


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Offers a stand-in for every module that is neither REAL, INSTALLED nor of the standard library."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        top = fullname.split(".")[0]
        real = any(fullname == name or fullname.startswith(name + ".") for name in REAL)
        if real or top in sys.stdlib_module_names or top in INSTALLED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _AnyModule(spec.name)
        module.__path__ = [str(self.root / spec.name.replace(".", "/"))]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _prepare(root: Path) -> None:
    """Make the wheels' modules importable from `root`."""
    setattr(importlib.metadata, "version", lambda _: "999")  # noqa: B010  # vLLM asks for the versions of what it runs on
    sys.modules["regex"] = re
    sys.meta_path.insert(0, _Finder(root))
    sys.path.insert(0, str(root))


def serve_parser() -> tuple[argparse.ArgumentParser, frozenset[str]]:
    """Return the parser of `vllm serve`, with what the Ascend plugin adds to it, and the deprecated names."""
    serve = importlib.import_module("vllm.entrypoints.cli.serve")
    kind = serve.FlexibleArgumentParser
    parser: argparse.ArgumentParser = serve.ServeSubcommand().subparser_init(
        kind(prog="vllm").add_subparsers(dest="subparser")
    )
    with contextlib.suppress(ModuleNotFoundError):  # it names the chip; the platform's parser asks for it from 0.18 on
        importlib.import_module("vllm_ascend._build_info")
    importlib.import_module("vllm_ascend.platform").NPUPlatform.pre_register_and_update(parser)
    return parser, frozenset(action.dest for action in kind._deprecated)


def type_name(convert: Callable[[str], Any] | None) -> str:
    """Name a converter of vLLM's arg_utils by what it accepts; jobs/engines/simulator/flags.py has the same names."""
    if convert is None or convert is str:
        return "str"
    if isinstance(convert, type):
        return convert.__name__
    if convert is json.loads:
        return "json"
    name = convert.__qualname__.split(".")[0]
    if name in ("optional_type", "parse_type"):
        inner = type_name(inspect.getclosurevars(convert).nonlocals["return_type"])
        return "optional-" + inner if name == "optional_type" else inner + "-or-pairs"
    known = {
        "human_readable_int": "human-int",
        "human_readable_int_or_auto": "human-int-or-auto",
        "union_dict_and_str": "json-or-str",
        "get_kwargs": "config",
        "_compute_kwargs": "config",
        "EngineArgs": "lower-snake",  # the one lambda of add_cli_args, for --moe-backend
    }
    return known[name]


def describe(action: argparse.Action, deprecated: frozenset[str]) -> dict[str, Any]:
    """Describe one flag: action, type, choices, default. Keys at argparse's own defaults are left out."""
    kind = type(action).__name__
    actions = {"_StoreTrueAction": "store_true", "BooleanOptionalAction": "boolean", "_AppendAction": "append"}
    out: dict[str, Any] = {}
    if kind in actions:
        out["action"] = actions[kind]
    if kind not in ("_StoreTrueAction", "BooleanOptionalAction"):
        out["type"] = type_name(action.type)  # type: ignore[arg-type]
    out["aliases"] = [o for o in action.option_strings[1:] if not o.startswith("--no-")]
    if out.get("action") not in ("store_true", "boolean"):
        out["nargs"], out["const"] = action.nargs, action.const
    out["choices"] = list(action.choices) if action.choices else None
    plain = isinstance(action.default, str | int | float | bool | list)
    out["default"] = getattr(action.default, "value", action.default if plain else None)
    out["deprecated"] = action.dest in deprecated
    return {k: v for k, v in out.items() if v is not None and v != [] and (k != "deprecated" or v)}


def read(folder: Path) -> dict[str, Any]:
    """Return abbreviations and flags of the release whose modules are in `folder`. Once a process: it imports them."""
    _prepare(folder)
    with contextlib.redirect_stdout(sys.stderr):  # vLLM logs to stdout
        parser, deprecated = serve_parser()
    named = [action for action in parser._actions if action.option_strings]
    flags = {action.option_strings[0].lstrip("-"): describe(action, deprecated) for action in named}
    flags.pop("h", None)
    return {"abbreviations": parser.allow_abbrev, "flags": flags}


def main() -> None:
    """Print as JSON what the modules in the folder on the command line accept."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="the .py files of a vllm and a vllm-ascend wheel, unpacked")
    json.dump(read(options.parse_args().folder), sys.stdout)


if __name__ == "__main__":
    main()
