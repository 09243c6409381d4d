"""Sweepers that learn from rows (hydra/sweeper=optuna): the column they optimise, and what an invalid row is worth."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence

from jobs.core.config import Config
from jobs.core.errors import ConfigError, UserError
from jobs.core.files import read_json
from jobs.results.columns import check_objective, high_is_best, low_is_best
from jobs.sweep import compose, reuse, show
from jobs.sweep import launch as sweep
from jobs.sweep.follow import follow
from jobs.sweep.launch import Outcome


def launch(
    points: Sequence[Sequence[str]], composer: compose.Composer, direction: str, best: dict[str, float]
) -> Outcome:
    """Run one batch of a study as a sweep of its own. Exits the process for errors, but not for invalid rows.

    A point that cannot be asked is as bad as an invalid one: the sampler goes elsewhere.

    Args:
        points: override list of each trial.
        composer: composes the tree for a choice of groups.
        direction: minimize or maximize.
        best: the best trial of the batches before, its words and its value; brought up to date.
    """
    try:
        outcome = _batch(points, composer, direction)
    except UserError as error:
        logging.info("the study failed", exc_info=True)
        sweep.fail(error)
    better = max if direction == "maximize" else min
    for index, point in enumerate(points):
        words, value = " ".join(compose.ours(point)), outcome.objective(index)
        if value is not None and math.isfinite(value):
            best[words] = value
    if best:
        words = better(best, key=lambda key: best[key])
        value = best[words]
        best.clear()
        best[words] = value
        show.console().print(f"best so far: {outcome.column} = {value:.5g} with {words}", markup=False)
    return outcome


def _batch(points: Sequence[Sequence[str]], composer: compose.Composer, direction: str) -> Outcome:
    out = show.console()
    askable: list[Sequence[str]] = []
    asked: list[bool] = []
    for point in points:
        try:
            sweep.plan([point], composer)
            askable.append(point)
            asked.append(True)
        except ConfigError as error:
            asked.append(False)
            out.print(f"not asked: {' '.join(point)}: {error}", markup=False)
    if not askable:
        return Outcome((None,) * len(points), {}, worst=worst(direction))
    made = sweep.plan(askable, composer)
    settings = made.points[0].config
    check(settings, direction)
    out.print(show.plan_text(made))
    if settings.launch.dry_run:
        out.print("dry run: these are the first trials of the study; nothing was submitted")
        sys.exit(0)
    earlier = reuse.find(made.points, reuse.roots_of(settings.results.root, settings.results.roots))
    folder = sweep.start(made, sweep.taken(earlier, settings))
    out.print(f"sweep {folder.path}")
    try:
        follow(folder, out)
    except KeyboardInterrupt:
        out.print(f"\nthe study ends; its last sweep goes on. Follow it by: python -m jobs follow {folder.path}")
        sys.exit(130)
    sweep.print_table(folder, out)
    rows = {point.point: read_json(folder.point(point.point).row) for point in made.points}
    ids = iter(made.asked)
    column = settings.results.objective
    return Outcome(tuple(next(ids) if one else None for one in asked), rows, column, worst(direction))


def worst(direction: str) -> float:
    """Return the value that is worse than every other. Optuna takes infinity as a value, and fails a trial for NaN."""
    return -math.inf if direction == "maximize" else math.inf


def check(config: Config, direction: str) -> None:
    """Raise ConfigError for a study that cannot be, or that would look for the worst setting."""
    column = config.results.objective
    check_objective(column)
    wanted = "maximize" if high_is_best(column) else "minimize" if low_is_best(column) else direction
    if direction != wanted:
        reason = f"of {column} this direction is that of the worst setting"
        raise ConfigError("hydra.sweeper.direction", direction, reason, f"Set hydra.sweeper.direction={wanted}.")
    if config.launch.resume or not config.launch.follow:
        key = "launch.resume" if config.launch.resume else "launch.follow"
        value = config.launch.resume or config.launch.follow
        raise ConfigError(key, value, "a study needs the rows of every batch", "Leave it out.")
