"""The space of a search: the settings that may be started, what each costs, and why the others never are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.core import masking, schema
from jobs.core.config import Config, usual_windows
from jobs.core.errors import ConfigError, nearest
from jobs.core.layout import local_sizes
from jobs.core.rundir import Root
from jobs.engines.speculation import speculation_of
from jobs.forecast import history
from jobs.forecast.duration import measure_seconds, phases
from jobs.forecast.observed import COLUMNS, learnt_of, subject_of
from jobs.forecast.search import LIMITS, Search, Setting, limits_of
from jobs.forecast.tuner import STARTS, Candidate, Goal
from jobs.measure.dataset import is_text
from jobs.results.columns import changes_work, check_objective
from jobs.results.pairs import NOT_TEXT
from jobs.sweep import check, compose, grammar, road
from jobs.sweep.derived import AROUND, AUTO, LOAD, SPECULATION, Known, around, drafting, usual
from jobs.sweep.grouping import Service
from jobs.sweep.plan import Plan
from jobs.sweep.points import points_of
from jobs.sweep.record import as_json

MOST = 400
"""Settings of a search: their beliefs are a matrix of so many rows and columns."""

SEED = "parallel.seed"
"""A further start of a setting is the same under another seed."""

MARKS = {f"{key}={mark}": key for key in AUTO for mark in (AROUND if key == LOAD else ("auto",))}
"""What stands for a derived value, and its key."""

_SWEEP = "Give tune.space two values of a key at least: 'tune.space={parallel.max_num_seqs: [16, 32]}'."


@dataclass(frozen=True)
class Asked:
    """A search before it is started. `plan`: every start of every setting; `config`: what holds for all; `usual`:
    overrides that nobody gave and that a search needs."""

    plan: Plan
    search: Search
    config: Config
    usual: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Wanted:
    """One setting: its name among the others, and its overrides."""

    name: str
    overrides: tuple[str, ...]


def ask(overrides: Sequence[str], composer: compose.Composer = compose.default_composer) -> Asked:
    """Return the search that overrides ask for: the points of their sweeps, times `tune.space`.

    Raises:
        ConfigError: nothing can be searched like this; key, value, reason, remedy.
    """
    points = compose.expand(overrides)
    [base] = road.composed(points[:1], composer)
    figure = _figure(base.results.objective)
    _refuse_base(base)
    points = [[text for text in one if not text.lstrip("+~").startswith("tune.")] for one in points]
    more = usual([text for one in points for text in one], base.tune.space, base)
    wanted = _wanted([[*one, *more] for one in points], base)
    left, ruled_out = _possible(wanted, composer)
    starts = [
        [*one.overrides, *([f"{SEED}={(base.parallel.seed or 0) + number}"] if number else [])]
        for one in left
        for number in range(STARTS)
    ]
    plan = road.plan(starts, composer, search=True)
    config = replace(plan.points[0].config, tune=base.tune)
    if figure == "output_per_s" and any(point.config.bench.is_open for point in plan.points):
        reason = "tokens/s are what is offered then, and no merit of a setting"
        raise ConfigError("goal", base.results.objective, reason, "Set goal=ttft_ms_mean or goal=tpot_ms_mean.")
    drafts = {speculation_of(point.config) for point in plan.points}
    if len(drafts) > 1 and not is_text(config.bench):
        raise ConfigError("bench.workload", config.bench.workload, NOT_TEXT, "Set bench.workload=text.")
    search = _search(left, plan, figure, config, ruled_out)
    _affordable(search, base)
    return Asked(plan, search, config, tuple(more))


def _refuse_base(base: Config) -> None:
    """Raise ConfigError for what no setting of a search may have."""
    if limit := base.launch.budget_node_hours:
        reason, remedy = "a search has a budget of its own", "Set tune.budget_node_hours instead."
        raise ConfigError("launch.budget_node_hours", limit, reason, remedy)
    for name, limit in asdict(base.bench.slo).items():
        if limit and name not in LIMITS.values():
            remedy = f"Limit {' or '.join(LIMITS.values())}."
            raise ConfigError(f"bench.slo.{name}", limit, "nothing is forecast of it", remedy)


def _figure(goal: str) -> str:
    """Return the figure of the model that the goal is."""
    check_objective(goal)
    figures = {column: name for name, (column, _) in COLUMNS.items()}
    if goal not in figures:
        raise ConfigError("goal", goal, "nothing is forecast of it", f"Give one of: {', '.join(figures)}.")
    return figures[goal]


def _wanted(points: Sequence[Sequence[str]], base: Config) -> list[_Wanted]:
    """Return every setting that is asked for."""
    space = {key: _values(key, given) for key, given in base.tune.space.items()}
    if any(f"{LOAD}=auto" in one for one in points) or base.tune.space.get(LOAD) == "auto":
        points, space[LOAD] = [[t for t in one if t != f"{LOAD}=auto"] for one in points], list(AROUND)
    axes = [[(key, one) for one in values] for key, values in space.items()]
    count = len(points) * math.prod(map(len, axes))
    if count < 2:
        raise ConfigError("tune.space", base.tune.space or "(empty)", "one setting is no space to search", _SWEEP)
    if count > MOST:
        raise ConfigError("tune.space", f"{count} settings", f"more than {MOST} are too many", "Give fewer values.")
    common = set.intersection(*map(set, points))
    found = []
    for point, choice in itertools.product(points, itertools.product(*axes)):
        several = [f"{key}={_text(one)}" for (key, one), axis in zip(choice, axes, strict=True) if len(axis) > 1]
        name = " ".join([*(text for text in grammar.ours(point) if text not in common), *several])
        chosen = [drafting(one, base) if key == SPECULATION else f"{key}={_text(one)}" for key, one in choice]
        found.append(_Wanted(name, (*grammar.ours(point), *chosen)))
    return found


def _values(key: str, given: Any) -> list[Any]:
    """Return the values of a key of the space. Raises ConfigError: see `ask`."""
    values = given if isinstance(given, list) else [given]
    groups = grammar.groups()
    if key == SEED:
        raise ConfigError("tune.space", key, "each setting is started under several seeds anyway", "Leave it out.")
    if len(set(map(str, values))) < len(values):
        raise ConfigError("tune.space", f"{key}: {given}", "a value stands in it twice", "Give each one once.")
    if not values or any(isinstance(one, list) for one in values):
        raise ConfigError("tune.space", f"{key}: {given}", "it has no values to choose from", "Write a list: [16, 32].")
    if given == "auto" and key not in AUTO:
        reason, remedy = "nothing derives it", f"auto is for {' and '.join(AUTO)}; give a list of values."
        raise ConfigError("tune.space", f"{key}: auto", reason, remedy)
    if key in groups:
        for one in values:
            if one not in groups[key]:
                remedy = nearest(str(one), groups[key])
                raise ConfigError("tune.space", f"{key}: {one}", "there is no such option", remedy)
    elif key != SPECULATION:
        schema.check_key(key, given)
    return values


def _text(value: Any) -> str:
    """Return a value as an override has it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(one)}" for key, one in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _possible(wanted: Sequence[_Wanted], composer: compose.Composer) -> tuple[list[_Wanted], dict[str, str]]:
    """Derive what is `auto`. Returns the settings that may be started, and why the others may not.

    Raises:
        ConfigError: none may be started; a value is none.
    """
    found, configs = _derived(wanted, composer)
    overrides = [one.overrides for one in found]
    swept = grammar.swept_keys(overrides)
    if strange := next((key for key in swept if changes_work(key)), None):
        reason = "it changes what is asked or how it is measured, and no setting wins by that"
        remedy = "Give it one value, and start one search for each further one."
        raise ConfigError("tune.space", strange, reason, remedy)
    points = points_of(overrides, configs, swept)
    past = history.forecaster(Root(Path(configs[0].results.root).absolute()))
    left: dict[str, _Wanted] = {}
    ruled_out: dict[str, str] = {}
    for one, point in zip(found, points, strict=True):
        try:
            check.refuse(check.findings(point.config))
        except ConfigError as error:
            ruled_out[one.name] = f"rule: {error}"
            continue
        if refusal := past(point.config).fit.refusal:
            ruled_out[one.name] = f"memory: {refusal}"
        else:
            left.setdefault(point.point, one)
    if not left:
        name, reason = next(iter(ruled_out.items()))
        reason = f"none can be started: {name}: {reason}"
        raise ConfigError("tune.space", f"{len(found)} settings", reason, "Mend that.")
    return list(left.values()), ruled_out


def _derived(wanted: Sequence[_Wanted], composer: compose.Composer) -> tuple[list[_Wanted], list[Config]]:
    """Return the settings with what is `auto` derived, and their configs."""
    found = list(wanted)
    for key, derive in AUTO.items():
        at = [place for place, one in enumerate(found) if any(MARKS.get(text) == key for text in one.overrides)]
        if not at:
            continue
        others = [[t for t in found[place].overrides if t not in MARKS] for place in at]
        configs = road.composed(others, composer)
        known = Known.of(Root(Path(configs[0].results.root).absolute()))
        for place, config in zip(at, configs, strict=True):
            one, value = found[place], derive(config, known)
            mark = next(text for text in one.overrides if MARKS.get(text) == key)
            text = f"{key}={around(value, mark, config)}"
            texts = tuple(text if word == mark else word for word in one.overrides)
            found[place] = _Wanted(" ".join(text if word == mark else word for word in one.name.split(" ")), texts)
    return found, road.composed([one.overrides for one in found], composer)


def _search(left: Sequence[_Wanted], plan: Plan, figure: str, config: Config, ruled_out: Mapping[str, str]) -> Search:
    points = {point.point: point for point in plan.points}
    services = {service.service: service for service in plan.services}
    starts = [plan.asked[number : number + STARTS] for number in range(0, len(plan.asked), STARTS)]
    keys = _keys([{k: v for k, v in points[one[0]].values.items() if k != SEED} for one in starts])
    candidates = [
        _candidate(one.name, points[ids[0]].config, services[points[ids[0]].service], key)
        for one, ids, key in zip(left, starts, keys, strict=True)
    ]
    root = Root(Path(config.results.root).absolute())
    # What a search learns from its own rows, it must not have learnt before.
    subjects = [one.subject for one in candidates]
    known = learnt_of(root, config.engine.name, but=subjects).of_machine(subjects)
    settings = [
        Setting(
            one,
            tuple(
                masking.mask([text for text in asked.overrides if not text.startswith(("launch.", "results.name="))])
            ),
            tuple(ids),
            tuple(points[point].service for point in ids),
        )
        for one, asked, ids in zip(candidates, left, starts, strict=True)
    ]
    return Search(
        goal=Goal(figure, limits_of(config)),
        budget_hours=config.tune.budget_node_hours or 0.0,
        windows=usual_windows(config.bench),
        mean=tuple(known.mean.tolist()),
        covariance=tuple(map(tuple, known.covariance.tolist())),
        settings=tuple(settings),
        ruled_out=ruled_out,
        plan=as_json(plan),
    )


def _candidate(name: str, config: Config, service: Service, keys: tuple[float, ...]) -> Candidate:
    subject = subject_of(config, service.forecast.fit if service.forecast else None)
    if subject is None or config.bench.is_external or config.bench.search:
        key, value = "bench.workload", config.bench.workload
        reason = "nothing is known beforehand of such a load"
        raise ConfigError(key, value, reason, "Search with the tool's own client and a workload of known lengths.")
    nodes, took = len(local_sizes(config)), service.phases or phases([config])
    window = measure_seconds(config) / usual_windows(config.bench)
    load = nodes * (took.load + took.teardown) / 3600
    return Candidate(name, keys, subject, load, nodes * window / 3600, service=service.service)


def _keys(values: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
    """Return the place of each point in the space: of each key the rank of its value, from 0 to 1."""
    ranks = {}
    for key in values[0]:
        known = {one[key] for one in values if _is_number(one[key])}
        texts = dict.fromkeys(str(one[key]) for one in values if not _is_number(one[key]))
        ranks[key] = [*map(str, sorted(known)), *texts]
    return [
        tuple(places.index(str(one[key])) / max(1, len(places) - 1) for key, places in ranks.items()) for one in values
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _affordable(search: Search, base: Config) -> None:
    """Raise ConfigError where there is no budget, or one that does not reach for a start."""
    candidates = [one.candidate for one in search.settings]
    least = min(one.load_hours + search.windows * one.window_hours for one in candidates)
    budget, key = base.tune.budget_node_hours, "tune.budget_node_hours"
    if budget is None:
        raise ConfigError(key, "(not set)", "a search needs a budget", f"Set {key}={10 * least:.3g}, for example.")
    if budget < least:
        reason = f"one start and its windows take about {least:.2f} node-hours"
        raise ConfigError(key, budget, reason, "Give more, or shorten bench.window_s.")
