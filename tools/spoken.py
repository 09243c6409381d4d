"""What people read, as templates: `{}` is what is filled in. `python tools/spoken.py`

Printed as JSON: what `jobs/core/chinese.json` lacks; on standard error: what it has for nothing. Read from the source:
whatever is handed to a parameter named `reason` or `remedy`, the texts of commands, keys and files, and whatever looks
like words for people in the rooms that print, or give a row its notes and its reason.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import jobs.__main__
from jobs.__main__ import commands
from jobs.cli import JSON, MODEL
from jobs.core import chinese, schema
from jobs.core.filetable import files_of
from jobs.core.rundir import FOLDERS
from jobs.diagnose import classify, endings, unpack
from jobs.diagnose.diagnosis import ANSWERS, Diagnosis
from jobs.diagnose.signatures import SLOT
from jobs.engines.vllm import command
from jobs.forecast import memory

ROOT = Path(__file__).resolve().parents[1]
SPOKEN = ("reason", "remedy")
"""Parameters, and fields of dataclasses, whose values people read."""

_ARGPARSE = (
    *("usage: ", "positional arguments", "options", "show this help message and exit", "unrecognized arguments: %s"),
    *("the following arguments are required: %s", "invalid choice: %(value)r (choose from %(choices)s)"),
    *("argument %(argument_name)s: %(message)s", "expected one argument", "expected at least one argument"),
    "%(prog)s: error: %(message)s\n",
)
"""Its own words, by which it asks gettext for a translation."""

_WORDS = re.compile(r"[A-Za-z]{2}.* |^[A-Za-z]{3,}\W*$|^ \(\)$")
_WORD = re.compile(r"[A-Za-z]{2,}")
_PATTERN = re.compile(r"^\S+$|\(\?|\\[bsdw]|\[\^|\.\{0,")
_FOR_MACHINES = (
    "regex",
    "example",
    "find",
    "quick",
    "source",
    "id",
    "kind",
    "phase",
    "over",
    "within",
    "gives_way",
    "early",
)
_TYPED = re.compile(r"(sysctl|echo) ")
"""Commands to type, which are the same in each language."""

_PYDANTIC = (
    *("Input should be {}", "Input should be a valid {}", "Input should be a valid {}, {}", "Field required"),
    *("Input should be {} than {}", "Input should be {} than or equal to {}", "greater", "less", "integer", "number"),
    *("string", "boolean", "list", "dictionary", "tuple", "unable to parse string as an integer"),
    *("unable to parse string as a number", "got a number with a fractional part", "unable to interpret input"),
)
"""Messages of the checked types."""

_ROOMS = ("cli", "sweep", "results", "forecast", "measure", "allocation", "cluster", "core", "engines/checkpoint")
_ROOMS += ("engines/ascend/rules", "engines/vllm")
_FILES = (
    "engines/ascend/memory",
    "engines/ascend/weights",
    "engines/prediction",
    "engines/simulator/backend",
)
"""Rooms and modules of jobs/ whose words people read: in what is printed, or in a row."""

_APART = (
    *("measure/bodies", "measure/needle", "measure/clients/ais_bench", "core/session", "core/masking"),
    "allocation/preflight/hccn",
)
"""Modules in them whose words models and programs read."""

_INNER = {"log", "info", "warning", "compile", "fullmatch", "search", "match", "sub", "Literal", "Command", "count"}
_INNER |= {"removeprefix", "removesuffix", "startswith", "endswith", "partition", "rpartition"}
"""Calls whose texts are not said: logs of ranks stay English, and of others people read what comes of them."""

_FOR_PEOPLE = re.compile(r"[a-z]{2,}'?[,:]? \(?[A-Za-z]{2,}|^[a-z_-]{3,}(\{\})?:? \{\}|\bto \{\}|\{\} [a-z]{3,}\b")
_NOT_FOR_PEOPLE = re.compile(
    r"[\\$<>|`\[\]]|^#|://|^[\w.]+=\S*$|^--|%\(|[A-Z][a-z]+-[A-Z]|: auto$|^\{\} and \{\}$|^and \w+$|潮"
    r"|^(source|export|:root|default-src|bold) ?|^vllm(-ascend)?[ ,]|^CANN 8.5.0, |^python -m|^to the (head|rank)$"
)

_STATES = (
    *("valid", "invalid", "running", "waiting", "measured", "forecast", "setting", "check", "pass", "FAIL", "warn"),
    *("better", "worse", "ahead", "behind", "lower", "higher", "windows", "starts", "replica", "model", "tunnel"),
    *("try", "fits", "good", "limits", "budget", "answers", "prompts", "activations", "attention", "warning"),
    *("error", "before", "after", "staging", "staged", "loading", "rendezvous", "healthy", "ready", "canary"),
    *("quality", "warm", "measuring", "drain", "draining", "done", "failed", "pending", "completed", "cancelled"),
    *("timeout", "base URL", "API key", "environment {} = {}", "argument {} = {}"),
)
"""Single words that stand for themselves in what is printed."""

_Names = dict[str, list[ast.expr]]
"""What is assigned to each name."""

_DEEPEST = 4
_MOST = 12
"""Variants of one text: a sum of many choices is no text that somebody wrote as a whole."""


def templates() -> set[str]:
    """Return all of them."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for room in ("jobs", "containers")
        for path in (ROOT / room).rglob("*.py")
    ]
    taking: dict[str, set[tuple[str, int]]] = {
        name: {("reason", 2), ("remedy", 3)} for name in ("ConfigError", "RunError", "UserError")
    }
    for tree in trees:
        for name, places in _taking(tree):
            taking.setdefault(name, set()).update(places.items())
    returns: dict[str, list[_Names]] = {}
    for tree in trees:
        for name, names in _returned(tree):
            returns.setdefault(name, []).append(names)
    found = {text for tree in trees for text in _Module(tree, taking, returns).texts()}
    found = {text.removeprefix("; ") for text in found} | set(_help())
    return {text for text in found if _WORDS.search(text.replace("{}", "")) and not _TYPED.match(text)}


def printed() -> set[str]:
    """Return what looks like words for people where people read the words, in the pieces in which it is looked up."""
    files = [path for room in _ROOMS for path in (ROOT / "jobs" / room).rglob("*.py")]
    files += [ROOT / "jobs" / f"{name}.py" for name in _FILES]
    apart = {ROOT / "jobs" / f"{name}.py" for name in _APART}
    texts = {text for path in files if path not in apart for text in _words(ast.parse(path.read_text("utf-8")))}
    found = {piece for text in texts for piece in _pieces(text)}
    return {one for one in found if _FOR_PEOPLE.search(one) and not _NOT_FOR_PEOPLE.search(one)} | set(_STATES)


def _words(node: ast.AST) -> Iterator[str]:
    """Yield the literal texts below a node; docstrings and what goes to `_INNER` apart."""
    match node:
        case ast.Call(args=[_, ast.Constant(value=str(noun))]) if _name(node) == "count":
            yield f"{{}} {noun}{{}}"
        case ast.Call() if _name(node) in _INNER:
            return
        case ast.Expr(value=ast.Constant()) | ast.Subscript(slice=ast.Constant()) | ast.Compare():
            return
        case ast.Constant(value=str(text)):
            yield re.sub(r"\{\{(:[^{}]*)?\}\}", "{}", _literal(text))  # that of `format`
        case ast.JoinedStr(values=parts):
            yield "".join(_literal(one.value) if isinstance(one, ast.Constant) else "{}" for one in parts)
            yield from (text for one in parts if isinstance(one, ast.FormattedValue) for text in _words(one.value))
        case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body):
            yield from (text for one in body for text in _words(one))
        case _:
            yield from (text for one in ast.iter_child_nodes(node) for text in _words(one))


def _pieces(text: str) -> Iterator[str]:
    """Yield the cells of the lines of a text, without the sign that binds them to what stands before or after."""
    for cell in re.split(r"\n|  +", re.sub(r"(?<=\w): $", ": {}", text)):
        one = re.sub(r"^[,;:] ", "", cell.strip())
        one = re.sub(r"^\(([^()]*)\)$", r"\1", one)
        yield one if "{}" in one else one.rstrip(",;:")


def diagnoses() -> set[str]:
    """Return what the diagnosis of logs says, of its tables; a slot is a place."""
    found: set[str] = {
        *chinese.LABELS,
        *ANSWERS.values(),
        *endings.TOLD,
        *classify.TOLD,
        *unpack.TOLD,
        "yes, once",
        "no",
        Diagnosis(False).cause,
        Diagnosis(False).remedy,
    }
    for name in ("signatures", "places", "codes"):
        told = yaml.safe_load((ROOT / "jobs" / "diagnose" / f"{name}.yaml").read_text(encoding="utf-8"))
        found |= {_literal(SLOT.sub("\0", text)).replace("\0", "{}") for text in _told(told)}
    return found


def _told(value: Any) -> Iterator[str]:
    """Yield the sentences in a table, those for machines apart."""
    if isinstance(value, dict):
        yield from (text for key, one in value.items() if key not in _FOR_MACHINES for text in _told(one))
    elif isinstance(value, list):
        yield from (text for one in value for text in _told(one))
    elif isinstance(value, str) and len(_WORD.findall(value)) > 1 and not _PATTERN.search(value):
        yield value


def _help() -> Iterator[str]:
    yield from (*_ARGPARSE, *_PYDANTIC, *memory.SPOKEN, "{} ({})", jobs.__main__.__doc__ or "", JSON, MODEL)
    for one in commands():
        yield _literal(one.help)
        yield from (_literal(options["help"]) for _, options in one.arguments if options.get("help"))
    yield from (_literal(schema.own_help(key)) for key in schema.names())
    kinds = {schema.type_of(key) for key in schema.names()}
    yield from (one for one in kinds if one.startswith(("number", "whole number", "text", "true", "list", "mapping")))
    moves = yaml.safe_load((ROOT / "jobs" / "engines" / "ascend" / "moves.yaml").read_text(encoding="utf-8"))
    yield from (_literal(move["reason"]) for kind in ("flags", "keys", "variables") for move in moves[kind].values())
    yield from map(_literal, command.OWNED.values())
    yield from (_literal(file.holds) for folder in FOLDERS.values() for file in files_of(folder))


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _taking(tree: ast.AST) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield what takes a spoken parameter, by its name, with the places of these parameters in a call."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [one.arg for one in (*node.args.posonlyargs, *node.args.args) if one.arg not in ("self", "cls")]
            names += [one.arg for one in node.args.kwonlyargs]
        elif isinstance(node, ast.ClassDef):
            names = [
                one.target.id
                for one in node.body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            ]
        if places := {name: names.index(name) for name in SPOKEN if name in names}:
            yield node.name, places  # type: ignore[attr-defined]


class _Module:
    """The spoken texts of one module."""

    def __init__(
        self, tree: ast.Module, taking: Mapping[str, set[tuple[str, int]]], returns: Mapping[str, list[_Names]]
    ) -> None:
        self._tree, self._taking, self._returns = tree, taking, returns
        self._globals = _assigned(tree.body)

    def texts(self) -> Iterator[str]:
        yield from self._inside(self._tree, {})

    def _inside(self, node: ast.AST, names: _Names) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            known = names
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                known = {**names, **_assigned(ast.walk(child))}
            if isinstance(child, ast.Call):
                for given in self._spoken(child):
                    yield from self._of(given, known, _DEEPEST)
                    yield from self._filled_in(given, known)
            yield from self._inside(child, known)

    def _spoken(self, call: ast.Call) -> Iterator[ast.expr]:
        for parameter, place in self._taking.get(_name(call), ()):
            given = next((one.value for one in call.keywords if one.arg == parameter), None)
            starred = [one.value for one in call.args if isinstance(one, ast.Starred)]
            yield from starred
            if given is None and place < len(call.args) and not starred:
                given = call.args[place]
            if given is not None:
                yield given

    def _filled_in(self, node: ast.expr, names: _Names, depth: int = _DEEPEST) -> Iterator[str]:
        """Yield what may stand in the places of a text, where it is a text itself."""
        sources = [(one, names) for one in names.get(node.id, ())] if isinstance(node, ast.Name) else []
        if isinstance(node, ast.Call):
            sources = [(one, inner) for inner in self._returns.get(_name(node), ()) for one in inner[""]]
        if depth:
            for one, known in sources:
                yield from self._filled_in(one, known, depth - 1)
        for place in ast.walk(node):
            if isinstance(place, ast.FormattedValue):
                yield from self._of(place.value, names, depth)

    def _of(self, node: ast.expr, names: _Names, depth: int) -> list[str]:
        """Return the templates that an expression may come to; `{}` for what cannot be told."""

        def of(one: ast.expr) -> list[str]:
            return self._of(one, names, depth - 1)

        match node:
            case ast.Constant(value=str(text)):
                return [_literal(text)]
            case ast.JoinedStr(values=parts):
                return ["".join(_literal(one.value) if isinstance(one, ast.Constant) else "{}" for one in parts)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return ["".join(pair) for pair in itertools.product(of(left), of(right))][:_MOST]
            case ast.IfExp(body=one, orelse=other):
                return of(one) + of(other)
            case ast.BoolOp(values=values):
                return [text for one in values for text in of(one)]
            case ast.Dict(values=values) | ast.Tuple(elts=values) | ast.List(elts=values):
                return [text for one in values for text in of(one)]
            case ast.Subscript(value=value) if depth:
                return of(value)
            case ast.Name(id=name) if depth:
                known = names.get(name) or self._globals.get(name) or []
                return [text for one in known for text in of(one)] or ["{}"]
            case ast.Call() if depth:
                found = self._returns.get(_name(node), ())
                said = [self._of(one, inner, depth - 1) for inner in found for one in inner[""]]
                return [*itertools.chain(*said)] or ["{}"]
        return ["{}"]


def _name(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _returned(tree: ast.Module) -> Iterator[tuple[str, _Names]]:
    """Yield each function that returns text, with its names; under the empty name what it returns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "str" in ast.unparse(node.returns or node.args):
            returned = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
            yield node.name, {**_assigned(tree.body), **_assigned(ast.walk(node)), "": returned}


def _assigned(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    """Return what is assigned to each name."""
    found: dict[str, list[ast.expr]] = {}

    def note(target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Name) and value is not None:
            found.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, its in zip(target.elts, value.elts, strict=True):
                note(one, its)

    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                note(target, node.value)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            note(node.target, node.value)
    return found


def main() -> None:
    """Print what is not translated."""
    for asked, known in ((templates() | printed(), chinese.OURS.texts), (diagnoses(), chinese.DIAGNOSES.texts)):
        print(json.dumps(dict.fromkeys(sorted(asked - set(known)), ""), ensure_ascii=False, indent=0))
        for text in sorted(set(known) - asked):
            print(f"nobody says this: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
