"""Names that the release does not know: flags, their values, keys of additional_config, variables (N1 to N6)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jobs.core.errors import nearest
from jobs.engines.ascend import Flag, Release
from jobs.engines.ascend.rules.base import Problem, Question, is_true, rule
from jobs.engines.base import Severity

HCCL = (
    "HCCL_ALGO", "HCCL_BUFFSIZE", "HCCL_CONNECT_TIMEOUT", "HCCL_DEBUG_CONFIG", "HCCL_DETERMINISTIC",
    "HCCL_DFS_CONFIG", "HCCL_DIAGNOSE_ENABLE", "HCCL_ENTRY_LOG_ENABLE", "HCCL_EXEC_TIMEOUT",
    "HCCL_HOST_SOCKET_PORT_RANGE",
    "HCCL_IF_BASE_PORT", "HCCL_IF_IP", "HCCL_INTER_HCCS_DISABLE", "HCCL_INTRA_PCIE_ENABLE", "HCCL_INTRA_ROCE_ENABLE",
    "HCCL_LOGIC_SUPERPOD_ID", "HCCL_MULTI_QP_THRESHOLD", "HCCL_NPU_SOCKET_PORT_RANGE", "HCCL_OP_BASE_FFTS_MODE_ENABLE",
    "HCCL_OP_COUNTER_ENABLE", "HCCL_OP_EXPANSION_MODE", "HCCL_OP_RETRY_ENABLE", "HCCL_OP_RETRY_PARAMS",
    "HCCL_RDMA_PCIE_DIRECT_POST_NOSTRICT", "HCCL_RDMA_QPS_PER_CONNECTION", "HCCL_RDMA_QP_PORT_CONFIG_PATH",
    "HCCL_RDMA_RETRY_CNT", "HCCL_RDMA_SL", "HCCL_RDMA_TC", "HCCL_RDMA_TIMEOUT", "HCCL_SOCKET_FAMILY",
    "HCCL_SOCKET_IFNAME", "HCCL_SO_PATH", "HCCL_WHITELIST_DISABLE", "HCCL_WHITELIST_FILE",
)  # fmt: skip
"""Variables of HCCL (CANN 8.5.0, maintenance reference, environment variables)."""


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
    assert q.release is not None
    for given, value in q.config.engine.args.items():
        if value is None:
            continue
        name = given.lstrip("-").replace("_", "-").partition(".")[0]
        known, key = find_flag(name.removeprefix("no-"), q.release), f"engine.args.{given}"
        if known is None:
            removed = name in _gone(q.release)
            reason = f"vllm-ascend {q.release.name} has no flag --{name}" + (": it was removed" if removed else "")
            yield Problem(key, value, reason, "Remove it." if removed else _nearest_flag(name, q.release))
        elif "." in given:
            continue
        elif name.startswith("no-"):
            problem = value_problem(q.release.flags[known], not value) if isinstance(value, bool) else IS_SWITCH
            if problem:
                yield Problem(key, value, f"--{name}: {problem}", f"Set {name.removeprefix('no-')} instead.")
        elif problem := value_problem(q.release.flags[known], value):
            yield Problem(key, value, f"--{known}: {problem}", "Mend the value.")


def _nearest_flag(name: str, release: Release) -> str:
    short = [known for known, flag in release.flags.items() if f"-{name}" in flag.aliases]
    return f"Did you mean {short[0]!r}?" if short else nearest(name, release.flags, listed=["see `vllm serve --help`"])


def _gone(release: Release) -> set[str]:
    """Return all flags that this release or one before it removed."""
    from jobs.engines.ascend import release as other  # a name of ours is the parameter

    gone: set[str] = set()
    at: Release | None = release
    while at is not None:
        gone |= set(at.removed)
        at = other(at.previous) if at.previous else None
    return gone - set(release.flags)


@rule("N2", "warning", ">=0.9", "vllm, argument parser: argument is deprecated")
def deprecated_flags(q: Question) -> Iterator[Problem]:
    """Flags that the engine itself warns about."""
    assert q.release is not None
    for given, value in q.config.engine.args.items():
        known = find_flag(given.lstrip("-").replace("_", "-").removeprefix("no-"), q.release)
        if value is not None and known and q.release.flags[known].deprecated:
            yield Problem(f"engine.args.{given}", value, f"--{known} is deprecated in this release", "Remove it.")


@rule("N3", "error", ">=0.9", "vllm-ascend, ascend_config.py: keys are asked for by dict.get, others are not looked at")
def unknown_keys(q: Question) -> Iterator[Problem]:
    """Keys of additional_config that the release never asks for: the engine would ignore them and say nothing."""
    assert q.release is not None
    for name, value in q.additional.items():
        if name in ("torchair_graph_config", "ascend_scheduler_config") and q.release.version >= (0, 12):
            continue  # rule R12
        if name not in q.release.keys:
            reason = f"vllm-ascend {q.release.name} does not know it and would silently ignore it"
            yield Problem(f"engine.additional_config.{name}", value, reason, nearest(name, q.release.keys))
        else:
            yield from _unknown_inside(q.release, name, value)


def _unknown_inside(release: Release, name: str, value: Any) -> Iterator[Problem]:
    key = release.keys[name]
    if key.keys is None or key.unknown == "accepted":
        return
    if not isinstance(value, Mapping):
        reason = "it is a section: a mapping is needed"
        yield Problem(f"engine.additional_config.{name}", value, reason, f"Write {{{key.keys[0]}: ...}}.")
        return
    for inner in value:
        if inner not in key.keys:
            does = "refuses it" if key.unknown == "error" else "does not know it and would silently ignore it"
            where = f"engine.additional_config.{name}.{inner}"
            yield Problem(where, value[inner], f"vllm-ascend {release.name} {does}", nearest(inner, key.keys))


@rule("N4", "warning", ">=0.9", "vllm-ascend release notes and configuration guide")
def deprecated_keys(q: Question) -> Iterator[Problem]:
    """Keys that the next release will not have."""
    assert q.release is not None
    for name in q.additional:
        if source := q.release.deprecated_keys.get(name):
            # The announcement of 0.11 is about sections that are the only way to graph mode there.
            reason, remedy = (
                "it is deprecated in this release",
                "See python -m jobs explain for the next release's form.",
            )
            yield Problem(f"engine.additional_config.{name}", q.additional[name], reason, remedy, source=source)


@rule(
    "N5",
    "warning",
    ">=0.9",
    "vllm, envs.py; vllm-ascend, envs.py; from 0.13: Unknown vLLM environment variable detected",
)
def unknown_variables(q: Question) -> Iterator[Problem]:
    """Variables of vLLM and HCCL that nobody reads."""
    assert q.release is not None
    strict = is_true(q.settings.get("fail-on-environ-validation"))
    for name in q.config.engine.env:
        if q.env.get(name) is None:
            continue
        if name.startswith("VLLM_") and name not in q.release.variables:
            reason = f"neither vLLM {q.release.name} nor its Ascend plugin reads it"
            reason += ", and --fail-on-environ-validation refuses it" if strict else ": it is ignored"
            severity: Severity = "error" if strict else "warning"
            yield Problem(f"engine.env.{name}", q.env[name], reason, _remedy(name, q.release.variables), severity)
        if name.startswith("HCCL_") and name not in HCCL and name not in q.release.variables:
            reason = "HCCL has no such variable: it is ignored"
            yield Problem(f"engine.env.{name}", q.env[name], reason, _remedy(name, HCCL), source="CANN, HCCL variables")


def _remedy(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return f"Did you mean {close[0]!r}?" if close else "Remove it."


@rule("N6", "warning", ">=0.9", "vllm-ascend, configuration guide: variables that became keys")
def deprecated_variables(q: Question) -> Iterator[Problem]:
    """Variables that became keys of additional_config."""
    assert q.release is not None
    for name, source in q.release.deprecated_variables.items():
        key = q.release.have_a_key[name]
        if q.env.get(name) is None:
            continue
        if key in q.additional:
            reason = f"engine.additional_config.{key} = {q.additional[key]} is set too, and holds"
            yield Problem(f"engine.env.{name}", q.env[name], reason, "Remove the variable.", source=source)
        else:
            reason = "the variable is deprecated in this release"
            yield Problem(
                f"engine.env.{name}", q.env[name], reason, f"Set engine.additional_config.{key}.", source=source
            )


RULES = (unknown_flags, deprecated_flags, unknown_keys, deprecated_keys, unknown_variables, deprecated_variables)
