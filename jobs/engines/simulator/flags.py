"""The command line of `vllm serve`, as the chosen release reads it.

Rules of vLLM's FlexibleArgumentParser (vllm/utils.py, 0.9.1): dashes and underscores are the same in names,
`-O3` is `-O 3`, and `--flag.a.b value` builds the JSON value of `--flag`. The flags are data (jobs/engines/ascend).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs.engines.ascend import Flag, Release

Convert = Callable[[str], Any]
_SIZES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


class UsageError(Exception):
    """What vLLM raises itself, outside argparse, for a command line that it will not take."""


def _human_int(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG])", text.strip())
    if not match:
        return int(text)
    number, suffix = match.groups()
    if suffix.isupper() and "." in number:
        raise argparse.ArgumentTypeError(
            f"Decimals are not allowed with binary suffixes like {suffix}. Did you mean to use "
            f"{number}{suffix.lower()} instead?"
        )
    return int(float(number) * _SIZES[suffix])


_human_int.__name__ = "human_readable_int"  # argparse puts the name into its error


def _human_int_or_auto(text: str) -> int:
    """`--max-model-len auto` of later releases: vLLM's own -1."""
    return -1 if text.strip().lower() in ("-1", "auto") else _human_int(text)


def _json(text: str) -> Any:
    return json.loads(text)


_json.__name__ = "loads"


def _pairs(text: str) -> dict[str, int]:
    out: dict[str, int] = {}
    for item in text.split(","):
        parts = [part.lower().strip() for part in item.split("=")]
        if len(parts) != 2:
            raise argparse.ArgumentTypeError("Each item should be in the form KEY=VALUE")
        key, value = parts
        try:
            out[key] = int(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"Failed to parse value of item {key}={value}") from None
    return out


def _cast(convert: Convert, name: str) -> Convert:
    """Return `convert` with the error text of arg_utils.parse_type."""

    def cast(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"Value {text} cannot be converted to {name}.") from None

    return cast


def _json_or(other: Convert) -> Convert:
    return lambda text: _cast(_json, "JSON")(text) if re.match("^{.*}$", text) else other(text)


def _config(text: str) -> Any:
    if text in ("0", "1", "2", "3"):  # the levels of --compilation-config
        return {"level": int(text)}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"Invalid JSON: {error} [input_value={text!r}]") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"Input should be a dictionary [input_value={text!r}]")
    return value


_PLAIN: Mapping[str, Convert] = {
    "str": str,
    "int": int,
    "float": float,
    "json": _json,
    "bool": bool,
    "lower-snake": lambda text: text.lower().replace("-", "_"),
    "human-int": _human_int,
    "human-int-or-auto": _human_int_or_auto,
    "json-or-pairs": _json_or(_pairs),
    "json-or-str": _json_or(str),
    "config": _config,
}


def converter(name: str) -> Convert:
    """Return what turns the text of a value into the value, by the type's name in releases/*.yaml."""
    if not name.startswith("optional-"):
        return _PLAIN[name]
    inner = name.removeprefix("optional-")
    convert = _cast(_PLAIN[inner], f"<class {inner!r}>") if inner in ("int", "float") else _PLAIN[inner]
    return lambda text: None if text in ("", "None") else convert(text)


def _put(tree: dict[str, Any], keys: Sequence[str], value: str) -> None:
    *path, last = keys
    for key in path:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[last] = value


def _with_config_file(argv: Sequence[str]) -> list[str]:
    """Put the flags of the file of `--config` behind the model, where later flags of the same name win."""
    if "--config" not in argv:
        return list(argv)
    at = argv.index("--config")
    if at + 1 == len(argv):
        raise UsageError("ValueError: No config file specified! Please check your command-line arguments.")
    try:
        values = yaml.safe_load(Path(argv[at + 1]).read_text())
    except OSError as error:
        raise UsageError(f"{type(error).__name__}: {error}") from None
    given: list[str] = []
    for key, value in values.items():
        given += ([f"--{key}"] if value else []) if isinstance(value, bool) else [f"--{key}", str(value)]
    first = 2 if not argv[1].startswith("-") else 1
    return [*argv[:first], *given, *argv[first:at], *argv[at + 2 :]]


def normalise(argv: Sequence[str]) -> list[str]:
    """Return `argv` as FlexibleArgumentParser hands it to argparse.

    Raises:
        UsageError: a dotted flag at the end has no value; the file of --config is missing.
    """
    words: list[str] = []
    for word in _with_config_file(argv):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            head, dot, tail = name[2:].partition(".")
            words.append("--" + head.replace("_", "-") + dot + tail + equals + value)
        elif re.fullmatch("-O.", word):
            words += ["-O", word[2]]
        else:
            words.append(word)
    plain: list[str] = []
    nested: dict[str, dict[str, Any]] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not (name.startswith("--") and "." in name):
            plain.append(word)
            continue
        if not equals:
            found = next(rest, None)
            if found is None:
                raise UsageError("IndexError: list index out of range")
            value = found
        flag, *keys = name.split(".")
        _put(nested.setdefault(flag, {}), keys, value)
    for flag, values in nested.items():
        plain += [flag, json.dumps(values)]
    return plain


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


def build_parser(release: Release) -> argparse.ArgumentParser:
    """Return the parser of `vllm` with its verb `serve`; its errors are argparse's, with exit code 2."""
    main = argparse.ArgumentParser(prog="vllm", description="vLLM CLI", allow_abbrev=release.abbreviations)
    main.add_argument("-v", "--version", action="version", version=release.name)
    verbs = main.add_subparsers(dest="subparser", required=True)
    serve = verbs.add_parser("serve", usage="vllm serve [model_tag] [options]", allow_abbrev=release.abbreviations)
    serve.add_argument("model_tag", nargs="?", help="the model to serve")
    for name, flag in release.flags.items():
        _add(serve, name, flag)
    return main


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
        UsageError: what vLLM answers with an exception of its own.
        SystemExit: code 2, for what argparse refuses; its text is on stderr.
    """
    if argv[:1] == ["serve"] and "--model" in argv:
        raise UsageError(
            "ValueError: With `vllm serve`, you should provide the model as a positional argument or in a "
            "config file instead of via the `--model` option."
        )
    words = normalise(argv)
    if "optimization-level" in release.flags:  # -O meant the whole compilation config before
        words = ["--optimization-level" if word == "-O" else word for word in words]
    args = build_parser(release).parse_args(words)
    if args.model_tag is not None:
        args.model = args.model_tag
    defaults = {name.replace("-", "_"): flag for name, flag in release.flags.items()}
    changed = {name: getattr(args, name) for name, flag in defaults.items() if getattr(args, name) != flag.default}
    return CommandLine(args, changed, tuple(name for name in changed if defaults[name].deprecated))
