"""Rank 0: publish the address, conduct the services one after the other, measure the points, keep the table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas  # noqa: F401  (for the table: now, not in the last seconds before a kill)

from jobs.allocation.agenda import Agenda
from jobs.allocation.context import RankContext
from jobs.allocation.control import EVERYWHERE, LOOPBACK, ControlServer
from jobs.allocation.deciding import Deciding
from jobs.allocation.life import ServiceFailed
from jobs.allocation.messages import Bye
from jobs.allocation.preflight import evidence, report, tuning
from jobs.allocation.preflight.conduct import Preflight
from jobs.allocation.preflight.station import Station, uses_npus
from jobs.allocation.searching import Searching
from jobs.allocation.service import Service
from jobs.allocation.turns import groups
from jobs.allocation.walltime import TIME_IS_UP
from jobs.core import process
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import read_json, write_json
from jobs.core.lock import exclusive
from jobs.core.log import log, own_error, read_tail
from jobs.core.rundir import SweepDir
from jobs.core.tasks import AllocationTask, Head, Outcome, ServiceTask
from jobs.core.waiting import aside, first_of
from jobs.results.pairs import read_question
from jobs.results.table import write_table


async def conduct(
    context: RankContext, first: Config, stopping: asyncio.Future[str], station: Station
) -> tuple[int, bool]:
    """Run all services of this allocation.

    `first` is the config of the first point: what belongs to the sweep is the same in all. `stopping` ends us.

    Returns:
        0 if every row is valid and nothing was left behind, else 1; and whether another rank is lost.
    """
    control = ControlServer(context.task.ranks, context.secret(), first.limits.heartbeat_s)
    await control.open(context.ports.control, LOOPBACK if context.task.on_loopback else EVERYWHERE)
    ports = context.ports
    here = Head(context.task.host, context.address, context.interface, ports.api, ports.dp_rpc, ports.control)
    write_json(context.folder.head, here)
    context.folder.take_reserve()
    try:
        ended = await _assemble(context, first, control, stopping, station)
        outcome = await _run_services(context, control, stopping, ended)
        lost = len(control.present) < context.task.ranks - 1
        await control.send(Bye())
        await control.close()
    finally:
        context.folder.free_reserve()
    write_json(context.folder.outcome, replace(outcome, time=time.time()))
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
    valid, yielded, first = True, False, True
    agenda = await aside(agenda_of, context.folder.sweep, context.work)
    while task := await aside(agenda.next):
        service = Service(context, task, control, stopping, agenda.attempt(task.service))
        enough = await aside(agenda.over) if ended is None else None
        if enough:
            service.give_up(enough)
        elif ended is None and not left and not yielded:
            if lacks := service.lacks_time(load_s):
                too_short = lacks if first else None  # the next job would have no more time than this one
                log(f"service {task.service}: not begun: {lacks}")
            else:
                ended = await _run(service, context, agenda)
                if ended is None and service.rows.to_retry:
                    attempt = context.folder.sweep.next_attempt([task.service])
                    log(f"service {task.service}: once more, since its failure may pass: attempt {attempt}")
                    service = service.again(attempt)
                    ended = await _run(service, context, agenda)
                load_s, yielded = service.load_s or load_s, service.yielded
        elif ended not in (None, TIME_IS_UP):
            service.give_up(str(ended))
        left += [ServiceTask(task.service, points)] if (points := service.rows.left) else []
        valid, first = valid and (enough is not None or service.rows.valid), False
        await aside(write_table, context.folder.sweep)
        await aside(agenda.tell)
        if agenda.chooses and (ended or left or yielded):
            break
    if (left or yielded) and ended in (None, TIME_IS_UP):
        left = [*await aside(agenda.left, left)]
    return Outcome(ended=ended, valid=valid, left=tuple(left), yielded=yielded, too_short=too_short)


def agenda_of(sweep: SweepDir, work: AllocationTask) -> Agenda:
    """Return what an allocation runs, in order. RunError: the question of its search cannot be read."""
    if sweep.search.exists():
        return Searching(sweep, work.attempt)
    services = () if work.checks_only else work.services
    try:
        question = read_question(sweep)
    except RunError as error:  # without it the sweep is measured whole
        log(str(error))
        question = None
    return Deciding(sweep, services, work.attempt, question) if question else Agenda(sweep, services, work.attempt)


async def _run(service: Service, context: RankContext, agenda: Agenda) -> str | None:
    """Run one service: measure its points. Returns why the allocation cannot go on, or None.

    Raises:
        RunError: not even the space that is held for it takes the rows.
    """
    try:
        async with service as live:
            if context.work.serve:
                await live.serve()
            todo = [] if context.work.serve else groups(live.configs, agenda.by_turns)
            while todo:
                points = todo.pop(0)
                if in_time := live.within_time(points):
                    await live.measure(in_time, agenda)
                if in_time != points or await live.must_yield():
                    break
                if more := await aside(agenda.more, service.task.service):
                    service.add(more)
                    todo.append((more,))
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
    task = context.task
    # On this host we see ourselves that a rank has ended at its start; elsewhere srun tells.
    gone = process.fewer_children(task.job_id, task.ranks) if task.on_loopback else asyncio.Event().wait()
    ended = asyncio.ensure_future(gone)
    try:
        if joined := await first_of(control.joined(first.limits.rendezvous_s), stopping, ended):
            joined.result()
            return await _check_nodes(context, first, control, stopping, station)
        return (stopping.result() if stopping.done() else "a rank has ended at its start") + _absent(context, control)
    except RunError as error:
        return str(error)
    finally:
        ended.cancel()


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
    _note_hosts(context.folder.sweep, tuning.states(result.facts))
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


def _note_hosts(sweep: SweepDir, states: Mapping[str, Mapping[str, str]]) -> None:
    """Add how the nodes are tuned to provenance.json, by the digest that stands in the rows."""
    if name := tuning.digest(states):
        with exclusive(sweep.noting, required=False):
            known: dict[str, Any] = read_json(sweep.provenance) if sweep.provenance.exists() else {}
            told: dict[str, Any] = known.get("host_states", {})
            write_json(sweep.provenance, known | {"host_states": told | {name: {**states}}})


def _absent(context: RankContext, control: ControlServer) -> str:
    """Return the last words of the ranks that never joined: Slurm ends us because one of them has ended."""
    absent = sorted(set(range(1, context.task.ranks)) - control.present)
    words = {rank: own_error(read_tail(context.folder.stdout(rank))) for rank in absent}
    return "".join(f"; rank {rank} (headless): {text}" for rank, text in words.items() if text)
