"""One call of launch.py: compose, plan, submit, follow, print the table."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from jobs.allocation import submission
from jobs.allocation.entry import run_task
from jobs.allocation.node import container, fingerprint
from jobs.cluster.sbatch import check_programs, kind_of
from jobs.cluster.sick_nodes import proposal
from jobs.core import schema
from jobs.core.config import Config, in_container
from jobs.core.errors import ConfigError, RunError, UserError
from jobs.core.fields import from_root
from jobs.core.files import is_there, read_json, write_json
from jobs.core.rundir import Root, SweepDir, new_sweep
from jobs.core.sweep_settings import Launch
from jobs.core.tasks import ServiceTask, read_config, write_config
from jobs.forecast import history
from jobs.results.columns import check_objective
from jobs.results.provenance import describe
from jobs.results.report import write_report
from jobs.results.row import make_row
from jobs.results.table import read_table, write_table
from jobs.sweep import compose, reuse, show
from jobs.sweep.follow import follow
from jobs.sweep.plan import Allocation, Plan, as_json, make_plan
from jobs.sweep.resume import resume, together
from jobs.sweep.reuse import Past

if TYPE_CHECKING:
    import pandas as pd

INFORMATIVE = ("help", "hydra_help", "cfg", "info", "shell_completion")
"""Options of Hydra's command line with which it shows something and runs nothing."""


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        points: ids in the order in which the points were asked for; None: the question cannot be asked.
        rows: of the table, by id.
        column: what a study optimises.
        worst: stands for a row that is invalid, saturated or lacks the figure, so that the study goes on; None:
            nothing does.
    """

    points: tuple[str | None, ...]
    rows: Mapping[str, Mapping[str, Any]]
    column: str = "output_tok_s"
    worst: float | None = None

    def objective(self, index: int) -> float | None:
        """Return the figure of a point for Hydra's sweepers, `worst` for an invalid or saturated row."""
        row = self.rows.get(self.points[index] or "") if self.points else None
        value = row[self.column] if row and row["valid"] and not row.get("saturated") else None
        return self.worst if value is None else float(value)


def main() -> None:
    """Entry of launch.py. Exit code 0: all rows valid; 1: a run failed; 2: the question cannot be asked."""
    options = get_args_parser().parse_args()
    shown = [name for name in INFORMATIVE if getattr(options, name)]
    # Hydra would print its own errors, some with a traceback; with this it raises them, and we print one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.raiseExceptions = not shown  # --info logs to an output that may be closed
    try:
        if shown and (options.multirun or options.run):
            raise ConfigError(f"--{shown[0]}", "--multirun", "one of them shows, the other runs", "Give one of them.")
        # Hydra reads the command line itself; a value as it is typed may need quotes for its grammar.
        sys.argv = [compose.quoted(word) if word in options.overrides else word for word in sys.argv]
        options.overrides = [compose.quoted(word) for word in options.overrides]
        if not shown:
            compose.check(options.overrides)
            # Without -m the same path is taken with one point; a comma is then an error, as in Hydra.
            words = compose.first_point(options.overrides) if options.multirun else options.overrides
            compose.configs([compose.ours(words)])
            if not options.multirun:
                sys.argv = [word for word in sys.argv if word not in ("-r", "--run")] + ["--multirun"]
        schema.register()
        hydra.main(config_path=str(schema.CONF), config_name="config", version_base="1.3")(_never)()
    except UserError as error:
        fail(error)
    except compose.COMPOSITION_ERRORS as error:
        fail(compose.composition_error(error, options.overrides))
    except BrokenPipeError:
        raise
    except OSError as error:
        # Before the launcher is asked, Hydra writes its own record under results.root.
        remedy = "Choose a directory that you can write and all nodes see."
        fail(RunError("results.root", error.filename, f"it cannot be written: {error.strerror}", remedy))


def fail(error: UserError) -> NoReturn:
    """Print one clear error and exit with its code; the traceback is in the sweep's log where there is one."""
    out = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    out.print(Text.assemble(("error:", "bold red"), f" {error}"))
    sys.exit(error.exit_code)


def _never(_: DictConfig) -> None:
    """Hydra's task function: the launcher does the work, so this is never called."""


def plan(points: Sequence[Sequence[str]], composer: compose.Composer = compose.default_composer) -> Plan:
    """Plan a sweep: compose, validate, group. Nothing is written or submitted.

    Raises:
        ConfigError: the question cannot be asked.
    """
    words = [compose.ours(point) for point in points]
    configs = compose.configs(words, composer)
    check_objective(configs[0].results.objective)
    kinds: dict[str, str] = {}
    settled = []
    for one in configs:
        if one.cluster.kind not in kinds:
            kinds[one.cluster.kind] = kind_of(one.cluster)
        settled.append(replace(one, cluster=replace(one.cluster, kind=kinds[one.cluster.kind])))
    root = Root(Path(settled[0].results.root).absolute())
    return make_plan(words, settled, compose.swept_keys(words), history.forecaster(root))


def launch(points: Sequence[Sequence[str]], composer: compose.Composer = compose.default_composer) -> Outcome:
    """Run one sweep as its config says. Exits the process for errors and for invalid rows.

    Args:
        points: override list of each point.
        composer: composes the tree for a choice of groups.
    """
    try:
        made = plan(points, composer)
        settings = made.points[0].config
        out = show.console()
        if settings.launch.resume:
            return _resume(SweepDir(Path(settings.launch.resume)), settings.launch, out)
        out.print(show.plan_text(made))
        if warnings := show.warnings_text(made.findings):
            out.print(warnings, markup=False)
        earlier = reuse.find(made.points, reuse.roots_of(settings.results.root, settings.results.roots))
        for line in reuse.offer_text(earlier, taken=settings.launch.reuse):
            out.print(line, markup=False)
        for line in proposal(settings, Root(Path(settings.results.root).absolute())):
            out.print(f"note: {line}", markup=False)
        if settings.launch.dry_run:
            out.print("\n" + show.commands_text(made), markup=False)
            out.print("dry run: nothing was submitted")
            return Outcome((), {})
        sweep = start(made, taken(earlier, settings))
        out.print(f"sweep {sweep.path}")
        if not settings.launch.follow:
            out.print(f"submitted; follow it by: python -m jobs follow {sweep.path}")
            return Outcome((), {})
        _watch(sweep, out)
        rows = {point.point: read_json(sweep.point(point.point).row) for point in made.points}
        return Outcome(made.asked, rows)
    except UserError as error:
        logging.info("the sweep failed", exc_info=True)
        fail(error)


def taken(earlier: Mapping[str, Past], settings: Config) -> list[Past]:
    """Return the rows of other sweeps that are taken over."""
    return [one for one in earlier.values() if settings.launch.reuse and not one.stale]


def _resume(sweep: SweepDir, settings: Launch, out: Console) -> Outcome:
    finish(sweep, out, retry_failed=settings.retry_failed)
    if settings.follow:
        _watch(sweep, out)
    return Outcome((), {})


def finish(sweep: SweepDir, out: Console, *, retry_failed: bool) -> None:
    """Submit what is left of a sweep, and say so.

    Raises:
        RunError: it is not a sweep, it still runs, or the cluster refused.
    """
    found = open_sweep(sweep.path)
    for line in proposal(read_config(found, read_json(found.plan)["points"][0]["point"]), found.root):
        out.print(f"note: {line}", markup=False)
    points = resume(found, retry_failed=retry_failed)
    out.print(f"sweep {sweep.path}: {points} points are left" + ("" if points else ", nothing to do"), markup=False)


def open_sweep(path: Path) -> SweepDir:
    """Return the sweep in this directory.

    Raises:
        RunError: there is none.
    """
    found = SweepDir(path.resolve())
    if not found.plan.exists():
        raise RunError("RUN", path, "there is no plan.json in it", "Give the directory of a sweep, runs/<sweep>.")
    return found


def _watch(sweep: SweepDir, out: Console) -> None:
    """Follow to the end and print the table; exits the process on Ctrl-C and if a row is invalid."""
    try:
        valid = follow(sweep, out)
    except KeyboardInterrupt:
        out.print(f"\ndetached: the sweep goes on. Follow it by: python -m jobs follow {sweep.path}")
        sys.exit(130)
    print_table(sweep, out)
    out.print(f"report: {write_report(sweep)}", markup=False)
    if not valid:
        sys.exit(1)


def print_table(sweep: SweepDir, out: Console, table: pd.DataFrame | None = None) -> None:
    """Print the sweep table, the reason of every invalid row, and where the files are."""
    frame = read_table(sweep) if table is None else table
    swept = tuple(read_json(sweep.plan)["swept"])
    out.print(show.table_view(frame, swept, out.width if out.is_terminal else None))
    if reasons := show.reasons_text(frame):
        out.print(reasons, markup=False)
    out.print(f"table: {sweep.table('csv')}", markup=False)


def start(made: Plan, reused: Sequence[Past] = (), *, serve: bool = False) -> SweepDir:
    """Write the run directory and submit every allocation, at most `cluster.max_allocations` at a time.

    Args:
        made: what is to be done.
        reused: rows of other sweeps that stand for points of this one; these points are not run.
        serve: keep the one service up for hand tests, and measure nothing.

    Raises:
        ConfigError: this host has no Slurm.
        RunError: nothing was submitted, or (after some were) which allocation the cluster refused.
    """
    settings = made.points[0].config
    check_programs(settings.cluster.kind)
    local = settings.cluster.kind == "local"
    for service in made.services:
        container.check_submission(service.config)
    if local:
        for service in made.services:
            _check_here(service.config)
    sweep = record(made)
    if reused:
        reuse.take(sweep, reused)
        resume(sweep, retry_failed=False)
        return sweep
    for index, allocation in enumerate(together(made.allocations) if local else made.allocations):
        tasks = tasks_of(made, allocation)
        job = submission.submit_allocation(sweep, index, 1, tasks, settings, allocation.nodes, run_task, serve=serve)
        logging.info("allocation %s: job %s (%s)", index, job.job_id, job.kind)
    return sweep


def record(made: Plan) -> SweepDir:
    """Write the run directory: plan and configs. Nothing is submitted.

    Raises:
        RunError: it cannot be written.
    """
    settings = made.points[0].config
    sweep = new_sweep(
        Path(settings.results.root).absolute(), settings.results.name, datetime.now(), settings.cluster.share_group
    )
    _log_to(sweep)
    record = as_json(made)
    for item, service in zip(record["services"], made.services, strict=True):
        item["seen"] = asdict(fingerprint.of_this_host(service.config))
    write_json(sweep.plan, record)
    write_json(sweep.provenance, describe(sys.argv))
    for point in made.points:
        write_config(sweep, point.point, point.config)
        if reason := made.refused.get(point.point):
            row = make_row(point.point, point.service, point.config, invalid_reason=reason)
            write_json(sweep.point(point.point).row, row)
    if not made.allocations:
        write_table(sweep)
    return sweep


def tasks_of(made: Plan, allocation: Allocation) -> list[ServiceTask]:
    """Return what one allocation has to do, in order."""
    return [ServiceTask(name, tuple(point.point for point in made.points_of(name))) for name in allocation.services]


def _check_here(config: Config) -> None:
    """For local processes this machine is the node: say before the start what is missing."""
    if in_container(config):
        return  # its runtime was looked for (container.check_submission); the rest is inside
    program = from_root(config.engine.command[0])
    if not config.engine.source and program != "{python}" and not shutil.which(program):
        raise RunError(
            "engine.command", program, "there is no such program here", "Run `make setup`, or give its path."
        )
    path = Path(from_root(config.model.path))
    if config.engine.checks_model_path and not (there := is_there(path)):
        reason = "there is no such directory here" if there is False else "this user cannot see it"
        raise RunError("model.path", path, reason, "Run `make setup`, or stage the model.")


def _log_to(sweep: SweepDir) -> None:
    handler = logging.FileHandler(sweep.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
