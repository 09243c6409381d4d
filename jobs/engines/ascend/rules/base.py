"""What a rule is: a pure function of one question, with its severity, releases and source."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jobs.core.config import Config
from jobs.core.foreign import from_yaml
from jobs.engines.ascend import Release, is_true, mapping_of, version
from jobs.engines.base import Finding, Severity
from jobs.engines.checkpoint.architecture import Architecture
from jobs.engines.speculation import speculation_of

NPU = "npu"
RELEASED = "released"
EVERY = "every"
PCP, DCP, PP = "prefill-context-parallel-size", "decode-context-parallel-size", "pipeline-parallel-size"


@dataclass(frozen=True)
class Question:
    """What the rules judge: one config and what it renders to.

    Attributes:
        ranks: flags of each rank by name, without dashes; empty where the layout is impossible.
        settings: flags that do not depend on the rank.
        env: variables of rank 0 that the config sets.
        release: None for an engine whose releases are not described here.
        arch: the model, where its config.json is known.
    """

    config: Config
    settings: Mapping[str, Any]
    env: Mapping[str, str]
    ranks: tuple[Mapping[str, Any], ...] = ()
    release: Release | None = None
    arch: Architecture | None = None

    @property
    def described(self) -> Release:
        """The release, for what runs only where it is known: a rule that does not hold for "all"."""
        assert self.release is not None
        return self.release

    @property
    def additional(self) -> Mapping[str, Any]:
        """`additional_config`, empty where there is none."""
        return self.config.engine.additional_config or {}

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of `additional_config`, empty where it is none."""
        found = self.additional.get(name)
        return found if isinstance(found, Mapping) else {}

    def inside(self, flag: str) -> Mapping[str, Any]:
        """Return what a flag that takes a mapping says; empty where it is not given."""
        return mapping_of(self.settings, flag)

    def switched(self, value: Any) -> bool:
        """Whether a key of `additional_config` is on: before its keys had types, every text that is not empty was."""
        if self.release is None or self.release.strict:
            return str(value).lower() in ("1", "true", "yes", "on", "t", "y")
        return bool(value)

    def on(self, flag: str) -> bool:
        """Whether a switch of the command line is on."""
        return is_true(self.settings.get(flag))

    def size(self, flag: str) -> int:
        """Return a parallel size of the command line; 1 where it is not given or not a number."""
        value = str(self.settings.get(flag, 1))
        return int(value) if value.isdecimal() else 1

    @property
    def speculative(self) -> bool:
        """Whether the multi-token prediction layer is used."""
        found = speculation_of(self.config)
        return found is not None and found.is_mtp


@dataclass(frozen=True)
class Problem:
    """What a rule says about one key; the rest of a finding is the rule's own."""

    key: str
    value: Any
    reason: str
    remedy: str
    severity: Severity | None = None
    source: str | None = None


Check = Callable[[Question], Iterable[Problem]]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        releases: where it holds: "all", or "0.9.1", "<0.12", ">=0.18", "0.11..0.13" (both ends included).
        engines: that it holds for: npu, released or every. The rehearsal engine refuses what the release refuses,
            but what is only slow or risky on real NPUs is no matter for a rehearsal.
    """

    id: str
    severity: Severity
    releases: str
    source: str
    check: Check = field(compare=False)
    engines: str = RELEASED

    def holds(self, npus: bool, released: bool, release: tuple[int, ...] | None) -> bool:
        """Return whether this rule is for engines of these traits, and for a release (as numbers; None: not known)."""
        if (self.engines == NPU and not npus) or (self.engines == RELEASED and not released):
            return False
        return self.releases == "all" or (release is not None and covers(self.releases, release))

    def found(self, question: Question) -> Iterator[Finding]:
        """Yield what this rule, which holds, has against the config."""
        for p in self.check(question):
            severity, source = p.severity or self.severity, p.source or self.source
            yield Finding(self.id, severity, p.key, p.value, p.reason, p.remedy, source)


def rule(id: str, severity: Severity, releases: str, source: str, engines: str = RELEASED) -> Callable[[Check], Rule]:
    """Make a rule of the function below it."""
    return lambda check: Rule(id, severity, releases, source, check, engines)


def table(name: str) -> Any:
    """Return one of the tables of tables.yaml."""
    return _tables()[name]


@cache
def _tables() -> Any:
    return from_yaml(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))


_SIGNS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def outside(limits: str, number: float) -> str | None:
    """Return what is wrong with a number by its range, such as ">0<=1"; None: it is inside."""
    parts = re.findall(r"([<>]=?)([\d.e+-]+)", limits)
    good = all(_SIGNS[sign](number, float(value)) for sign, value in parts)
    return None if good else f"a number {' and '.join(f'{sign} {value}' for sign, value in parts)} is needed"


@cache
def covers(releases: str, at: tuple[int, ...]) -> bool:
    """Whether a release, as numbers, is one of those that the text of `Rule.releases` names."""
    if releases == "all":
        return True
    low, dots, high = releases.partition("..")
    if dots:
        upper = version(high)
        return version(low) <= at and at[: len(upper)] <= upper
    if releases.startswith("<"):
        return at < version(releases[1:])
    if releases.startswith(">="):
        return at >= version(releases[2:])
    return at[: len(version(releases))] == version(releases)
