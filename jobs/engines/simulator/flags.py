"""The command line of `vllm serve`, as the chosen release reads it: argparse, with the flags of jobs/engines/ascend."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.engines.ascend import Flag, Release

Convert = Callable[[str], Any]
_SIZES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def _human_int(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kmgKMG])|(\d+\.\d+)([kmg])", text.strip())  # no decimals of binary sizes
    if not match:
        return int(text)
    return int(float(match[1] or match[3]) * _SIZES[match[2] or match[4]])


_human_int.__name__ = "human_readable_int"  # argparse puts the name into its error


def _human_int_or_auto(text: str) -> int:
    """`--max-model-len auto` of later releases: vLLM's own -1."""
    return -1 if text.strip().lower() in ("-1", "auto") else _human_int(text)


def _json_or_text(text: str) -> Any:
    return json.loads(text) if re.match("^{.*}$", text) else text


def _config(text: str) -> Any:
    value = json.loads(text)
    if not isinstance(value, dict | int):  # a number is a level of --compilation-config
        raise ValueError
    return value


_PLAIN: Mapping[str, Convert] = {
    "str": str,
    "int": int,
    "float": float,
    "json": json.loads,
    "bool": bool,
    "lower-snake": lambda text: text.lower().replace("-", "_"),
    "human-int": _human_int,
    "human-int-or-auto": _human_int_or_auto,
    "json-or-pairs": _json_or_text,
    "json-or-str": _json_or_text,
    "config": _config,
}


def converter(name: str) -> Convert:
    """Return what turns the text of a value into the value, by the type's name in releases/*.yaml."""
    if not name.startswith("optional-"):
        return _PLAIN[name]
    convert = _PLAIN[name.removeprefix("optional-")]

    def optional(text: str) -> Any:
        return None if text in ("", "None") else convert(text)

    optional.__name__ = convert.__name__
    return optional


def _add(parser: argparse.ArgumentParser, name: str, flag: Flag) -> None:
    kwargs: dict[str, Any] = {"default": flag.default}
    if flag.action == "store_true":
        kwargs["action"] = "store_true"
    elif flag.action == "boolean":
        kwargs["action"] = argparse.BooleanOptionalAction
    else:
        given = {"nargs": flag.nargs, "const": flag.const, "choices": flag.choices}
        kwargs |= {key: value for key, value in given.items() if value is not None}
        kwargs |= {"type": converter(flag.type or "str"), "action": flag.action}
    parser.add_argument(f"--{name}", *flag.aliases, **kwargs)


@dataclass(frozen=True)
class CommandLine:
    """A command line that was accepted.

    Attributes:
        args: all values.
        changed: those that differ from their defaults (vLLM logs them as "non-default args").
        deprecated: names of the flags given that vLLM warns about.
    """

    args: argparse.Namespace
    changed: Mapping[str, Any]
    deprecated: tuple[str, ...]


def parse(argv: Sequence[str], release: Release) -> CommandLine:
    """Read a command line that begins with `serve`.

    Raises:
        SystemExit: code 2, for what argparse refuses; its text is on stderr.
    """
    main = argparse.ArgumentParser(prog="vllm", allow_abbrev=release.abbreviations)
    commands = main.add_subparsers(dest="subparser", required=True)
    serve = commands.add_parser("serve", usage="vllm serve [model_tag] [options]", allow_abbrev=release.abbreviations)
    serve.add_argument("model_tag", help="the model to serve")
    for name, flag in release.flags.items():
        _add(serve, name, flag)
    args = main.parse_args(argv)
    args.model = args.model_tag
    defaults = {name.replace("-", "_"): flag for name, flag in release.flags.items()}
    changed = {name: getattr(args, name) for name, flag in defaults.items() if getattr(args, name) != flag.default}
    return CommandLine(args, changed, tuple(name for name in changed if defaults[name].deprecated))
