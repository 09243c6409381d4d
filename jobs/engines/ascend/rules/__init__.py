"""What vllm-ascend refuses, silently ignores or does badly, as pure functions of one config.

R: layout, lengths, memory, graphs, keys; E: environment; N: names that the release does not know, or refuses;
K: container; L: what the layout asks of the model. R19 (one request of max_model_len must fit into the KV cache) needs
the memory model: jobs/sweep/check.py asks it.
"""

from __future__ import annotations

from jobs.engines.ascend.rules import container, environment, graph, keys, layout, lengths, moe, names
from jobs.engines.ascend.rules.base import Problem, Question, Rule
from jobs.engines.base import Finding

__all__ = ["RULES", "Problem", "Question", "Rule", "findings"]

RULES: tuple[Rule, ...] = (
    *layout.RULES,
    *names.RULES,
    *keys.RULES,
    *lengths.RULES,
    *graph.RULES,
    *moe.RULES,
    *environment.RULES,
    *container.RULES,
)


def findings(question: Question) -> tuple[Finding, ...]:
    """Return everything that the rules have against one config, errors first."""
    found = [finding for rule in RULES for finding in rule.findings(question)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))
