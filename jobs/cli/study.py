"""Sweepers that learn from rows (hydra/sweeper=optuna): the column they optimise, and what an invalid row is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jobs.cli.launch import Outcome, rows_of
from jobs.cli.output import INTERRUPTED
from jobs.cli.through_hydra import Ended
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.results.columns import check_objective, high_is_best, low_is_best
from jobs.sweep import compose, grammar, reuse, road, show
from jobs.sweep.follow import follow
from jobs.sweep.start import start


def launch(
    points: Sequence[Sequence[str]], composer: compose.Composer, direction: str, best: dict[str, float]
) -> Outcome:
    """Run one batch of a study as a sweep of its own; an invalid row ends nothing.

    A point that cannot be asked is as bad as an invalid one: the sampler goes elsewhere.

    Args:
        points: override list of each trial.
        composer: composes the tree for a choice of groups.
        direction: minimize or maximize.
        best: the best trial of the batches before, its overrides and its value; brought up to date.

    Raises:
        Ended: of a dry run or after Ctrl-C.
        UserError: the study cannot be, or nothing could be submitted.
    """
    outcome = _batch(points, composer, direction)
    better = max if direction == "maximize" else min
    for index, point in enumerate(points):
        value = outcome.objective(index)
        if value is not None and math.isfinite(value):
            best[" ".join(grammar.ours(point))] = value
    if best:
        overrides = better(best, key=lambda key: best[key])
        value = best[overrides]
        best.clear()
        best[overrides] = value
        show.console().print(f"best so far: {outcome.column} = {value:.5g} with {overrides}", markup=False)
    return outcome


def _batch(points: Sequence[Sequence[str]], composer: compose.Composer, direction: str) -> Outcome:
    out = show.console()
    askable: list[Sequence[str]] = []
    asked: list[bool] = []
    for point in points:
        try:
            road.plan([point], composer)
            askable.append(point)
            asked.append(True)
        except ConfigError as error:
            asked.append(False)
            out.print(f"not asked: {' '.join(point)}: {error}", markup=False)
    if not askable:
        return Outcome((None,) * len(points), worst=worst(direction))
    made = road.plan(askable, composer)
    settings = made.points[0].config
    check(settings, direction)
    out.print(show.plan_text(made))
    if settings.launch.dry_run:
        out.print("dry run: these are the first trials of the study; nothing was submitted")
        raise Ended(0)
    earlier = reuse.find(made.points, reuse.roots_of(settings.results.root, settings.results.roots))
    folder = start(made, reuse.taken(earlier, settings.launch))
    out.print(show.begun_text("sweep", folder, settings.results.name), markup=False)
    try:
        follow(folder, out)
    except KeyboardInterrupt:
        out.print(f"\nthe study ends; its last sweep goes on. Follow it by: python -m jobs follow {folder.path}")
        raise Ended(INTERRUPTED) from None
    show.print_table(folder, out)
    ids = iter(made.asked)
    column = settings.results.objective
    found = tuple(next(ids) if one else None for one in asked)
    return Outcome(found, rows_of(made, folder), column=column, worst=worst(direction))


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
    if not config.launch.follow:
        raise ConfigError("launch.follow", False, "a study needs the rows of every batch", "Leave it out.")
