"""Rank 0: publish the address, conduct the services one after the other, measure the points, keep the table."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pandas  # noqa: F401  (for the table: now, not in the last seconds before a kill)

from jobs.allocation.context import RankContext
from jobs.allocation.control import ControlServer
from jobs.allocation.life import ServiceFailed
from jobs.allocation.messages import Bye
from jobs.allocation.preflight import evidence, report
from jobs.allocation.preflight.conduct import Preflight
from jobs.allocation.preflight.station import Station, uses_npus
from jobs.allocation.service import Service
from jobs.allocation.walltime import TIME_IS_UP
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import write_json
from jobs.core.log import log, own_error, read_tail
from jobs.core.tasks import Outcome, ServiceTask, write_outcome
from jobs.core.waiting import aside, first_of
from jobs.results.table import write_table


async def conduct(
    context: RankContext, first: Config, stopping: asyncio.Future[str], station: Station
) -> tuple[int, bool]:
    """Run all services of this allocation.

    Args:
        context: of rank 0.
        first: config of the first point: what belongs to the sweep is the same in all.
        stopping: a future that ends us.
        station: of this node's checks.

    Returns:
        0 if every row is valid and nothing was left behind, else 1; and whether another rank is lost.
    """
    control = ControlServer(
        context.task.ranks, context.folder.key.read_text(encoding="utf-8"), first.limits.heartbeat_s
    )
    await control.open(context.ports.control)
    write_json(
        context.folder.head,
        {
            "host": context.task.host,
            "address": context.address,
            "interface": context.interface,
            "api_port": context.ports.api,
            "data_parallel_rpc_port": context.ports.dp_rpc,
            "control_port": context.ports.control,
        },
    )
    context.folder.take_reserve()
    ended = await _assemble(context, first, control, stopping, station)
    outcome = await _run_services(context, control, stopping, ended)
    lost = len(control.present) < context.task.ranks - 1
    await control.send(Bye())
    await control.close()
    context.folder.free_reserve()
    write_outcome(context.folder, replace(outcome, time=time.time()))
    return 0 if outcome.valid and outcome.ended is None else 1, lost


async def _run_services(
    context: RankContext, control: ControlServer, stopping: asyncio.Future[str], ended: str | None
) -> Outcome:
    """Run one service after the other, unless the allocation has `ended`; those that don't begin are left, or get rows.

    A service that failed by something that may pass is tried once more at once.
    """
    left: list[ServiceTask] = []
    load_s: float | None = None
    too_short: str | None = None
    valid, yielded = True, False
    for task in () if context.work.checks_only else context.work.services:
        service = Service(context, task, control, stopping, context.work.attempt)
        if ended is None and not left and not yielded:
            if lacks := service.lacks_time(load_s):
                if task == context.work.services[0]:
                    too_short = lacks  # the next job would have no more time than this one
                log(f"service {task.service}: not begun: {lacks}")
            else:
                ended = await _run(service, context)
                if ended is None and service.rows.to_retry:
                    attempt = context.folder.sweep.next_attempt([task.service])
                    log(f"service {task.service}: once more, since its failure may pass: attempt {attempt}")
                    service = service.again(attempt)
                    ended = await _run(service, context)
                load_s, yielded = service.load_s or load_s, service.yielded
        elif ended not in (None, TIME_IS_UP):
            service.give_up(str(ended))
        left += [ServiceTask(task.service, points)] if (points := service.rows.left) else []
        valid = service.rows.valid and valid
        await aside(write_table, context.folder.sweep)
    return Outcome(ended=ended, valid=valid, left=tuple(left), yielded=yielded, too_short=too_short)


async def _run(service: Service, context: RankContext) -> str | None:
    """Run one service: measure its points one after the other. Returns why the allocation cannot go on, or None.

    Raises:
        RunError: not even the space that is held for it takes the rows.
    """
    try:
        async with service as live:
            if context.work.serve:
                await live.serve()
            for point in () if context.work.serve else service.task.points:
                if not live.has_time_for(point):
                    break
                await live.measure(point)
                if await live.must_yield():
                    break
    except ServiceFailed:
        pass  # its rows say why
    except RunError as error:  # a full disk, most often; the engines are stopped by now
        reason = f"rank 0 (head): {error}"
        log(reason)
        context.folder.free_reserve()
        service.salvage(reason)
        return reason
    return service.ends_allocation


async def _assemble(
    context: RankContext, first: Config, control: ControlServer, stopping: asyncio.Future[str], station: Station
) -> str | None:
    """Wait for all ranks, and check their nodes. Returns why the allocation cannot go on, or None."""
    try:
        if joined := await first_of(control.joined(first.limits.rendezvous_s), stopping):
            joined.result()
            return await _check_nodes(context, first, control, stopping, station)
        return stopping.result() + _absent(context, control)
    except RunError as error:
        return str(error)


async def _check_nodes(
    context: RankContext, first: Config, control: ControlServer, stopping: asyncio.Future[str], station: Station
) -> str | None:
    """Check all nodes before the first service. Returns why the allocation cannot go on, or None."""
    if not first.preflight.enabled:
        return None
    checks = Preflight(first, context.ports, control, station)
    if not (checked := await first_of(checks.run(), stopping)):
        await station.close()
        return stopping.result()
    result = checked.result()
    write_json(context.folder.preflight, result.as_json())
    if not context.task.on_loopback:
        hosts = [one.node for one in result.facts]
        evidence.save(context.folder.sweep.root, hosts, result.findings, str(context.task.job_id))
    log(report.summary(result.findings, result.seconds))
    # A rehearsal cannot check NPUs, and that is no news. Where they are used, what could not be checked is.
    everything = bool(result.reason) or uses_npus(first)
    if everything and result.findings:
        print(report.text(result.findings, list(dict.fromkeys(one.node for one in result.facts))), flush=True)
    for line in report.details(result.findings, all_of=everything):
        log(line.plain)
    if result.broken:
        log(result.broken)
    return result.reason


def _absent(context: RankContext, control: ControlServer) -> str:
    """Return the last words of the ranks that never joined: Slurm ends us because one of them has ended."""
    absent = sorted(set(range(1, context.task.ranks)) - control.present)
    words = {rank: own_error(read_tail(context.folder.stdout(rank))) for rank in absent}
    return "".join(f"; rank {rank} (headless): {text}" for rank, text in words.items() if text)
