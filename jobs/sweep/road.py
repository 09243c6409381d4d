"""The one road of overrides: expanded (compose.expand), composed, checked, planned. start.py submits what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.cluster.base import settled
from jobs.core.config import Config
from jobs.core.rundir import Root
from jobs.forecast import history
from jobs.results.columns import check_objective
from jobs.sweep import check, compose, grammar
from jobs.sweep.plan import Plan, make_plan
from jobs.sweep.points import points_of


def plan(points: Sequence[Sequence[str]], composer: compose.Composer = compose.default_composer) -> Plan:
    """Plan a sweep: compose, check, group.

    Args:
        points: override list of each point.
        composer: composes the tree for a choice of groups.

    Raises:
        ConfigError: the question cannot be asked.
    """
    overrides = [grammar.ours(point) for point in points]
    configs = _settled(compose.configs(overrides, composer))
    check_objective(configs[0].results.objective)
    asked = points_of(overrides, configs, grammar.swept_keys(overrides))
    findings = check.findings_of(asked)
    check.refuse_points(asked, findings)
    return make_plan(asked, findings, history.forecaster(Root(Path(configs[0].results.root).absolute())))


def _settled(configs: Sequence[Config]) -> list[Config]:
    """Return the configs with the kind of cluster that `auto` means here."""
    kinds = {kind: settled(kind) for kind in {one.cluster.kind for one in configs}}
    return [replace(one, cluster=replace(one.cluster, kind=kinds[one.cluster.kind])) for one in configs]
