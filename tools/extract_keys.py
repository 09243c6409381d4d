"""What a vllm-ascend release reads beside its flags: `additional_config` keys and variables. For maintainers.

Everything is read from the source text (ast); nothing of the release is imported or run. `extract_release.py`
uses this. Up to 0.26 vllm-ascend asks for its keys by plain `dict.get`, so what is asked for is all that is accepted;
from 0.27.1 on they are the typed fields of a config class, which refuses others.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

WHOLE = "additional_config"

Function = ast.FunctionDef


def trees(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Yield every module below `root` with its path from there, sorted."""
    for path in sorted(root.rglob("*.py")):
        yield str(path.relative_to(root)), ast.parse(path.read_bytes())


def text_of(node: ast.expr | None) -> str | None:
    """Return the text of a string literal; None for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def name_of(node: ast.AST) -> str:
    """Return the last word of a name: `x` and `a.b.x` are x."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def asked(node: ast.AST) -> tuple[ast.expr, str] | None:
    """Return (mapping, key) where `node` is `m.get(key)`, `m.setdefault(key)`, `m[key]` or `key in m`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        key = text_of(node.args[0])
        return (node.func.value, key) if key and node.func.attr in ("get", "setdefault") else None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        key = text_of(node.slice)
        return (node.value, key) if key else None
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
        key = text_of(node.left)
        return (node.comparators[0], key) if key else None
    return None


def keys_asked_of(name: str, scope: ast.AST) -> set[str]:
    """Return the keys that are asked of the mapping called `name` inside `scope`."""
    found = (asked(node) for node in ast.walk(scope))
    return {key for mapping, key in filter(None, found) if name_of(mapping) == name}


def config_key(node: ast.AST) -> tuple[str, str] | None:
    """Return (key, variable) of `_get_config_value(additional_config, key, variable, ...)`."""
    if not (isinstance(node, ast.Call) and name_of(node.func) == "_get_config_value" and len(node.args) >= 3):
        return None
    key, variable = text_of(node.args[1]), text_of(node.args[2])
    return (key, variable) if key and variable else None


@functools.cache
def _functions(tree: ast.Module) -> dict[str, Function]:
    """Return what can be called in a module: methods by their name, classes by their `__init__`."""
    found: dict[str, Function] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    found[node.name] = item
    return found


def _defaults(tree: ast.Module, name: str) -> set[str]:
    """Return the keys of `_defaults` of a class: a section that is compared with it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            for item in node.body:
                if isinstance(item, ast.Assign) and name_of(item.targets[0]) == "_defaults":
                    assert isinstance(item.value, ast.Dict)
                    return {key for key in map(text_of, item.value.keys) if key}
    return set()


def _is_open(name: str, function: Function) -> bool:
    """Tell whether every key of the mapping is taken over (`for k, v in m.items(): setattr(self, k, v)`)."""
    loops = [node for node in ast.walk(function) if isinstance(node, ast.For)]
    return any(f"{name}.items()" in ast.unparse(loop.iter) and "setattr" in ast.unparse(loop) for loop in loops)


def _section(call: ast.Call, variable: str, tree: ast.Module) -> dict[str, Any] | None:
    """Return what the class or method that gets a section's mapping asks of it; None: it does not get it."""
    function = _functions(tree).get(name_of(call.func))
    if function is None:
        return None
    names = [argument.arg for argument in function.args.args if argument.arg != "self"]
    if any(word.arg is None and name_of(word.value) == variable for word in call.keywords):
        keys = set(names)
        if function.args.kwarg:
            keys |= keys_asked_of(function.args.kwarg.arg, function)
        return {"keys": sorted(keys), "unknown": "ignored"}
    for parameter, argument in zip(names, call.args, strict=False):
        if name_of(argument) == variable or variable in {k for _, k in filter(None, map(asked, ast.walk(argument)))}:
            defaults = _defaults(tree, name_of(call.func))
            keys = defaults | keys_asked_of(parameter, function)
            unknown = "error" if defaults else "accepted" if _is_open(parameter, function) else "ignored"
            return {"keys": sorted(keys), "unknown": unknown}
    return None


def sections(tree: ast.Module) -> dict[str, dict[str, Any]]:
    """Return the sections of `additional_config` that ascend_config.py hands to a class or method of its own."""
    found: dict[str, dict[str, Any]] = {}
    calls = [item for item in ast.walk(tree) if isinstance(item, ast.Call)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and (question := asked(node.value)) and name_of(question[0]) == WHOLE:
            variable, key = name_of(node.targets[0]), question[1]
        elif isinstance(node, ast.Call):
            inner = [q for argument in node.args for q in [asked(argument)] if q and name_of(q[0]) == WHOLE]
            if not inner:
                continue
            variable = key = inner[0][1]
        else:
            continue
        for call in calls:
            if (section := _section(call, variable, tree)) and (section["keys"]):
                found[key] = section
    return found


def additional_config(root: Path) -> dict[str, dict[str, Any]]:
    """Return every key of `additional_config` that the package asks for.

    Returns:
        key -> source (file of the package); for a section also `keys` and what happens to an unknown one
        (`unknown`: error, ignored, accepted).
    """
    found: dict[str, dict[str, Any]] = {}
    nested: dict[str, set[str]] = {}
    for path, tree in trees(root):
        keys = keys_asked_of(WHOLE, tree)
        keys |= {pair[0] for pair in map(config_key, ast.walk(tree)) if pair}
        for key in keys:
            if key not in found or path == "ascend_config.py":
                found[key] = {"source": path}
        for node in ast.walk(tree):
            if (outer := asked(node)) and (inner := asked(outer[0])) and name_of(inner[0]) == WHOLE:
                nested.setdefault(inner[1], set()).add(outer[1])
        if path == "ascend_config.py":
            for key, section in sections(tree).items():
                found.setdefault(key, {"source": path}).update(section)
    for key, names in nested.items():
        if "keys" in found.get(key, {}):
            found[key]["keys"] = sorted({*found[key]["keys"], *names})
    return dict(sorted((typed(root) or found).items()))


FACTORY = "ascend_config.py"
TYPES = ("bool", "int", "float", "str")

Fields = dict[str, str]
"""Name of a field -> its annotation, as text."""


def config_classes(tree: ast.Module) -> dict[str, Fields]:
    """Return the classes of a module and the fields that they declare, without private and class variables."""
    found: dict[str, Fields] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            items = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            texts = {name_of(item.target): ast.unparse(item.annotation) for item in items if _is_given(item)}
            found[node.name] = {k: v for k, v in texts.items() if not k.startswith("_") and "ClassVar" not in v}
    return found


def _is_given(item: ast.AnnAssign) -> bool:
    """Whether a field can be given: one with `init=False` cannot."""
    words = item.value.keywords if isinstance(item.value, ast.Call) else []
    return not any(word.arg == "init" and ast.unparse(word.value) == "False" for word in words)


def _types(classes: dict[str, Fields], name: str) -> dict[str, Any]:
    """Return the fields of a class with their types; a class in place of a type is its fields."""
    return {field: _type(classes, text) for field, text in classes[name].items()}


def _type(classes: dict[str, Fields], text: str) -> Any:
    """Return a type as the data has it: its word, the list of its only values, the fields of a section, or None."""
    if text in classes:
        return _types(classes, text)
    if text.startswith("Literal["):
        return list(ast.literal_eval(text.removeprefix("Literal").replace("[", "(", 1)[:-1] + ",)"))
    word = text.removesuffix(" | None")
    return word if word in TYPES else None


def typed(root: Path) -> dict[str, dict[str, Any]]:
    """Return the keys of a release whose AscendConfig is a class with typed fields; empty where it is not.

    Its factory takes some fields out of the mapping before the class sees it (`_NON_USER_INPUT_KEYS`): those that it
    asks for itself are keys, the others are results that nobody can give.
    """
    tree = ast.parse((root / FACTORY).read_bytes())
    classes = config_classes(tree)
    if len(classes.get("AscendConfig", ())) < 10:
        return {}
    taken: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and name_of(node.targets[0]) == "_NON_USER_INPUT_KEYS":
            taken = set(ast.literal_eval(node.value))
    found = {name: kind for name, kind in _types(classes, "AscendConfig").items() if name not in taken}
    found |= dict.fromkeys(sorted(keys_asked_of(WHOLE, tree) - set(found)))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        keys = {key for mapping, key in filter(None, map(asked, call.args)) if name_of(mapping) == WHOLE}
        if name_of(call.func) == "validate_additional_config_bool":
            found |= dict.fromkeys(keys & set(found), "bool")
        if isinstance(call.func, ast.Attribute) and (owner := name_of(call.func.value)) in classes:
            found |= dict.fromkeys(keys & set(found), _types(classes, owner))
    if "SchedulerConfig" in classes:
        whole = _types(classes, "SchedulerConfig")
        found |= {"scheduler_config": whole} | {name: kind for name, kind in whole.items() if name in taken}
    return {name: _key(kind) for name, kind in found.items()}


def _key(kind: Any) -> dict[str, Any]:
    if isinstance(kind, dict):
        inner = dict(_flat(kind))
        return {
            "source": FACTORY,
            "keys": sorted(inner),
            "types": {k: v for k, v in inner.items() if v},
            "unknown": "error",
        }
    return {"source": FACTORY} | ({"type": kind} if kind else {})


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a section; those of a section inside it are dotted."""
    for name, kind in section.items():
        yield prefix + name, ("section" if isinstance(kind, dict) else kind)
        if isinstance(kind, dict):
            yield from _flat(kind, f"{prefix}{name}.")


def variables(module: ast.Module) -> dict[str, str | None]:
    """Return the variables of a package's envs.py with their defaults as text; None: unset or computed."""
    for node in ast.walk(module):
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if name_of(target or ast.Pass()) in ("env_variables", "environment_variables"):
            assert isinstance(node, ast.AnnAssign)
            assert isinstance(node.value, ast.Dict)
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {name: _default(value, name) for key, value in pairs if (name := text_of(key))}
    return {}


def _default(value: ast.expr, name: str) -> str | None:
    for node in ast.walk(value):
        if isinstance(node, ast.Call) and len(node.args) == 2 and text_of(node.args[0]) == name:
            default = node.args[1]
            if isinstance(default, ast.Constant) and default.value is not None:
                return str(default.value)
    return None


def read_elsewhere(root: Path, known: Sequence[str]) -> list[str]:
    """Return further variables that the package asks `os.environ` or `os.getenv` for by a literal name."""
    found: set[str] = set()
    for _, tree in trees(root):
        found |= keys_asked_of("environ", tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and name_of(node.func) == "getenv" and node.args:
                found |= {name for name in [text_of(node.args[0])] if name}
    return sorted(found - set(known))


def keys_of_variables(root: Path) -> Mapping[str, str]:
    """Return the variables that have a key of `additional_config` in this release: variable -> key."""
    pairs = (config_key(node) for _, tree in trees(root) for node in ast.walk(tree))
    return dict(sorted({variable: key for key, variable in filter(None, pairs)}.items()))
