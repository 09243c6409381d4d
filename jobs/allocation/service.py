"""One service of an allocation, from its start to its rows: rank 0's part."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import asdict, replace
from types import TracebackType

from jobs.allocation.context import RankContext
from jobs.allocation.control import ControlServer
from jobs.allocation.interface import addresses_of
from jobs.allocation.life import Life, ServiceFailed
from jobs.allocation.live import LiveService
from jobs.allocation.messages import EngineStart
from jobs.allocation.node import container, fingerprint
from jobs.allocation.node.engine import Engine
from jobs.allocation.rows import End, RowLedger
from jobs.allocation.supervisor import Supervisor
from jobs.core.config import Config
from jobs.core.errors import RunError, UserError
from jobs.core.files import read_json, write_json, write_text
from jobs.core.layout import Placement, local_sizes, serving_address
from jobs.core.log import log, read_all
from jobs.core.records import tolerant
from jobs.core.rundir import AllocationDir, Root, SweepDir
from jobs.core.tasks import ServiceRecord, ServiceTask, read_config
from jobs.core.waiting import aside
from jobs.diagnose import explain
from jobs.engines.base import engine_of
from jobs.engines.checkpoint.architecture import required
from jobs.engines.prediction import Prediction
from jobs.engines.vllm import environment
from jobs.forecast import history, observed
from jobs.forecast.duration import load_seconds, point_seconds
from jobs.forecast.memory import judge
from jobs.measure import dataset
from jobs.measure.clients import base as clients
from jobs.measure.records import Target
from jobs.results import spread
from jobs.results.row import write_rows
from jobs.results.stale import retire


class Service:
    """One service: `async with` starts its engines, waits until it is ready, and stops it everywhere at the end.

    What `ServiceFailed` means for its points stands in their rows when it leaves the block.
    """

    def __init__(
        self,
        context: RankContext,
        task: ServiceTask,
        control: ControlServer,
        stopping: asyncio.Future[str],
        attempt: int,
    ) -> None:
        """Args: where we are, what is to be done, the channel, a future that ends us, this attempt's number."""
        self.task = task
        self._context, self._control, self._stopping, self._attempt = context, control, stopping, attempt
        self._sweep = context.folder.sweep
        self._configs = {point: read_config(self._sweep, point, ours=True) for point in task.points}
        self._config = self._configs[task.points[0]]
        self._folder = self._sweep.service(task.service, attempt)
        self._live: LiveService | None = None
        self._given_up = threading.Event()
        self._leftovers: list[str] = []
        self._prediction: Prediction | None = None
        self.rows = RowLedger(task.service, self._configs)
        self.rows.known |= {
            "queue_s": round(context.started - _submitted(context.folder, context.started), 1),
            "nodes": context.task.ranks,
            "job_id": str(context.task.job_id),
            "attempt": attempt,
        }

    def lacks_time(self, last_load_s: float | None) -> str | None:
        """Return why this service cannot begin before the time limit, or None; the load before took `last_load_s`."""
        needed_s = service_seconds(self._sweep, self.task.service, self._config, last_load_s)
        return self._context.walltime.lacks(needed_s)

    def again(self, attempt: int) -> Service:
        """Return a second try at the points without a valid row; the evidence of the first one stays."""
        task = ServiceTask(self.task.service, self.rows.to_retry)
        return Service(self._context, task, self._control, self._stopping, attempt)

    def give_up(self, reason: str) -> None:
        """Write the rows of a service that is not started."""
        write_rows(self._sweep, self.rows.give_up(reason))

    def salvage(self, reason: str) -> None:
        """Write the rows that are not written yet, after this rank could not go on: no row is lost."""
        written = {point for point in self._configs if self._sweep.point(point).row.exists()}
        write_rows(self._sweep, self.rows.salvage(reason, written))

    def add(self, point: str) -> None:
        """Take a further point of this service, which is up (a search chooses one after the other)."""
        self._configs[point] = read_config(self._sweep, point, ours=True)

    @property
    def load_s(self) -> float | None:
        """Seconds from start to ready; None: it did not get ready."""
        return self.rows.known.get("load_s")

    @property
    def yielded(self) -> bool:
        """Whether it was stopped for others that wait."""
        return self._live is not None and self._live.yielded

    @property
    def ends_allocation(self) -> str | None:
        """Why no other service can follow this one, or None."""
        told = self._stopping.done()
        if told and not self.rows.was_served:
            return self._stopping.result()
        if self._leftovers:
            return f"service {self.task.service} left something behind: {'; '.join(self._leftovers)}"
        if self._control.leaving and not told:
            return f"rank {min(self._control.leaving)} was told to end"
        missing = set(range(1, self._context.task.ranks)) - self._control.present
        return f"rank {min(missing)} is lost" if missing else None

    async def __aenter__(self) -> LiveService:
        """Start the engines and wait until the service is ready.

        Raises:
            ServiceFailed: it failed before it was ready; it is stopped, and its rows are written.
            RunError: this node lacks what the points need.
        """
        self._live = live = self._prepare(self._place())
        forecast = history.forecaster(self._sweep.root)(self._config)
        self.rows.known["predicted_kv_tokens"] = forecast.predicted_kv_tokens
        self._prediction = forecast.fit.prediction
        log(f"service {self.task.service}: start, {len(self.task.points)} points")
        for config in self._configs.values():
            dataset.check(replace(config.bench, dataset=container.dataset(config)))
            if not self._context.work.serve:
                clients.check_node(config, environment.whole({}, self._context.inherited).get("PATH"))
        try:
            await self._start(live)
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        return live

    def _prepare(self, place: Placement) -> LiveService:
        context, config, task = self._context, self._config, self.task
        configs = tuple(self._configs.values())
        engine = Engine(config, place, self._folder.rank(0), context.tag(task.service), configs)
        start = EngineStart(
            service=task.service,
            point=task.points[0],
            ranks=place.ranks,
            attempt=self._attempt,
            master_address=place.master_address,
            api_port=place.api_port,
            rpc_port=place.rpc_port,
        )
        life = Life(self._stopping)
        supervisor = Supervisor(engine, self._control, start, life)
        return LiveService(context, self._configs, self.rows, engine, supervisor, life, self._target(place))

    async def _start(self, live: LiveService) -> None:
        known, service = self.rows.known, self.task.service
        # An image file that nobody has read before is read beside the load, not after it.
        reading = asyncio.create_task(aside(container.known_digest, self._config, self._given_up.is_set))
        began = time.monotonic()
        try:
            await live.supervisor.start(self._context.inherited, live.target)
            took_s = time.monotonic() - began
            # Some runtimes unpack the image beforehand, others in the same step in which they start the engine.
            before_s = live.supervisor.prepared_s + await aside(live.engine.container_s)
            known["stage_s"], known["load_s"] = round(before_s, 1), round(max(0.0, took_s - before_s), 1)
            known |= live.supervisor.slowest()
            said = await aside(read_all, self._folder.rank(0).log)
            known["kv_cache_tokens"] = engine_of(self._config).read_log(said).first_kv_tokens
            log(f"service {service}: ready after {known['load_s']} s")
            await live.life.during(reading)
        finally:
            reading.cancel()
        now = await aside(fingerprint.of_this_host, self._config, self._given_up.is_set)
        now = replace(now, host_state=tolerant(self._context.folder.preflight).get("host_state"))
        now = replace(now, image_digest=live.engine.image_digest or now.image_digest)  # its tag may have moved since
        known |= asdict(now)
        for sentence in retire(self._sweep, self._config, now):
            log(sentence)
        for warning in live.supervisor.warnings:
            log(f"service {service}: warning: {warning}")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the engines everywhere. Of a service that ended well or failed by itself, all rows are written."""
        live, service = self._live, self.task.service
        assert live is not None
        failure = None
        if isinstance(error, ServiceFailed):
            failure, self.rows.from_outside = error.reason, live.life.from_outside
            live.engine.folder.note("failed", reason=failure)
            log(f"service {service}: failed: {failure}")
        self._given_up.set()
        began = time.monotonic()
        self._leftovers = await live.supervisor.stop()
        if error is not None and failure is None:
            return  # of rank 0 itself: a full disk, most often
        end = End(failure, out_of_time=live.out_of_time, teardown_s=round(time.monotonic() - began, 1))
        if failure and not self._stopping.done():
            end = await aside(self._diagnose, end, failure)
        write_rows(self._sweep, self.rows.finish(end))
        await aside(self._remember)
        left, warnings = tuple(self._leftovers), tuple(live.supervisor.warnings)
        record = ServiceRecord(service, tuple(self._configs), end.failure, left, warnings, **self.rows.known)
        write_json(self._folder.record, record)
        log(f"service {service}: stopped after {end.teardown_s} s")

    def _diagnose(self, end: End, own: str) -> End:
        """Give an end its reason for the rows: the first failing rank's cause from the logs of all ranks."""
        found, reason = explain(self._folder, own, sizes=local_sizes(self._config))
        if found.found:
            write_text(self._folder.diagnosis, found.text() + "\n")
        return replace(end, failure=reason, cause=own, passing=found.found and found.retryable)

    def _remember(self) -> None:
        """Keep what this run showed for later plans: its memory beside the prediction, its times, its figures."""
        figures = engine_of(self._config).read_log(read_all(self._folder.rank(0).log))
        root, run, teardown_s = self._sweep.root, self._folder.path, self.rows.known["teardown_s"]
        try:
            history.remember(
                root, self._config, self._prediction, figures, run=run, load_s=self.load_s, teardown_s=teardown_s
            )
            spread.remember(self._sweep, self._configs, self.rows.kept)
            self._learn(root)
        except UserError as error:  # a layout without a name, a root that another user owns: the rows are there
            log(f"nothing is learnt from this run: {error}")

    def _learn(self, root: Root) -> None:
        """Put what was predicted beside the rows, and keep them for later predictions."""
        fit = judge(self._config, required)
        found = {
            row["point"]: seen
            for row in self.rows.kept
            if (seen := observed.observation(self._configs[row["point"]], fit, row))
        }
        learnt = observed.learnt_of(root, self._config.engine.name)
        write_rows(self._sweep, self.rows.foretold(observed.beside(learnt, found)))
        observed.remember(root, found.values())

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
            api_key=self._api_key() if config.engine.api_key else None,
        ).among(config)

    def _api_key(self) -> str:
        key = self._context.api_key(self.task.service, self._attempt)
        self._context.folder.keep_api_key(key)
        return key

    def _target(self, place: Placement) -> Target:
        parallel, context = self._config.parallel, self._context
        urls = [f"http://{place.local}:{place.api_port}"]
        for rank in range(1, parallel.replicas):
            host = context.task.hosts[rank]
            address = serving_address(self._config, rank, next(iter(addresses_of(host)), host))
            urls.append(f"http://{address}:{place.api_port}")
        name = self._config.model.name_for_clients
        return Target(urls[0], name, place.api_key, tuple(urls[1:]), parallel.data_parallel_size)


def _submitted(folder: AllocationDir, default: float) -> float:
    """Return when the allocation was submitted (Unix seconds); its record may come a moment later than we do."""
    try:
        return float(read_json(folder.job)["submitted"])
    except (UserError, KeyError):
        return default


def service_seconds(sweep: SweepDir, service: str, config: Config, last_load_s: float | None) -> float:
    """Predict seconds from the start of a service to the end of its first point.

    The load time is learnt, in this order: earlier attempts at this very service in any sweep beside this one,
    the service that this allocation ran last, earlier runs of this model and layout, else the plan's estimate.
    """
    past = [load for one in sweep.all_attempts(service) if (load := tolerant(one.record, ours=True).get("load_s"))]
    load = max(past) if past else last_load_s
    if not load:
        alike, _ = history.recall(sweep.root, config)
        load = max(alike.load_s) if alike and alike.load_s else load_seconds(config)
    return load + point_seconds(config)
