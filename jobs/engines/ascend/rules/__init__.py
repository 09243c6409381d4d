"""What vllm-ascend refuses, silently ignores or does badly, as pure functions of one config.

R: layout, lengths, memory, graphs, keys; E: environment; N: names, and values of them, that the release does not know,
or refuses; K: container; S: speculation; L: what the layout asks of the model; M: what the release does. R19 (one
request of max_model_len must fit into the KV cache) needs the memory model: jobs/sweep/check.py asks it.
"""

from __future__ import annotations

from functools import cache

from jobs.engines.ascend.rules import drafts, environment, exclusions, execution, inside, layout, lengths, models, names
from jobs.engines.ascend.rules.base import Problem, Question, Rule
from jobs.engines.base import Finding, engine_of

__all__ = ["RULES", "Problem", "Question", "Rule", "findings"]

RULES: tuple[Rule, ...] = tuple(
    one
    for room in (layout, models, names, inside, lengths, execution, exclusions, drafts, environment)
    for one in vars(room).values()
    if isinstance(one, Rule)
)


@cache
def _holding(npus: bool, released: bool, release: tuple[int, ...] | None) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES if rule.holds(npus, released, release))


def findings(question: Question) -> tuple[Finding, ...]:
    """Return everything that the rules have against one config, errors first."""
    traits = engine_of(question.config).traits
    holding = _holding(traits.npus, traits.released, question.release.version if question.release else None)
    found = [finding for rule in holding for finding in rule.found(question)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))
