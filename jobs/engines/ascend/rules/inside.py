"""Values that the real code refuses after the queue: inside the flags that take a mapping, and in additional_config
(N9 to N16). Fields and types are read from the packages (releases/*.yaml), the ranges stand in tables.yaml."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.core.errors import nearest
from jobs.core.fields import dotted
from jobs.engines.ascend import is_json_mapping, is_true
from jobs.engines.ascend.rules.base import Problem, Question, covers, outside, rule, table
from jobs.engines.ascend.rules.names import names_in
from jobs.engines.speculation import asked_of

Kind = str | tuple[str | int | None, ...] | None
"""What a value must be: a type ("int", "list[str]", "mapping", "section"), one of several ("int | null"), with a range
("int>0"), or its only values; None: anything."""

SWITCHES = ("0", "1", "true", "false", "on", "off", "yes", "no", "t", "f", "y", "n")
"""What pydantic takes for a bool, as text."""

_WANTED = {
    "bool": "true or false is needed",
    "int": "a whole number is needed",
    "float": "a number is needed",
    "str": "a text is needed",
    "mapping": "a mapping is needed",
    "section": "it is a section: a mapping is needed",
    "null": "null is needed",
}


def type_problem(kind: Kind, value: Any, ignore_case: bool = False, is_strict: bool = False) -> str | None:
    """Return what is wrong with a value by its kind, as pydantic's lax mode has it; None: nothing.

    Strict: a text is no number and no switch, as `isinstance` has it.
    """
    if kind is None:
        return None
    if isinstance(kind, tuple):
        valid = (
            value in kind
            or (ignore_case and str(value).upper() in kind)
            or (not is_strict and str(value) in map(str, kind))
        )
        return None if valid else f"valid values are {', '.join(map(repr, kind))}"
    kinds = re.findall(r"(\w+\[[^]]*\]|\w+)([<>=\d.]*)", kind)
    fitting = [limits for one, limits in kinds if _fits(one, value, is_strict)]
    number = _number(value)
    if fitting:
        return outside(fitting[0], number) if fitting[0] and number is not None else None
    return _WANTED.get(kinds[0][0]) or f"a {kinds[0][0]} is needed"


def _fits(kind: str, value: Any, is_strict: bool) -> bool:
    """Whether a value is of a type that has no alternatives."""
    if kind.startswith("list"):
        inner = kind.removeprefix("list").strip("[]") or None
        return isinstance(value, list | tuple) and not any(type_problem(inner, one) for one in value)
    if kind in ("mapping", "section"):
        return isinstance(value, Mapping)
    if kind == "bool":
        return isinstance(value, bool) or (not is_strict and str(value).lower() in (*SWITCHES, "1.0", "0.0"))
    if kind in ("str", "null"):
        return isinstance(value, str) if kind == "str" else value is None
    number = None if is_strict and isinstance(value, str) else _number(value)
    return number is not None and (kind == "float" or number == int(number))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


_NUMBERED = {"mode": 3, "cudagraph_mode": 2}
"""Fields of --compilation-config whose values are names of an enumeration, in any case, or numbers up to this one."""


@rule("N11", "error", ">=0.9", "vllm, config classes: the fields and types of CompilationConfig and its like")
def inside_flags(q: Question) -> Iterator[Problem]:
    """Fields inside --compilation-config, --speculative-config and --kv-transfer-config."""
    for flag, fields in q.described.settings.items():
        given = asked_of(q.config) if flag == "speculative-config" else q.inside(flag)
        for name in names_in(given, fields):
            key, value = f"engine.args.{flag}.{name}", dotted(given, name)
            if name not in fields:
                reason = f"vLLM {q.described.facts['engine'].value} has no such field in --{flag}"
                yield Problem(key, value, reason, nearest(name, fields))
            elif problem := _field_problem(fields[name], name, value):
                yield Problem(key, value, problem, "Mend the value.")


def _field_problem(kind: Kind, name: str, value: Any) -> str | None:
    if name in _NUMBERED and type(value) is int:
        most = _NUMBERED[name]
        return None if 0 <= value <= most else f"a whole number from 0 to {most}, or a name, is needed"
    return type_problem(kind, value, name in _NUMBERED)


@rule("N12", "error", ">=0.11", "vllm, config/compilation.py: CompilationConfig")
def compiled_things(q: Question) -> Iterator[Problem]:
    """Texts inside --compilation-config that have a form: operators, sizes, passes."""
    inside, where = q.inside("compilation-config"), "engine.args.compilation-config"
    for name, (form, words) in _FORMS.items():
        given = inside.get(name) or ()
        for one in given.values() if isinstance(given, Mapping) else given if isinstance(given, list | tuple) else ():
            if isinstance(one, str) and not re.fullmatch(form, one):
                yield Problem(f"{where}.{name}", one, f"{words} is needed", "Mend the value.")
    if is_true(inside.get("full_cuda_graph")) and inside.get("cudagraph_mode") is not None:
        yield Problem(f"{where}.full_cuda_graph", True, "cudagraph_mode is given too", "Remove one of them.")
    sizes = inside.get("cudagraph_capture_sizes")
    early = q.described.version < (0, 13)  # later: R28
    if early and isinstance(sizes, list | tuple) and any(type(one) is int and one < 0 for one in sizes):
        yield Problem(f"{where}.cudagraph_capture_sizes", sizes, "sizes from 0 on are needed", "Mend the value.")
    operators = inside.get("custom_ops")
    if isinstance(operators, list | tuple) and "all" in operators and "none" in operators:
        yield Problem(f"{where}.custom_ops", operators, "all and none exclude each other", "Remove one.")


_FORMS = {
    "custom_ops": (r"all|none|[+-].*", "all, none, or an operator behind + or -"),
    "inductor_passes": (r".+\..+", "a name inside a module"),
    "compile_sizes": (r"cudagraph_capture_sizes", "a number or cudagraph_capture_sizes"),
}


@rule("N13", "error", ">=0.9", "vllm, engine/arg_utils.py: a flag that takes a mapping takes its JSON")
def not_a_mapping(q: Question) -> Iterator[Problem]:
    """What is given to a flag that takes a mapping is none, nor its JSON."""
    for flag in q.described.settings:
        value = q.settings.get(flag)
        level = flag == "compilation-config" and q.described.version < (0, 11) and str(value) in ("0", "1", "2", "3")
        if value is None or isinstance(value, Mapping) or level:
            continue
        if not (isinstance(value, str) and is_json_mapping(value)):
            yield Problem(f"engine.args.{flag}", value, "it is no mapping, nor the JSON of one", "Give a mapping.")


@rule("N9", "error", ">=0.27", "vllm-ascend v0.30.0rc2, ascend_config.py: typed fields")
def typed_keys(q: Question) -> Iterator[Problem]:
    """Keys of another type: from 0.27.1 on they are refused."""
    for name, value in q.additional.items():
        key = q.described.keys.get(name)
        if key is None or name in q.section("scheduler_config"):  # that one holds, and the other is not looked at
            continue
        where = f"engine.additional_config.{name}"
        if value is not None and (problem := type_problem(key.type, value)):
            yield Problem(where, value, problem, "Mend the value.")
        for inner, kind in key.types.items():
            given = dotted(value, inner) if isinstance(value, Mapping) else None
            if given is not None and (problem := type_problem(kind, given)):
                yield Problem(f"{where}.{inner}", given, problem, "Mend the value.")


@rule("N10", "error", ">=0.9", "vllm-ascend, ascend_config.py")
def ranges_of_keys(q: Question) -> Iterator[Problem]:
    """Keys whose value the engine refuses: tables.yaml, `values`."""
    for name, releases, wanted, source in table("values"):
        value = dotted(q.additional, name) if covers(releases, q.described.version) else None
        if value is None:
            continue
        kind = tuple(wanted) if isinstance(wanted, list) else wanted
        if problem := type_problem(kind, value, is_strict=not q.described.strict):
            reason = f"the engine does not start with it: {problem}"
            yield Problem(f"engine.additional_config.{name}", value, reason, "Mend the value.", source=source)


@rule("N14", "error", ">=0.9", "vllm, engine/arg_utils.py")
def ranges_of_flags(q: Question) -> Iterator[Problem]:
    """Flags whose value the parser takes and the engine refuses: tables.yaml, `flag_values`."""
    for name, releases, wanted, variable, source in table("flag_values"):
        value = q.settings.get(name)
        off = variable is not None and not is_true(q.env.get(variable))
        if value is None or off or name not in q.described.flags or not covers(releases, q.described.version):
            continue
        if problem := type_problem(tuple(wanted) if isinstance(wanted, list) else wanted, value):
            reason = f"the engine does not start with it: {problem}"
            yield Problem(f"engine.args.{name}", value, reason, "Mend the value.", source=source)


@rule("N15", "error", ">=0.9", "vllm, the registries of tool parsers, connectors and attention backends")
def registered_names(q: Question) -> Iterator[Problem]:
    """Names that the release looks up in a registry of its own, where nothing says that yours is in another module."""
    transfer, key = q.inside("kv-transfer-config"), "engine.args.kv-transfer-config.kv_connector"
    tools, backend = q.settings.get("tool-call-parser"), q.settings.get("attention-backend")
    early = q.described.version < (0, 18)  # its workers look for the connector
    plugin = bool(q.settings.get("tool-parser-plugin"))
    asked = {
        "tool_call_parser": ("engine.args.tool-call-parser", tools, not q.on("enable-auto-tool-choice") or plugin),
        "kv_connector": (key, transfer.get("kv_connector"), early or bool(transfer.get("kv_connector_module_path"))),
        "attention_backend": ("engine.args.attention-backend", backend and str(backend).upper(), False),
    }
    for what, (where, value, is_elsewhere) in asked.items():
        names = q.described.names.get(what)
        if value is not None and names and not is_elsewhere and value not in names:
            yield Problem(where, value, f"vllm-ascend {q.described.name} has no such one", nearest(str(value), names))


@rule("N16", "error", ">=0.9", "vllm, entrypoints/openai/cli_args.py and config classes")
def flags_that_need_others(q: Question) -> Iterator[Problem]:
    """Flags that the engine refuses without another one: tables.yaml, `flag_needs`."""
    for name, releases, other, source in table("flag_needs"):
        known = name in q.described.flags and covers(releases, q.described.version)
        if known and q.on(name) and not q.settings.get(other):
            reason = f"the engine does not start with it: it needs --{other}"
            yield Problem(f"engine.args.{name}", True, reason, f"Set engine.args.{other} too.", source=source)
