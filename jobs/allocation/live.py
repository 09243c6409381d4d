"""A service that is ready, as rank 0 uses it: its points are measured one after the other, or by turns."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from jobs.allocation import serving, watch
from jobs.allocation.agenda import Agenda
from jobs.allocation.context import RankContext
from jobs.allocation.life import Life, ServiceFailed
from jobs.allocation.node import client_site, container
from jobs.allocation.node.engine import Engine
from jobs.allocation.rows import RowLedger
from jobs.allocation.supervisor import Supervisor
from jobs.allocation.turns import Turns
from jobs.cluster.squeue import others_wait
from jobs.core.config import Config
from jobs.core.files import write_json
from jobs.core.log import log
from jobs.core.planfile import read_plan
from jobs.core.waiting import aside
from jobs.forecast.duration import point_seconds
from jobs.measure.clients import base as clients
from jobs.measure.clients.run import ExternalRun
from jobs.measure.point import Enough, Measured, OfService, PointRun
from jobs.measure.records import Target
from jobs.measure.saved import save
from jobs.results.row import write_rows
from jobs.results.table import write_table


@dataclass
class LiveService:
    """A running service, whose points go into the ledger `rows`. `engine` is that of rank 0 alone.

    `out_of_time`: it is to be stopped before its last point; `yielded`: because others wait.
    """

    context: RankContext
    configs: Mapping[str, Config]
    rows: RowLedger
    engine: Engine
    supervisor: Supervisor
    life: Life
    target: Target
    out_of_time: bool = False
    yielded: bool = False
    _shared: OfService = field(default_factory=OfService)
    _ahead: int | None = 0

    def within_time(self, points: tuple[str, ...]) -> tuple[str, ...]:
        """Return the first of these points, as many as end before the time limit."""
        needed = 0.0
        for number, point in enumerate(points):
            needed += point_seconds(self.configs[point])
            if lacks := self.context.walltime.lacks(needed):
                log(f"point {point}: not begun: {lacks}")
                self.out_of_time = True
                return points[:number]
        return points

    async def must_yield(self) -> bool:
        """Return whether other users wait for the nodes and this sweep lets them have these."""
        partition = self.context.inherited.get("SLURM_JOB_PARTITION")
        if not self.engine.config.cluster.yield_to_others or partition is None:
            return False
        if await aside(others_wait, partition, getpass.getuser()):
            log("other users' jobs wait: stopping after this point (cluster.yield_to_others)")
            self.out_of_time = self.yielded = True
        return self.yielded

    async def measure(self, points: tuple[str, ...], agenda: Agenda) -> None:
        """Measure points by turns and write their rows; `agenda` says whether they need a further window.

        Raises:
            ServiceFailed: the service has failed; the rows say so.
            RunError: a row cannot be written.
        """
        stop, seen = asyncio.Event(), self.supervisor.watch
        enough = await aside(agenda.enough, points[0])
        runs = {point: self._run_of(point, stop, enough) for point in points}
        if seen:
            # What the points before left in flight may still be read when these begin.
            ahead = [watch.tokens_ahead(self.configs[point]) for point in points]
            now = None if None in ahead else max(one for one in ahead if one is not None)
            seen.ahead = None if now is None or self._ahead is None else max(now, self._ahead)
            self._ahead = now

        async def between(point: str) -> None:
            """Write what there is so far: what is killed meanwhile leaves it."""
            if runs[point].has_figures:
                await aside(self._write, point, self.rows.so_far(point, runs[point].result()), None)

        turns = Turns(runs, stop, between, partial(agenda.round_over, runs))
        await self.life.during(turns.run(), stop.set)
        measured = {point: run.result() for point, run in runs.items()}
        doubtful = any(one.reason for one in measured.values())
        failure = await (self.life.failure_soon() if doubtful else self.life.failure())
        self.rows.from_outside = failure is not None and self.life.from_outside
        for point, found, why in self.rows.of_turns(measured, turns.cut, failure):
            await aside(self._save, point, found, why)
        if failure:
            raise ServiceFailed(failure)

    def _run_of(self, point: str, stop: asyncio.Event, enough: Enough) -> PointRun:
        config = self.configs[point]
        values = next(one.values for one in read_plan(self.context.folder.sweep).points if one.point == point)
        log(f"point {point}: {' '.join(f'{k}={v}' for k, v in values.items()) or 'measure'}")
        client = self._external_run(point) if config.bench.is_external else None
        entered = partial(self.supervisor.enter, point=point)
        return PointRun(config, self.target, self._shared, self.supervisor.watch, stop, entered, client, enough)

    async def serve(self) -> None:
        """Keep the service up for hand tests until this job is told to end: that is its good end.

        Raises:
            ServiceFailed: it has failed before.
        """
        context, config, began = self.context, self.engine.config, time.monotonic()
        login = context.inherited.get("SLURM_SUBMIT_HOST")
        place, further = self.engine.place, self.target.further
        how = serving.describe(config, context.folder, place, context.task.host, login, further)
        write_json(context.folder.serving, how)
        log(serving.text(context.folder))
        self.supervisor.enter("serving")
        try:
            await self.life.during(asyncio.Event().wait())
        except ServiceFailed:
            if not self.life.told:
                raise
        finally:
            context.folder.serving.unlink(missing_ok=True)
        write_rows(context.folder.sweep, self.rows.served(time.monotonic() - began))

    def _external_run(self, point: str) -> ExternalRun:
        config, tag = self.configs[point], self.context.tag(f"client/{point}")
        site = client_site.of(self.engine, config, self.context.inherited)
        if not clients.runs_inside(config):  # the model's path may be one of the inside
            config = replace(config, model=replace(config.model, path=str(container.checkpoint(self.engine.config))))
        return ExternalRun(config, site, self.context.folder.sweep.point(point).client, tag)

    def _save(self, point: str, measured: Measured, failure: str | None) -> None:
        row = self._write(point, measured, failure)
        words = "valid" if row["valid"] else row["invalid_reason"]
        log(f"point {point}: {words}, {row['output_tok_per_s'] or 0:.1f} output tok/s")
        for note in measured.notes:
            log(f"point {point}: note: {note}")

    def _write(self, point: str, measured: Measured, failure: str | None) -> Mapping[str, Any]:
        sweep, row = self.context.folder.sweep, self.rows.measured(point, measured, failure)
        save(sweep.point(point), measured)
        write_rows(sweep, [row])
        write_table(sweep)
        return row
