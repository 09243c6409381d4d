"""Two settings that are to be told apart: what is asked, what a pair costs, and the sweeps in which pairs are measured.

Where A and B are loads of one service its windows are the pairs, measured by turns (A B, B A); else a pair is a start
of each, in balanced order. Every start of a setting has a seed of its own, as `parallel.seed=1,2,3` has it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.allocation.node import fingerprint
from jobs.cluster.base import ENDED, job_state
from jobs.cluster.time_limit import SIGNAL_DELAY_S, limit_seconds
from jobs.core import schema
from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.core.fields import dotted
from jobs.core.lock import exclusive
from jobs.core.rundir import Root, SweepDir, check_root
from jobs.engines.base import is_simulated
from jobs.engines.speculation import speculation_of
from jobs.forecast.observed import COLUMNS
from jobs.forecast.search import hours_of
from jobs.measure.dataset import is_text
from jobs.results.columns import OFFERED, changes_work
from jobs.results.fingerprint import Fingerprint
from jobs.results.pairs import NOT_TEXT, Pair, Question, Standing, of_sweep, read_question, standing
from jobs.results.row import NOT_RUN, outdated, row_of
from jobs.results.sequential import ALPHA, BETA, first_pairs
from jobs.sweep import compose, road
from jobs.sweep.plan import Plan
from jobs.sweep.points import identity
from jobs.sweep.reuse import launch_view, of_dataset

MOST = 30
"""Pairs, where no budget is given."""

GOALS = tuple(column for column, _ in COLUMNS.values())

_WORDS = re.compile(r"\s+(?=[~+]*[A-Za-z_][\w./@-]*=)")
"""Between two overrides in one argument: 'a=1 b=[2, 3]'."""

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)")


def share(text: str) -> float:
    """Return the difference that is to be found as a share: 3% or 0.03. ConfigError: it is none, nothing, or all."""
    match = _SHARE.fullmatch(text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if not 0 < value < 1:
        reason = "a share above 0 and below 100 % is needed"
        raise ConfigError("--difference", text, reason, "Write 3% or 0.03: what is less is no difference to you.")
    return value


Sides = tuple[tuple[str, ...], tuple[str, ...]]
"""Overrides of A and of B."""


def settings_of(arguments: Sequence[str], common: Sequence[str]) -> Sides:
    """Return the overrides of A and of B: each is an argument, or both are the values of one key (key=1,2).

    Args:
        arguments: each with the overrides of one setting, in quotes where there are several.
        common: overrides that both have, which come first.

    Raises:
        ConfigError: they are not two, or one of their keys is not known.
    """
    points = [point for one in arguments for point in compose.expand([*common, *_WORDS.split(one.strip())])]
    if len(points) != 2:
        reason = f"two settings are compared, and these are {len(points)}"
        remedy = "Give A and B, each in quotes if it has several overrides; what both have goes after --with."
        raise ConfigError("A B", " ".join(arguments) or "(none)", reason, remedy)
    return tuple(points[0]), tuple(points[1])


def versions_of(word: str, common: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the overrides of each value of a key, in their order.

    Raises:
        ConfigError: it has less than two values, or something else is swept too.
    """
    points, values = compose.expand([*common, word]), compose.expand([word])
    if len(values) < 2 or len(points) != len(values):
        reason = "one value has none before it" if len(values) < 2 else "something else has several values too"
        raise ConfigError("--bisect", word, reason, "Write KEY=V1,V2,V3: of one key, in order, the good one first.")
    return [tuple(point) for point in points]


@dataclass(frozen=True)
class Budget:
    """What may be spent: node-hours, or pairs; None: no limit by it. What comes next counts by the plan's estimate."""

    hours: float | None = None
    pairs: int | None = None

    def check(self) -> None:
        """Raise ConfigError for a budget that is none."""
        for key, value in (("--node-hours", self.hours), ("--pairs", self.pairs)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(key, value, "a number above 0 is needed", "Give a budget.")


@dataclass(frozen=True)
class Past:
    """A sweep of a contest that was made before, and why its rows count no more (empty: they do)."""

    sweep: SweepDir
    question: Question
    stale: str

    @cached_property
    def pairs(self) -> list[Pair]:
        """What its pairs said."""
        return of_sweep(self.sweep, self.question)


@dataclass(frozen=True)
class Contest:
    """A question and what it costs.

    Attributes:
        names: of A and B, without what both have.
        sides: overrides of A and of B.
        configs: of A and of B.
        goal, difference: which figure, and by which share.
        by_windows: pairs are windows of one service.
        load_hours: node-hours of the service that all pairs of a sweep share; `pair_hours`: of one pair.
        fits: pairs that one sweep can have.
        errors: alpha and beta.
    """

    names: tuple[str, str]
    sides: Sides
    configs: tuple[Config, Config]
    goal: str
    difference: float
    by_windows: bool
    load_hours: float
    pair_hours: float
    fits: int
    errors: tuple[float, float] = (ALPHA, BETA)

    @property
    def name(self) -> str:
        """The name of its sweeps: the same for the same two settings, whatever the goal and the budget."""
        parts = [identity(one, "service", "point") for one in self.configs]
        return "decide-" + hashlib.sha256(" ".join(parts).encode()).hexdigest()[:10]

    @property
    def root(self) -> Path:
        """Where its sweeps are."""
        return Path(self.configs[0].results.root).absolute()

    def plan(self, first: int, count: int, composer: compose.Composer = compose.default_composer) -> Plan:
        """Plan a sweep of so many pairs; `first` is the number of its first one."""
        return road.plan(_points(self.sides, self.configs, self.by_windows, first, count, self.name), composer)

    @property
    def least(self) -> int:
        """Pairs before which nothing is decided."""
        return first_pairs(by_turns=self.by_windows)

    def affordable(self, budget: Budget, pairs: int, hours: float) -> int:
        """Return how many pairs the next sweep may have, after so many pairs and node-hours in sweeps before it."""
        limits = [self.fits]
        if budget.hours is not None:
            limits.append(math.floor((budget.hours - hours - self.load_hours) / self.pair_hours + 1e-9))
        if budget.pairs is not None or budget.hours is None:
            limits.append((budget.pairs or MOST) - pairs)
        return max(0, min(limits))

    def check(self, budget: Budget) -> None:
        """Raise ConfigError where a budget does not reach for one pair."""
        if self.affordable(budget, 0, 0.0) < 1:
            reason = f"one pair takes about {self.load_hours + self.pair_hours:.2f} node-hours"
            raise ConfigError("--node-hours", budget.hours, reason, "Give more, or shorten bench.window_s.")

    @contextmanager
    def alone(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Hold the question while it is looked what to begin: of two calls at once the second follows the first's.

        `tell`: for whom it waits.
        """
        try:
            check_root(self.root)
        except RunError:  # nothing is begun there
            yield
            return
        path = Root(self.root).deciding(self.name)
        with exclusive(path, lambda who: tell(f"waiting: {who} is beginning the same question"), required=False):
            yield

    def _sweeps(self, tell: Callable[[str], None]) -> Iterator[tuple[SweepDir, Question]]:
        """The sweeps of this user that asked for these two settings before, oldest first.

        They are gone on with: a directory of this name that somebody else has made is passed over. So is a question
        that cannot be read, which is told.

        Raises:
            RunError: such a one still runs, and would go on beside the next.
        """
        for number in itertools.count(1):
            sweep = SweepDir(self.root / (self.name if number == 1 else f"{self.name}-{number}"))
            if not sweep.path.is_dir():
                return
            if not sweep.writable or not sweep.plan.exists():
                continue
            try:
                question = read_question(sweep)
            except RunError as error:
                if runs(sweep):
                    remedy = f"Cancel it first: python -m jobs cancel {sweep.path}"
                    raise RunError("question.json", sweep.path, f"{error.reason}, and it runs", remedy) from None
                tell(f"not counted: {sweep.path}: its question.json cannot be read: {error.reason}")
                continue
            if question:
                yield sweep, question

    def past(self, tell: Callable[[str], None] = lambda _: None) -> tuple[Past, ...]:
        """Return them as they tell of what is asked now. `tell`, and errors: see `_sweeps`."""
        found = []
        for sweep, asked in self._sweeps(tell):
            there = {name: getattr(asked, name) for name in ("pairs", "windows", "most", "earlier")}
            question = self._asked(**there)
            found.append(Past(sweep, question, _stale(sweep, question, self.configs)))
        return tuple(found)

    def hours(self, past: Sequence[Past]) -> float:
        """Return what the pairs of earlier sweeps have cost, node-hours: as their rows tell it, else by the plan."""
        return sum(self._took(one) for one in past)

    def _took(self, one: Past) -> float:
        rows = [row for pair in one.question.pairs for point in pair if (row := row_of(one.sweep, point))]
        begun = [row for row in rows if not str(row["invalid_reason"]).startswith(NOT_RUN)]
        if not begun:  # its windows are measured, and no row is written yet
            return self.load_hours + len(one.pairs) * self.pair_hours if one.pairs else 0.0
        told = [hours_of(row, shared=self.by_windows and row is not begun[0]) for row in begun]
        return sum(self.pair_hours / 2 if hours is None else hours for hours in told)

    def standing(self, past: Sequence[Past]) -> Standing:
        """Return what all pairs of sweeps say together."""
        pairs = [pair for one in past for pair in one.pairs]
        return standing(self._asked(most=len(pairs), windows=int(self.by_windows)), pairs)

    def _asked(self, **about: Any) -> Question:
        alpha, beta = self.errors
        base = Question(self.goal, self.difference, (), 0, 0, (), alpha, beta)
        return replace(base, **about)

    def question(self, made: Plan, most: int, past: Sequence[Past]) -> Question:
        """Return what a new sweep is to decide, after those that count."""
        ids = made.asked
        pairs = tuple(zip(ids[::2], ids[1::2], strict=True))
        logs = tuple(pair for one in past for pair in one.pairs if not isinstance(pair, str))
        return self._asked(pairs=pairs, windows=most if self.by_windows else 0, most=most, earlier=logs)


def ask(sides: Sides, goal: str, difference: float, composer: compose.Composer = compose.default_composer) -> Contest:
    """Return what is asked, with what it costs.

    Raises:
        ConfigError: A and B are one setting, nothing measures the goal, or one of them may not be started.
    """
    one, two = road.composed(sides, composer)
    check(one, two, sides, goal)
    common = set(sides[0]) & set(sides[1])
    names = tuple(" ".join(word for word in side if word not in common) or "(as it is)" for side in sides)
    by_windows = identity(one, "service") == identity(two, "service")
    if by_windows and (one.bench.is_external or two.bench.is_external):
        reason = "windows of two loads of one service go by turns, which only the tool's own client does"
        raise ConfigError("bench.client", one.bench.client, reason, "Leave bench.client out.")
    first = road.plan(_points(sides, (one, two), by_windows, 0, 1, None), composer)
    if first.refused:
        reason = f"one of them cannot be started: {next(iter(first.refused.values()))}"
        raise ConfigError("A B", " | ".join(names), reason, "See launch.infeasible.")
    total = sum(one.node_hours for one in first.allocations)
    load, fits = 0.0, MOST_OF_A_SWEEP
    if by_windows:
        [service] = first.services
        nodes = first.allocations[0].nodes
        spent = service.phases
        fixed_s = spent.load + spent.teardown if spent else 0.0
        load = nodes * fixed_s / 3600
        fits = _fits(one, fixed_s, service.seconds - fixed_s)
    return Contest((names[0], names[1]), sides, (one, two), goal, difference, by_windows, load, total - load, fits)


def runs(sweep: SweepDir) -> bool:
    """Return whether an allocation of a sweep is queued or running."""
    return any(job_state(folder) not in ENDED for folder in sweep.allocations())


MOST_OF_A_SWEEP = 60
"""Pairs that one sweep has at most: its plan holds the commands of every start."""


def _fits(config: Config, fixed_s: float, pair_s: float) -> int:
    """Return how many pairs of windows one allocation has time for."""
    limit = limit_seconds(config.cluster.time_limit)
    if limit is None:
        return MOST_OF_A_SWEEP
    left = limit - SIGNAL_DELAY_S - fixed_s - 2 * config.limits.stop_s
    return max(1, min(MOST_OF_A_SWEEP, math.floor(0.9 * left / pair_s)))


def check(one: Config, two: Config, sides: Sequence[Sequence[str]], goal: str) -> None:
    """Raise ConfigError for two settings that cannot be told apart by a goal."""
    words = " | ".join(" ".join(side) for side in sides)
    if len({identity(_once(config), "service", "point") for config in (one, two)}) == 1:
        reason = "A and B are the same setting" + (", measured again" if one != two else "")
        raise ConfigError("A B", words, reason, "Let them differ in a key; starts are repeated anyway.")
    if is_simulated(one.engine.name) != is_simulated(two.engine.name):
        reason = "one of them is a rehearsal, and its figures are no measurement"
        raise ConfigError("A B", words, reason, "Give both the same engine.")
    if goal not in GOALS:
        raise ConfigError("--goal", goal, "no pair is compared by it", f"Give one of: {', '.join(GOALS)}.")
    for config in (one, two):
        bench = config.bench
        if bench.is_open and goal in OFFERED:
            reason = "at an offered rate it is the rate that is offered"
            raise ConfigError("--goal", goal, reason, "Give --goal ttft_ms_mean or tpot_ms_mean.")
        if bench.search:
            reason = "a search has no pairs of windows"
            raise ConfigError("bench.search", bench.search, reason, "Leave it out, and give a load.")
    _same_question(one, two, words)
    if not one.launch.follow:
        raise ConfigError("launch.follow", False, "an answer needs the rows", "Leave it out; Ctrl-C detaches.")
    if one.results.name:
        reason = "its sweeps are named after the question, so that it goes on where it was"
        raise ConfigError("results.name", one.results.name, reason, "Leave it out.")
    if one.launch.budget_node_hours:
        reason = "it would cut pairs in two"
        raise ConfigError("launch.budget_node_hours", one.launch.budget_node_hours, reason, "Give --node-hours.")


def _same_question(one: Config, two: Config, words: str) -> None:
    """Raise ConfigError for two settings that do not the same work, or are not measured in the same way."""
    for key in schema.schema():
        values = [dotted(config, key) for config in (one, two)]
        if values[0] != values[1] and changes_work(key):
            reason = "it changes what is asked or how it is measured, and no setting is faster by that"
            raise ConfigError(key, " and ".join(map(str, values)), reason, "Give both the same.")
    if one.bench.is_open != two.bench.is_open:
        reason = "one load is offered, the other one is held"
        raise ConfigError("A B", words, reason, "Give both a rate, or both a concurrency.")
    if speculation_of(one) != speculation_of(two) and not is_text(one.bench):
        raise ConfigError("bench.workload", one.bench.workload, NOT_TEXT, "Set bench.workload=text.")


def _once(config: Config) -> Config:
    """Return a config without what says how often it is measured."""
    return replace(config, parallel=replace(config.parallel, seed=None), bench=replace(config.bench, repeats=1))


def _points(
    sides: Sides, configs: Sequence[Config], by_windows: bool, first: int, count: int, name: str | None
) -> list[list[str]]:
    named = [f"results.name={name}"] if name else []
    if by_windows:
        return [[*side, f"bench.repeats={count}", *named] for side in sides]
    return [
        [*side, f"parallel.seed={(config.parallel.seed or 0) + number}", *named]
        for number in range(first, first + count)
        for side, config in zip(sides, configs, strict=True)
    ]


def _stale(sweep: SweepDir, question: Question, configs: tuple[Config, Config]) -> str:
    """Return what has changed since the rows of a sweep were measured; empty: nothing that is known."""
    views = launch_view(sweep)
    now = [fingerprint.of_this_host(config) for config in configs]
    for points in question.pairs:
        for point, seen, config in zip(points, now, configs, strict=True):
            if (row := row_of(sweep, point)) is None:  # it is still to be measured
                continue
            then = views.get(str(row.get("service")), Fingerprint())
            changes = [*seen.trusted(then, row).changes(row), *of_dataset(config, row)]
            if found := outdated(row, sweep) or ", ".join(changes):
                return found
    return ""
