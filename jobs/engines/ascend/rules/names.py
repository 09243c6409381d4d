"""Names that the release does not know, or refuses: flags, their values, keys, variables (N1 to N8)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jobs.core.errors import nearest
from jobs.core.fields import dotted
from jobs.engines.ascend import Flag, Release, is_true, mended
from jobs.engines.ascend import release as described
from jobs.engines.ascend import releases as all_releases
from jobs.engines.ascend.rules.base import NPU, Problem, Question, covers, outside, rule, table
from jobs.engines.base import Severity
from jobs.engines.speculation import speculation_of
from jobs.engines.vllm.command import CONFIGURED

HCCL: list[str] = table("hccl_variables")
IS_SWITCH = "it is a switch: true or false"


def find_flag(name: str, release: Release) -> str | None:
    """Return the flag that `--name` stands for: itself, an alias, or an unambiguous beginning; None: unknown."""
    if name in release.flags:
        return name
    for known, flag in release.flags.items():
        if f"--{name}" in flag.aliases:
            return known
    begun = [known for known in release.flags if known.startswith(name)] if release.abbreviations else []
    return begun[0] if len(begun) == 1 else None


def value_problem(flag: Flag, value: Any) -> str | None:
    """Return what is wrong with a flag's value, as far as its kind tells; None: nothing."""
    if isinstance(value, bool):
        if flag.action in ("store_true", "boolean"):
            return "it cannot be turned off by --no" if flag.action == "store_true" and not value else None
        return None if flag.nargs == "?" and value else "it needs a value"
    if flag.action in ("store_true", "boolean"):
        return IS_SWITCH
    values = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, list | tuple) and flag.nargs is None:
        return "it takes one value"
    for one in values:
        if flag.choices is not None and str(one) not in [str(choice) for choice in flag.choices]:
            return f"valid values are {', '.join(str(choice) for choice in flag.choices)}"
        kind = (flag.type or "str").removeprefix("optional-")
        if kind in ("int", "float") and not _is_number(one, kind):
            return f"{'a whole number' if kind == 'int' else 'a number'} is needed"
        if flag.range and _is_number(one, "float") and (problem := outside(flag.range, float(one))):
            return problem
    return None


def _is_number(value: Any, kind: str) -> bool:
    try:
        (int if kind == "int" else float)(str(value))
    except ValueError:
        return False
    return True


@rule("N1", "error", ">=0.9", "the release's own argument parser (jobs/engines/ascend/releases)")
def unknown_flags(q: Question) -> Iterator[Problem]:
    """Flags that the release does not have, and values that its parser refuses."""
    for given, value in q.config.engine.args.items():
        if value is None:
            continue
        name = given.lstrip("-").replace("_", "-").partition(".")[0]
        known, key = find_flag(name.removeprefix("no-"), q.described), f"engine.args.{given}"
        if known is None:
            removed = name in _gone(q.described)
            reason = f"vllm-ascend {q.described.name} has no flag --{name}" + (": it was removed" if removed else "")
            yield Problem(key, value, reason, "Remove it." if removed else _nearest_flag(name, q.described))
        elif "." in given:
            continue
        elif name.startswith("no-"):
            problem = value_problem(q.described.flags[known], not value) if isinstance(value, bool) else IS_SWITCH
            if problem:
                yield Problem(key, value, f"--{name}: {problem}", f"Set {name.removeprefix('no-')} instead.")
        elif (problem := value_problem(q.described.flags[known], value)) and not _is_added(known, value, q.described):
            yield Problem(key, value, f"--{known}: {problem}", "Mend the value.")
    for name, key in CONFIGURED.items():  # a key of its own is a flag too
        value, flag = q.settings.get(name), q.described.flags.get(name)
        if value is not None and flag and (flag.choices or flag.range) and (problem := value_problem(flag, value)):
            yield Problem(key, value, f"--{name}: {problem}", "Mend the value.")


def _is_added(flag: str, value: Any, release: Release) -> bool:
    """Whether the plugin adds this value to those that the parser takes."""
    added = table("further_choices")
    return any(one[0] == flag and one[2] == value and covers(one[1], release.version) for one in added)


def _nearest_flag(name: str, release: Release) -> str:
    short = [known for known, flag in release.flags.items() if f"-{name}" in flag.aliases]
    return f"Did you mean {short[0]!r}?" if short else nearest(name, release.flags, listed=["see `vllm serve --help`"])


def _gone(release: Release) -> set[str]:
    """Return all flags that this release or one before it removed."""
    gone: set[str] = set()
    at: Release | None = release
    while at is not None:
        gone |= set(at.removed)
        at = described(at.previous) if at.previous else None
    return gone - set(release.flags)


@rule("N2", "warning", ">=0.9", "vllm, argument parser: argument is deprecated")
def deprecated_flags(q: Question) -> Iterator[Problem]:
    """Flags that the engine itself warns about."""
    for given, value in q.config.engine.args.items():
        known = find_flag(given.lstrip("-").replace("_", "-").removeprefix("no-"), q.described)
        if value is not None and known and q.described.flags[known].deprecated:
            yield Problem(f"engine.args.{given}", value, f"--{known} is deprecated in this release", "Remove it.")


@rule("N3", "error", ">=0.9", "vllm-ascend, ascend_config.py: keys are asked for by dict.get, others are not looked at")
def unknown_keys(q: Question) -> Iterator[Problem]:
    """Keys of additional_config that the release never asks for: the engine would ignore them and say nothing."""
    for name, value in q.additional.items():
        if name in ("torchair_graph_config", "ascend_scheduler_config") and q.described.version >= (0, 12):
            continue  # rule R12
        if name not in q.described.keys:
            does = "refuses it" if q.described.strict else "does not know it and would silently ignore it"
            reason = f"vllm-ascend {q.described.name} {does}"
            remedy = _in_a_later_one(q.described, lambda later: later.keys, name) or nearest(name, q.described.keys)
            yield Problem(f"engine.additional_config.{name}", value, reason, remedy)
        else:
            yield from _unknown_inside(q.described, name, value)


def _in_a_later_one(here: Release, names: Callable[[Release], Iterable[str]], name: str) -> str | None:
    """Return the remedy for a name that a later described release has, that in its mended form; None: none has it."""
    later = all_releases()[all_releases().index(here.name) + 1 :]
    having = [one for one in later if name in names(described(one))]
    found = next((one for one in having if mended(one) == one or mended(one) not in having), None)
    return f"Release {found} has it: set engine.release={found}, or leave it out." if found else None


def _instead(name: str, here: Release) -> str:
    """Return what to do about a variable that a release does not read: it became a key, or is a later one's."""
    keys = (described(one).have_a_key.get(name) for one in reversed(all_releases()))
    if (key := next((one for one in keys if one in here.keys), None)) is not None:
        return f"Set engine.additional_config.{key}."
    return _in_a_later_one(here, lambda later: later.variables, name) or _remedy(name, here.variables)


def _unknown_inside(release: Release, name: str, value: Any) -> Iterator[Problem]:
    key = release.keys[name]
    if key.keys is None:
        return
    if not isinstance(value, Mapping):
        reason = "it is a section: a mapping is needed"
        yield Problem(f"engine.additional_config.{name}", value, reason, f"Write {{{key.keys[0]}: ...}}.")
        return
    if key.unknown == "accepted":
        return
    for inner in names_in(value, key.keys):
        if inner not in key.keys:
            does = "refuses it" if key.unknown == "error" else "does not know it and would silently ignore it"
            where = f"engine.additional_config.{name}.{inner}"
            yield Problem(where, dotted(value, inner), f"vllm-ascend {release.name} {does}", nearest(inner, key.keys))


def names_in(section: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> Iterator[str]:
    """Yield the names of a mapping, dotted inside a section whose own names are known."""
    for name, value in section.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping) and any(one.startswith(f"{prefix}{name}.") for one in known):
            yield from names_in(value, known, f"{prefix}{name}.")


@rule("N4", "warning", ">=0.9", "vllm-ascend release notes and configuration guide")
def deprecated_keys(q: Question) -> Iterator[Problem]:
    """Keys that the next release will not have."""
    for name in q.additional:
        if source := q.described.deprecated_keys.get(name):
            # The announcement of 0.11 is about sections that are the only way to graph mode there.
            key, remedy = f"engine.additional_config.{name}", "See python -m jobs explain for the next release's form."
            yield Problem(key, q.additional[name], "it is deprecated in this release", remedy, source=source)


@rule(
    "N5",
    "warning",
    ">=0.9",
    "vllm, envs.py; vllm-ascend, envs.py; from 0.13: Unknown vLLM environment variable detected",
)
def unknown_variables(q: Question) -> Iterator[Problem]:
    """Variables of vLLM and HCCL that nobody reads."""
    strict = is_true(q.settings.get("fail-on-environ-validation"))
    for name in q.config.engine.env:
        if q.env.get(name) is None:
            continue
        known, vllm = q.described.variables, f"vLLM {q.described.name}"
        refused = strict and name not in q.described.engine_variables  # it knows vLLM's own names, not the plugin's
        if name.startswith("VLLM_") and (refused or name not in known):
            reason = f"{vllm} does not know it" if name in known else f"neither {vllm} nor its Ascend plugin reads it"
            reason += ", and --fail-on-environ-validation refuses it" if refused else ": it is ignored"
            severity: Severity = "error" if refused else "warning"
            remedy = _remedy(name, known) if name in known else _instead(name, q.described)
            yield Problem(f"engine.env.{name}", q.env[name], reason, remedy, severity)
        if name.startswith("HCCL_") and name not in HCCL and name not in known:
            reason = "HCCL has no such variable: it is ignored"
            yield Problem(f"engine.env.{name}", q.env[name], reason, _remedy(name, HCCL), source="CANN, HCCL variables")


@rule("N8", "warning", ">=0.9", "vllm-ascend issue 8915: variables of one image in the place of another", NPU)
def foreign_variables(q: Question) -> Iterator[Problem]:
    """Variables that neither the release nor anything around it is known to read: another image's, most often."""
    for name in q.config.engine.env:
        known = name in q.described.variables or name.startswith(("VLLM_", "HCCL_"))  # N5
        if q.env.get(name) is None or known or name.upper().startswith(tuple(table("others_variables"))):
            continue
        reason = (
            f"no file of vLLM {q.described.name} or its Ascend plugin reads it, and it is none of CANN's, PyTorch's or "
            "the system's: it is ignored, if nothing of your own reads it"
        )
        remedy = _remedy(name, (*q.described.variables, *HCCL))
        yield Problem(f"engine.env.{name}", q.env[name], reason, remedy)


def _remedy(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return f"Did you mean {close[0]!r}?" if close else "Remove it."


@rule("N6", "warning", ">=0.9", "vllm-ascend, configuration guide: variables that became keys")
def deprecated_variables(q: Question) -> Iterator[Problem]:
    """Variables that became keys of additional_config."""
    for name, source in q.described.deprecated_variables.items():
        key = q.described.have_a_key[name]
        if q.env.get(name) is None:
            continue
        if key in q.additional:
            reason = f"engine.additional_config.{key} = {q.additional[key]} is set too, and holds"
            yield Problem(f"engine.env.{name}", q.env[name], reason, "Remove the variable.", source=source)
        else:
            reason, remedy = "the variable is deprecated in this release", f"Set engine.additional_config.{key}."
            yield Problem(f"engine.env.{name}", q.env[name], reason, remedy, source=source)


def _role(q: Question) -> Any:
    """Return `kv_role` of --kv-transfer-config; None: prefill and decode are not disaggregated."""
    return q.inside("kv-transfer-config").get("kv_role")


def _drafts(q: Question) -> int:
    """Return the tokens that are drafted for a step; 0: none."""
    found = speculation_of(q.config)
    return (found.tokens or 0) if found else 0


_APART = ", and prefill and decode are not disaggregated here"
_RECOMPUTE, _ONE_ROLE = "recompute_scheduler_enable", ("kv_consumer", "kv_producer")
_CONDITIONS: Mapping[str, tuple[str, Callable[[Question], bool]]] = {
    "decode": (f"a decode node (kv_role=kv_consumer){_APART}", lambda q: _role(q) in ("kv_consumer", "kv_both")),
    "one role": (f"a node of one role (kv_role=kv_consumer){_APART}", lambda q: _role(q) in _ONE_ROLE),
    "prefill": (f"a prefill node (kv_role=kv_producer){_APART}", lambda q: _role(q) == "kv_producer"),
    "one NPU": ("parallel.tensor_parallel_size=1", lambda q: q.config.parallel.tensor_parallel_size == 1),
    "stages": ("engine.args.pipeline-parallel-size above 1", lambda q: q.size("pipeline-parallel-size") > 1),
    "one draft": ("num_speculative_tokens=1, or no speculative decoding", lambda q: _drafts(q) in (0, 1)),
    "no drafts": ("a start without speculative decoding", lambda q: speculation_of(q.config) is None),
    "balanced steps": (
        f"{_RECOMPUTE}, which is for decode nodes",
        lambda q: is_true(q.additional.get(_RECOMPUTE)) or is_true(q.section("scheduler_config").get(_RECOMPUTE)),
    ),
    "graphs": ("graph mode", lambda q: not q.on("enforce-eager")),
}
"""What the engine asks for where a key is set (`needs` in tables.yaml): in words, and whether a config has it."""


@rule("N7", "error", ">=0.11", "vllm-ascend, ascend_config.py and platform.py")
def refused_keys(q: Question) -> Iterator[Problem]:
    """Keys that the engine refuses at its start, after the queue: each one once, with the first thing it lacks."""
    seen: set[str] = set()
    for key, releases, condition, source in table("needs"):
        value, (words, met) = dotted(q.additional, key), _CONDITIONS[condition]
        asked = value is not None if q.described.version[:2] == (0, 11) else _is_on(value)  # 0 is a size there
        if key in seen or not asked or not covers(releases, q.described.version) or met(q):
            continue
        seen.add(key)
        reason = f"the engine does not start with it: it needs {words}"
        yield Problem(f"engine.additional_config.{key}", value, reason, "Remove it.", source=source)


def _is_on(value: Any) -> bool:
    """Whether a key is set to more than off: true, a number above 0, a list that holds something."""
    return is_true(value) or (bool(value) and str(value).lower() not in ("false", "0", "none"))
