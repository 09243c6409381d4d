"""Print the `vllm serve` flags of one release as JSON, from its unpacked wheels. For maintainers.

    python tools/extract_flags.py FOLDER

`extract_release.py` calls this, in a process of its own. vLLM builds its parser at run time out of the type
hints of its config classes, so the parser itself is asked. Only the modules that take part in that are imported
from the wheel; everything else (torch, transformers, ...) is a stand-in, so that no engine environment is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import enum
import importlib
import importlib.metadata
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "jobs/engines/ascend/real/stubs"))
import standin

REAL = (
    "vllm.config",
    "vllm.engine.arg_utils",
    "vllm.entrypoints.chat_utils",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.cli.types",
    "vllm.entrypoints.constants",
    "vllm.entrypoints.launchers.cli_args",
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

INSTALLED = (
    "annotated_types",
    "packaging",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
    "yaml",
)
"""Packages of the running Python that are used as they are."""


def _is_absent(name: str) -> bool:
    """Whether a module is neither REAL, INSTALLED nor of the standard library."""
    top = name.split(".")[0]
    real = any(name == one or name.startswith(one + ".") for one in REAL)
    return not (real or top in sys.stdlib_module_names or top in INSTALLED)


def _prepare(root: Path) -> None:
    """Make the wheels' modules importable from `root`."""
    setattr(importlib.metadata, "version", lambda _: "999")  # noqa: B010  # vLLM asks for the versions of what it runs on
    sys.modules["regex"] = re
    sys.meta_path.insert(0, standin.Finder(_is_absent, root))
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
    """Name a converter of vLLM's arg_utils by what it accepts; jobs/engines/simulator/settings.py has them too."""
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
    choices = list(action.choices or ())
    # One that another package decides (torch, for one) is not known here: then any value may be right.
    out["choices"] = choices if all(isinstance(one, str | int | float) for one in choices) else None
    default = getattr(action.default, "value", action.default)
    out["default"] = default if isinstance(default, str | int | float | bool | list) else None
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
    for name, range_ in limits().items():
        if name in flags and flags[name].get("type", "").endswith(("int", "float")):
            flags[name]["range"] = range_
    return {"abbreviations": parser.allow_abbrev, "flags": flags, "settings": settings(flags)}


ALWAYS = (
    "ModelConfig", "CacheConfig", "ParallelConfig", "SchedulerConfig", "UVAOffloadConfig", "PrefetchOffloadConfig",
)  # fmt: skip
"""Config classes that every start makes, so that what they refuse is refused."""


def limits() -> dict[str, str]:
    """Return the ranges of flags, as the config classes check them: "x>=0"."""
    module = importlib.import_module("vllm.config")
    found: dict[str, str] = {}
    for cls in (getattr(module, name, None) for name in ALWAYS):
        for name in getattr(cls, "__pydantic_fields__", {}):
            if text := limits_of(cls, name):
                found[name.replace("_", "-")] = text
    return found


CONVERTED = ("IrOpPriorityConfig",)
"""Config classes that bring whatever they are given into their own form."""


def limits_of(cls: Any, name: str) -> str:
    """Return the range of a field of a config class, such as ">0<=1"; empty: there is none."""
    field = getattr(cls, "__pydantic_fields__", getattr(cls, "model_fields", {})).get(name)
    checks = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    parts = getattr(field, "metadata", ())
    found = [(checks[key], getattr(one, key, None)) for one in parts for key in checks]
    return "".join(f"{sign}{value:g}" for sign, value in found if isinstance(value, int | float))


SETTINGS = {
    "compilation-config": "CompilationConfig",
    "speculative-config": "SpeculativeConfig",
    "kv-transfer-config": "KVTransferConfig",
    "kv-events-config": "KVEventsConfig",
    "ec-transfer-config": "ECTransferConfig",
    "eplb-config": "EPLBConfig",
    "structured-outputs-config": "StructuredOutputsConfig",
    "attention-config": "AttentionConfig",
    "kernel-config": "KernelConfig",
    "profiler-config": "ProfilerConfig",
    "pooler-config": "PoolerConfig",
    "reasoning-config": "ReasoningConfig",
}
"""Flags that take a mapping, and the class of vLLM whose fields it has."""


def settings(flags: Container[str]) -> dict[str, dict[str, Any]]:
    """Return the fields inside the flags that take a mapping, by name (dotted in a section): see `_kind`."""
    module = importlib.import_module("vllm.config")
    return {flag: fields_of(getattr(module, name)) for flag, name in SETTINGS.items() if flag in flags}


def fields_of(cls: type, prefix: str = "") -> dict[str, Any]:
    """Return the fields of a config class that one may give, and those of the config classes that they hold."""
    found: dict[str, Any] = {}
    given = [one for one in dataclasses.fields(cls) if one.init] if dataclasses.is_dataclass(cls) else []
    for name in [one.name for one in given] or list(getattr(cls, "model_fields", ())):
        if name.startswith("_"):
            continue
        note = note_of(cls, name)
        kind, limit = _kind(note), limits_of(cls, name)
        if cls.__name__ in CONVERTED:
            kind = None
        kind = re.sub(r"\b(int|float)\b", rf"\1{limit}", kind) if isinstance(kind, str) else kind
        found[prefix + name] = kind
        for part in (note, *typing.get_args(note)):
            if _is_config(part) and kind is not None:
                found |= fields_of(part, f"{prefix}{name}.")
    return found


def note_of(cls: type, name: str) -> Any:
    """Return the type hint of a field; Any where it has a name that is there for the type checker alone."""
    scope = dict(vars(sys.modules[cls.__module__]))
    for base in cls.__mro__:
        if name in (notes := vars(base).get("__annotations__", {})):
            with contextlib.suppress(Exception):
                return eval(notes[name], scope) if isinstance(notes[name], str) else notes[name]
    return Any


def _is_config(note: Any) -> bool:
    return isinstance(note, type) and (
        dataclasses.is_dataclass(note) or isinstance(getattr(note, "model_fields", None), dict)
    )


PLAIN = {bool: "bool", int: "int", float: "float", str: "str", Path: "str", type(None): "null", list: "list",
         dict: "mapping"}  # fmt: skip


def _kind(note: Any) -> Any:
    """Return what a value must be: a type, "int | null" for one of several, "list[int]", "mapping", "section" for the
    fields of a further class; the list of its only values; None: anything, or it is not checked."""
    origin, parts = typing.get_origin(note), typing.get_args(note)
    if origin is typing.Annotated:
        skips = any("SkipValidation" in (type(one).__name__, getattr(one, "__name__", "")) for one in parts[1:])
        return None if skips else _kind(parts[0])
    if origin is typing.Literal:
        return [part for part in parts if part is None or isinstance(part, str | int)]
    if origin in (typing.Union, types.UnionType):
        return _one_of([_kind(part) for part in parts])
    if origin in (list, tuple, set):
        inner = _kind(parts[0])
        return f"list[{inner}]" if isinstance(inner, str) else "list"
    if origin is dict:
        return "mapping"
    if _is_config(note):
        return "section"
    if isinstance(note, type) and issubclass(note, enum.Enum):
        return [one.value if isinstance(one.value, str) else one.name for one in note]
    return PLAIN.get(note) if isinstance(note, type) else None


def _one_of(kinds: list[Any]) -> Any:
    """Return the kind that is one of several; values that are a text among others are any text."""
    if None in kinds or not any(isinstance(kind, list) for kind in kinds):
        return None if None in kinds else " | ".join(kinds)
    named = [kind for kind in kinds if isinstance(kind, str)]
    if set(named) <= {"null"}:
        values = [value for kind in kinds if isinstance(kind, list) for value in kind]
        return [*values, None] if named else values
    return " | ".join(named) if "str" in named else None


def main() -> None:
    """Print as JSON what the modules in the folder on the command line accept."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="the .py files of a vllm and a vllm-ascend wheel, unpacked")
    json.dump(read(options.parse_args().folder), sys.stdout)


if __name__ == "__main__":
    main()
