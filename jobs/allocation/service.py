"""One service of an allocation, from its start to its rows: rank 0's part."""

from __future__ import annotations

import asyncio
import getpass
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from jobs.allocation import serving, watch
from jobs.allocation.context import RankContext
from jobs.allocation.control import ControlServer
from jobs.allocation.life import Life, ServiceFailed
from jobs.allocation.messages import EngineStart
from jobs.allocation.node import container, fingerprint
from jobs.allocation.node.engine import Engine
from jobs.allocation.rows import End, Row, RowLedger
from jobs.allocation.supervisor import Supervisor
from jobs.allocation.walltime import point_seconds, service_seconds
from jobs.cluster.squeue import others_wait
from jobs.core.errors import RunError, UserError
from jobs.core.files import read_json, write_json, write_text
from jobs.core.layout import local_sizes
from jobs.core.log import log, read_all
from jobs.core.rundir import AllocationDir
from jobs.core.tasks import ServiceTask, read_config
from jobs.core.waiting import aside
from jobs.diagnose import explain
from jobs.engines.base import engine_of
from jobs.engines.placement import Placement
from jobs.engines.vllm import environment
from jobs.forecast import history
from jobs.forecast.history import Forecast
from jobs.measure import dataset
from jobs.measure.clients import base as clients
from jobs.measure.clients.run import ExternalRun
from jobs.measure.point import Measured, OfService, PointRun, save
from jobs.measure.records import Target
from jobs.results.stale import retire
from jobs.results.table import write_table


class ServiceRun:
    """One service: its engine, its points, their rows."""

    def __init__(
        self,
        context: RankContext,
        service: ServiceTask,
        control: ControlServer,
        stopping: asyncio.Future[str],
        attempt: int,
    ) -> None:
        """Args: where we are, what is to be done, the channel, a future that ends us, this attempt's number."""
        self._context, self._service, self._control = context, service, control
        self._stopping, self._attempt = stopping, attempt
        self._sweep = context.folder.sweep
        self._configs = {point: read_config(self._sweep, point) for point in service.points}
        self._config = self._configs[service.points[0]]
        self._folder = self._sweep.service(service.service, attempt)
        self.rows = RowLedger(service.service, self._configs)
        self._shared = OfService()
        self.yielded = False
        self._ahead: int | None = 0
        self._served = False
        self._api_key = context.folder.api_key.read_text() if self._config.engine.api_key else None
        self._known = self.rows.known
        self._known |= {
            "queue_s": round(context.started - _submitted(context.folder, context.started), 1),
            "nodes": context.task.ranks,
            "job_id": str(context.task.job_id),
            "attempt": attempt,
        }

    def lacks_time(self, last_load_s: float | None) -> str | None:
        """Return why this service cannot begin before the time limit, or None."""
        service = self._service.service
        return self._context.walltime.lacks(service_seconds(self._sweep, service, self._config, last_load_s))

    def again(self, attempt: int) -> ServiceRun:
        """Return a second try at the points without a valid row; the evidence of the first one stays."""
        task = ServiceTask(self._service.service, self.rows.to_retry)
        return ServiceRun(self._context, task, self._control, self._stopping, attempt)

    def _must_yield(self) -> bool:
        partition = self._context.inherited.get("SLURM_JOB_PARTITION")
        wanted = self._config.cluster.yield_to_others and partition is not None
        return wanted and others_wait(str(partition), getpass.getuser())

    @property
    def load_s(self) -> float | None:
        """Seconds from start to ready; None: it did not get ready."""
        return self._known.get("load_s")

    @property
    def left(self) -> list[ServiceTask]:
        """What is to be done by another allocation."""
        return [ServiceTask(self._service.service, points)] if (points := self.rows.left) else []

    def give_up(self, reason: str) -> None:
        """Write the rows of a service that was not started."""
        self._write(self.rows.give_up(reason))

    async def run(self) -> str | None:
        """Run the service. Returns why the allocation cannot go on, or None."""
        service, folder = self._service.service, self._folder
        place = self._place()
        engine = Engine(self._config, place, folder.rank(0), self._context.tag(service), tuple(self._configs.values()))
        forecast = history.forecaster(self._sweep.root)(self._config)
        self._known["predicted_kv_tokens"] = forecast.predicted_kv_tokens
        start = EngineStart(
            service=service,
            point=self._service.points[0],
            ranks=place.ranks,
            attempt=self._attempt,
            master_address=place.master_address,
            api_port=place.api_port,
            rpc_port=place.rpc_port,
        )
        life = Life(self._stopping)
        supervisor = Supervisor(engine, self._control, start, life)
        target = Target(f"http://127.0.0.1:{place.api_port}", self._config.model.name_for_clients, self._api_key)
        began, failure, out_of_time = time.monotonic(), None, False
        log(f"service {service}: start, {len(self._service.points)} points")
        for config in self._configs.values():
            dataset.check(replace(config.bench, dataset=container.dataset(config)))
            if not self._context.work.serve:
                clients.check_node(config, environment.whole({}, self._context.inherited).get("PATH"))
        # An image file that nobody has read before is read beside the load, not after it.
        given_up = threading.Event()
        reading = asyncio.create_task(aside(container.known_digest, self._config, given_up.is_set))
        try:
            await supervisor.start(self._context.inherited, target)
            self._known["stage_s"] = round(supervisor.prepared_s, 1)
            self._known["load_s"] = round(time.monotonic() - began - supervisor.prepared_s, 1)
            text = await aside(read_all, folder.rank(0).log)
            self._known["kv_cache_tokens"] = engine_of(self._config).read_log(text).first_kv_tokens
            log(f"service {service}: ready after {self._known['load_s']} s")
            await life.during(reading)
            now = await aside(fingerprint.of_this_host, self._config, given_up.is_set)
            self._known |= asdict(now)
            for sentence in retire(self._sweep, self._config, now):
                log(sentence)
            for warning in supervisor.warnings:
                log(f"service {service}: warning: {warning}")
            if self._context.work.serve:
                await self._serve(supervisor, life, place)
            for point in () if self._context.work.serve else self._service.points:
                if lacks := self._context.walltime.lacks(point_seconds(self._configs[point])):
                    log(f"point {point}: not begun: {lacks}")
                    out_of_time = True
                    break
                await self._measure(point, supervisor, life, engine, target)
                if await aside(self._must_yield):
                    log("other users' jobs wait: stopping after this point (cluster.yield_to_others)")
                    out_of_time = self.yielded = True
                    break
        except ServiceFailed as error:
            failure, self.rows.from_outside = error.reason, life.from_outside
            engine.folder.note("failed", reason=failure)
            log(f"service {service}: failed: {failure}")
        finally:
            given_up.set()
            reading.cancel()
            # Whatever else happens to this rank (a full disk): the engines are stopped.
            began_stop = time.monotonic()
            leftovers = await supervisor.stop()
        end = End(failure, out_of_time=out_of_time, teardown_s=round(time.monotonic() - began_stop, 1))
        if failure and not self._stopping.done():
            end = await aside(self._diagnose, end, failure)
        self._write(self.rows.finish(end))
        await aside(self._remember, forecast)
        write_json(
            folder.record,
            {
                "service": service,
                "points": list(self._service.points),
                "failure": end.failure,
                "leftovers": leftovers,
                "warnings": supervisor.warnings,
            }
            | self._known,
        )
        log(f"service {service}: stopped after {self._known['teardown_s']} s")
        if self._stopping.done() and not self._served:
            return self._stopping.result()
        if leftovers:
            return f"service {service} left something behind: {'; '.join(leftovers)}"
        missing = set(range(1, self._context.task.ranks)) - self._control.present
        if self._control.leaving and not self._stopping.done():
            return f"rank {min(self._control.leaving)} was told to end"
        return f"rank {min(missing)} is lost" if missing else None

    def _remember(self, forecast: Forecast) -> None:
        """Keep what this run showed for later plans: its memory beside the prediction, and its times."""
        figures = engine_of(self._config).read_log(read_all(self._folder.rank(0).log))
        known = self._known
        try:
            history.remember(
                self._sweep.root,
                self._config,
                forecast.fit.prediction,
                figures,
                run=self._folder.path,
                load_s=known.get("load_s"),
                teardown_s=known["teardown_s"],
            )
        except UserError as error:  # a layout without a name, a root that another user owns: the rows are there
            log(f"nothing is learnt from this run: {error}")

    def _place(self) -> Placement:
        context, config = self._context, self._config
        ranks = len(local_sizes(config))
        if ranks > context.task.ranks:
            raise RunError("SLURM_NTASKS", context.task.ranks, f"the service needs {ranks} nodes", "Plan again.")
        return Placement(
            rank=0,
            ranks=ranks,
            address=context.address,
            interface=context.interface,
            master_address=config.cluster.master_address or context.address,
            api_port=str(context.ports.api),
            rpc_port=str(context.ports.dp_rpc),
            api_key=self._api_key,
        )

    async def _serve(self, supervisor: Supervisor, life: Life, place: Placement) -> None:
        """Keep the service up for hand tests until this job is told to end: that is its good end."""
        context, began = self._context, time.monotonic()
        login = context.inherited.get("SLURM_SUBMIT_HOST")
        write_json(
            context.folder.serving, serving.describe(self._config, context.folder, place, context.task.host, login)
        )
        log(serving.text(context.folder))
        supervisor.enter("serving")
        try:
            await life.during(asyncio.Event().wait())
        except ServiceFailed:
            if not self._stopping.done():
                raise
        finally:
            context.folder.serving.unlink(missing_ok=True)
        self._served = True
        self._write(self.rows.served(time.monotonic() - began))

    async def _measure(self, point: str, supervisor: Supervisor, life: Life, engine: Engine, target: Target) -> None:
        config, stop = self._configs[point], asyncio.Event()
        log(f"point {point}: {' '.join(f'{k}={v}' for k, v in self._values(point).items()) or 'measure'}")
        client = self._external_run(point, engine) if config.bench.is_external else None
        if supervisor.watch:
            # What the point before left in flight may still be read when this one begins.
            now = watch.tokens_ahead(config)
            supervisor.watch.ahead = None if now is None or self._ahead is None else max(now, self._ahead)
            self._ahead = now
        entered = partial(supervisor.enter, point=point)
        run = PointRun(config, target, self._shared, supervisor.watch, stop, entered, client)
        await life.during(run.run(), stop.set)
        measured = run.result()
        failure = await (life.failure_soon() if measured.reason else life.failure())
        self.rows.from_outside = failure is not None and life.from_outside
        await aside(self._save, point, measured, failure)
        if failure:
            raise ServiceFailed(failure)

    def _external_run(self, point: str, engine: Engine) -> ExternalRun:
        config, tag = self._configs[point], self._context.tag(f"client/{point}")
        site = engine.client_site(config, self._context.inherited)
        if not clients.runs_inside(config):  # the model's path may be one of the inside
            config = replace(config, model=replace(config.model, path=str(container.checkpoint(engine.config))))
        return ExternalRun(config, site, self._sweep.point(point).client, tag)

    def _save(self, point: str, measured: Measured, failure: str | None) -> None:
        row = self.rows.measured(point, measured, failure)
        save(self._sweep.point(point), measured)
        self._write([row])
        write_table(self._sweep)
        words = "valid" if row["valid"] else row["invalid_reason"]
        log(f"point {point}: {words}, {row['output_tok_s'] or 0:.1f} output tok/s")
        for note in measured.notes:
            log(f"point {point}: note: {note}")

    def _write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            write_json(self._sweep.point(row["point"]).row, row)

    def salvage(self, reason: str) -> None:
        """Write the rows that are not written yet, after this rank could not go on: no row is lost."""
        written = {point for point in self._service.points if self._sweep.point(point).row.exists()}
        self._write(self.rows.salvage(reason, written))

    def _diagnose(self, end: End, own: str) -> End:
        """Give an end its reason for the rows: the first failing rank's cause from the logs of all ranks."""
        found, reason = explain(self._folder, own, sizes=local_sizes(self._config))
        if found.found:
            write_text(self._folder.diagnosis, found.text() + "\n")
        return replace(end, failure=reason, cause=own, passing=found.found and found.retryable)

    def _values(self, point: str) -> Mapping[str, Any]:
        plan = read_json(self._sweep.plan)
        values: Mapping[str, Any] = next(p["values"] for p in plan["points"] if p["point"] == point)
        return values


def _submitted(folder: AllocationDir, default: float) -> float:
    """Return when the allocation was submitted (Unix seconds); its record may come a moment later than we do."""
    try:
        return float(read_json(folder.job)["submitted"])
    except (UserError, KeyError):
        return default
