"""Rank 0: publish the address, conduct the services one after the other, measure the points, keep the table."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict

import pandas  # noqa: F401  (for the table: now, not in the last seconds before a kill)

from jobs.allocation.context import RankContext
from jobs.allocation.control import ControlServer
from jobs.allocation.messages import Bye
from jobs.allocation.preflight import evidence, report
from jobs.allocation.preflight.conduct import Preflight
from jobs.allocation.preflight.station import Station, uses_npus
from jobs.allocation.service import ServiceRun
from jobs.allocation.walltime import TIME_IS_UP
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import write_json
from jobs.core.log import log, own_error, read_tail
from jobs.core.tasks import ServiceTask
from jobs.core.waiting import aside, first_of
from jobs.results.table import write_table


async def conduct(
    context: RankContext, first: Config, stopping: asyncio.Future[str], station: Station
) -> tuple[int, bool]:
    """Run all services of this allocation.

    Returns:
        0 if every row is valid and nothing was left behind, else 1; and whether another rank is lost.
    """
    control = ControlServer(context.task.ranks, context.folder.key.read_text(), first.limits.heartbeat_s)
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
    valid, ended = True, None
    try:
        if not (joined := await first_of(control.joined(first.limits.rendezvous_s), stopping)):
            ended = stopping.result() + _absent(context, control)
        else:
            joined.result()
            ended = await _check_nodes(context, first, control, stopping, station)
    except RunError as error:
        ended = str(error)
    left: list[ServiceTask] = []
    yielded = False
    load_s: float | None = None
    too_short: str | None = None
    began = False
    for service in () if context.work.checks_only else context.work.services:
        run = ServiceRun(context, service, control, stopping, context.work.attempt)
        if ended is None and not left and not yielded:
            lacks = run.lacks_time(load_s)
            if lacks:
                too_short = too_short or lacks
                log(f"service {service.service}: not begun: {lacks}")
            else:
                began = True
                ended = await _carry_out(run, context)
                if ended is None and run.rows.to_retry:
                    again = context.folder.sweep.next_attempt([service.service])
                    log(f"service {service.service}: once more, since its failure may pass: attempt {again}")
                    run = run.again(again)
                    ended = await _carry_out(run, context)
                load_s = run.load_s or load_s
                yielded = run.yielded
        elif ended not in (None, TIME_IS_UP):
            run.give_up(str(ended))
        left += run.left
        valid = run.rows.valid and valid
        await aside(write_table, context.folder.sweep)
    lost = len(control.present) < context.task.ranks - 1
    await control.send(Bye())
    await control.close()
    outcome = {"ended": ended, "valid": valid, "time": time.time(), "left": [asdict(service) for service in left]}
    outcome["yielded"] = yielded
    if too_short and not began:
        outcome["too_short"] = too_short  # the next job would have no more time than this one
    context.folder.free_reserve()
    write_json(context.folder.outcome, outcome)
    return 0 if valid and ended is None else 1, lost


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
        evidence.keep(context.folder.sweep.root, hosts, result.findings, str(context.task.job_id))
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


async def _carry_out(run: ServiceRun, context: RankContext) -> str | None:
    """Run one service. Returns why the allocation cannot go on, or None.

    Raises:
        RunError: not even the space that is held for it takes the rows.
    """
    try:
        return await run.run()
    except RunError as error:  # a full disk, most often; the engines are stopped by now
        reason = f"rank 0 (head): {error}"
        log(reason)
        context.folder.free_reserve()
        run.salvage(reason)
        return reason


def _absent(context: RankContext, control: ControlServer) -> str:
    """Return the last words of the ranks that never joined: Slurm ends us because one of them has ended."""
    absent = sorted(set(range(1, context.task.ranks)) - control.present)
    words = {rank: own_error(read_tail(context.folder.stdout(rank))) for rank in absent}
    return "".join(f"; rank {rank} (headless): {text}" for rank, text in words.items() if text)
