"""The one road of overrides: expanded (compose.expand), composed, checked, planned. start.py submits what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.allocation.node.container import Words
from jobs.cluster.base import settled
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.rundir import Root
from jobs.forecast import history
from jobs.results.columns import check_objective
from jobs.sweep import check, compose, grammar
from jobs.sweep.plan import Plan, make_plan
from jobs.sweep.points import points_of


def plan(
    points: Sequence[Sequence[str]], composer: compose.Composer = compose.default_composer, *, search: bool = False
) -> Plan:
    """Plan a sweep, or a search: compose the override list of each point, check, group.

    Raises:
        ConfigError: the question cannot be asked.
    """
    overrides = [grammar.ours(point) for point in points]
    configs = _settled(compose.configs(overrides, composer))
    check_objective(configs[0].results.objective)
    if (space := configs[0].tune.space) and not search:
        reason, remedy = (
            "it is the space of a search, and this is none",
            "Add hydra/sweeper=tune, or: python -m jobs tune.",
        )
        raise ConfigError("tune.space", space, reason, remedy)
    asked = points_of(overrides, configs, grammar.swept_keys(overrides))
    findings = check.findings_of(asked)
    check.refuse_points(asked, findings)
    past = history.forecaster(Root(Path(configs[0].results.root).absolute()))
    return make_plan(asked, findings, past, Words.of_user())


def composed(points: Sequence[Sequence[str]], composer: compose.Composer = compose.default_composer) -> list[Config]:
    """Return the configs of points, with the kind of cluster that `auto` means here. Raises ConfigError: see `plan`."""
    return _settled(compose.configs([grammar.ours(point) for point in points], composer))


def _settled(configs: Sequence[Config]) -> list[Config]:
    """Return the configs with the kind of cluster that `auto` means here."""
    kinds = {kind: settled(kind) for kind in {one.cluster.kind for one in configs}}
    return [replace(one, cluster=replace(one.cluster, kind=kinds[one.cluster.kind])) for one in configs]
