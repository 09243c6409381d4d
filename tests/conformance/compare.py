"""Holds `check` against the real code: `python tests/conformance/compare.py RELEASE...` prints the differences."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from provoked import base, provoked

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines.ascend import order
from jobs.engines.ascend.real.ask import Answer, ask_points
from jobs.engines.ascend.rules.base import covers
from jobs.sweep import check


@dataclass(frozen=True)
class Difference:
    """One case that only one of the two refuses."""

    case: str
    ours: tuple[str, ...]
    real: str | None

    def __str__(self) -> str:
        said = self.real and " ".join(self.real.split())[-400:]
        return f"{self.case}\n    check: {'; '.join(self.ours) or 'no error'}\n    real:  {said or 'accepts it'}"


IGNORED = ("N3", "R12")
"""Rules that refuse what the engine would ignore without a word: the real code accepts that, and that is why."""

LATER = {"L2": "all", "R10": "all", "R15": "0.11", "R22": "0.13", "R25": "all", "R39": "all", "R40": ">=0.18"}
"""Rules, and releases, for what the engine refuses after its configuration (its workers cuts of layers, sizes of graphs
and the balance of experts, its kernels the type), or leaves undone (0.11 context parallelism)."""

OURS = ("has no such field", "has a key of its own", "the tool owns", "the engine would refuse every request")
"""What `check` says of the config and not of the engine; 0.13 ignores unknown names inside flags."""

ABSENT = re.compile(
    "No module named|is required for|requires Triton|Failed to (import|load mistral)|need to have sentence|"
    "expert_map is not exist|json file doesn't exist|Invalid repository ID|in the form 'repo_name'|GGUF|_OpNamespace"
)
"""Refusals for want of a package or a file that this machine has not: they say nothing of the release."""


def errors(config: Config) -> tuple[str, ...]:
    """Return the errors of `check` for one config, as far as the engine would say the same."""
    try:
        found = check.findings(config)
    except ConfigError as error:
        return (str(error),)
    return tuple(f"{one.rule} {one.key}: {one.reason}" for one in found if one.severity == "error")


def refusal(answers: Sequence[Answer]) -> str | None:
    """Return what the first rank says that refuses; None: all accept."""
    return next((one.refused for one in answers if one.refused is not None), None)


def cases(release: str, most: int | None = None) -> dict[str, Config]:
    """Return the provoked cases of a release of which there can be a command line.

    Args:
        most: cases, evenly from all, the preset alone among them; None: all.
    """
    start, asked = base(release), provoked(release)
    configs = {one.name: one.of(start) for one in (asked[:: max(1, len(asked) // most)] if most else asked)}
    return {name: config for name, config in configs.items() if not impossible(config)}


def differences(release: str, asked: Mapping[str, Config], answers: Sequence[Sequence[Answer]]) -> list[Difference]:
    """Return where the real code and `check` differ."""
    found = []
    for (name, config), answer in zip(asked.items(), answers, strict=True):
        ours, real = errors(config), refusal(answer)
        if differs(release, ours, real):
            found.append(Difference(name, ours, real))
    return found


def differs(release: str, ours: Sequence[str], real: str | None) -> bool:
    """Whether only one of the two refuses, for a reason that both could have."""
    if real is not None:
        return not ours and not ABSENT.search(real)
    later = [rule for rule, releases in LATER.items() if covers(releases, order(release)[0])]
    return not all(error.split()[0] in (*IGNORED, *later) or any(one in error for one in OURS) for error in ours)


def impossible(config: Config) -> bool:
    """Whether nothing can be rendered: `check` has refused it before there is a command line."""
    from jobs.core.layout import planned
    from jobs.engines.base import engine_of

    try:
        return not all(engine_of(config).argv(config, place) for place in planned(config))
    except ConfigError:
        return True


if __name__ == "__main__":
    for name in sys.argv[1:]:
        asked = cases(name)
        found = differences(name, asked, ask_points(name, heads=asked.values()))
        print(f"== {name}: {len(asked)} cases, {len(found)} differences", flush=True)
        for one in found:
            print(one, flush=True)
