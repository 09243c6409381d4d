"""launch.py: plan, submit, follow, print the table."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.cli import output, through_hydra
from jobs.cluster.sick_nodes import proposal
from jobs.core.errors import UserError
from jobs.core.rundir import Root, SweepDir
from jobs.results import provenance
from jobs.results.report import write_report
from jobs.results.row import read_row
from jobs.sweep import compose, grammar, reuse, road, show
from jobs.sweep.follow import follow
from jobs.sweep.plan import Plan
from jobs.sweep.start import start


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        points: ids in the order in which the points were asked for; None: the question cannot be asked.
        rows: of the table, by id.
        code: exit code: 0: all rows are valid, or nothing was waited for; 1: a row is invalid; INTERRUPTED.
        column: what a study optimises.
        worst: stands for a row that is invalid, saturated or lacks the figure, so that the study goes on; None:
            nothing does.
    """

    points: tuple[str | None, ...] = ()
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    code: int = 0
    column: str = "output_tok_per_s"
    worst: float | None = None

    def objective(self, index: int) -> float | None:
        """Return the figure of a point for Hydra's sweepers, `worst` for an invalid or saturated row."""
        row = self.rows.get(self.points[index] or "") if self.points else None
        value = row[self.column] if row and row["valid"] and not row.get("saturated") else None
        return self.worst if value is None else float(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run launch.py. Returns its exit code, 0: all rows valid; 1: a run failed; 2: the question cannot be asked."""
    try:
        given = grammar.spelled(sys.argv[1:] if arguments is None else arguments)
        overrides = [word for word in given if word not in through_hydra.MODES]
        if "--version" in given:
            print(provenance.version())
            return 0
        if through_hydra.is_asked(given):
            return through_hydra.main(given)
        if "-m" not in given and "--multirun" not in given:
            grammar.refuse_sweeps(overrides)
        return launch(compose.expand(overrides)).code
    except UserError as error:
        logging.info("the sweep failed", exc_info=True)
        return output.show(error)
    except KeyboardInterrupt:
        output.tell("\ninterrupted: python -m jobs status RUN tells what was submitted before", file=sys.stderr)
        return output.INTERRUPTED


def launch(points: Sequence[Sequence[str]], composer: compose.Composer = compose.default_composer) -> Outcome:
    """Run one sweep as its config says; `points` has the override list of each point.

    Raises:
        UserError: it cannot be asked, or was not submitted.
    """
    made = road.plan(points, composer)
    settings = made.points[0].config
    out = show.console()
    show.print_plan(made, out)
    earlier = reuse.find(made.points, reuse.roots_of(settings.results.root, settings.results.roots))
    for line in reuse.offer_text(earlier, taken=settings.launch.reuse):
        out.print(line, markup=False)
    for line in proposal(settings, Root(Path(settings.results.root).absolute())):
        out.print(f"note: {line}", markup=False)
    if settings.launch.dry_run:
        out.exact("\n" + show.commands_text(made))
        out.print("dry run: nothing was submitted")
        return Outcome()
    sweep = start(made, reuse.taken(earlier, settings.launch))
    out.print(show.begun_text("sweep", sweep, settings.results.name), markup=False)
    if not settings.launch.follow:
        out.print(f"submitted; follow it by: python -m jobs follow {sweep.path}")
        return Outcome()
    return _followed(made, sweep, out)


def _followed(made: Plan, sweep: SweepDir, out: show.Terminal) -> Outcome:
    """Follow to the end and print the table."""
    try:
        valid = follow(sweep, out)
    except KeyboardInterrupt:
        out.print(f"\ndetached: the sweep goes on. Follow it by: python -m jobs follow {sweep.path}")
        return Outcome(code=output.INTERRUPTED)
    show.print_table(sweep, out)
    written = write_report(sweep, out.exact)
    out.print(f"report: {written}", markup=False)
    return Outcome(made.asked, rows_of(made, sweep), 0 if valid else 1)


def rows_of(made: Plan, sweep: SweepDir) -> dict[str, Mapping[str, Any]]:
    """Return the rows of a sweep that has ended, by point."""
    return {point.point: read_row(sweep.point(point.point).row) for point in made.points}
