"""What one task of an allocation does, start to end. Rank 0 conducts, every other rank obeys.

Every scheduler runs it on each node (jobs/cluster/base.py: ENTRY), and so do the scripts of sbatch/.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TypeVar

from jobs.allocation import headless, walltime
from jobs.allocation.context import RankContext
from jobs.allocation.control import join
from jobs.allocation.interface import ON_LOOPBACK, addresses_of, usable_interface
from jobs.allocation.messages import EngineStart, Signalled
from jobs.allocation.node.engine import Engine
from jobs.allocation.preflight.station import Station, StationContext
from jobs.allocation.signals import Signals
from jobs.allocation.walltime import Walltime
from jobs.cluster.base import Job, cancel, scheduler
from jobs.cluster.interfaces import check_master, same_subnet
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import Ports, derive_ports, hold_ports
from jobs.cluster.time_limit import limit_seconds
from jobs.core import names, process
from jobs.core.config import Config
from jobs.core.errors import RunError, UserError
from jobs.core.layout import Placement
from jobs.core.lock import is_free
from jobs.core.log import log, take_any_text
from jobs.core.loop import Loop
from jobs.core.rundir import AllocationDir
from jobs.core.sharing import let_group_read
from jobs.core.tasks import read_config, read_head, read_task
from jobs.core.waiting import first_of

T = TypeVar("T")

GIVE_BACK_S = 3.0
"""srun ends the other tasks within two seconds after one has ended badly (measured), if it can see it."""


def main(arguments: Sequence[str]) -> int:
    """Run one rank of an allocation, then submit what is left. Returns the rank's exit code.

    `arguments`: the allocation's directory, and the scheduler's name; without it the script in sbatch/ that started us
    submits the rest itself.
    """
    if len(arguments) not in (1, 2):
        print("usage: srun python -m jobs.allocation.rank ALLOCATION_DIR [KIND]", file=sys.stderr)
        return 2
    folder, kind = AllocationDir(Path(arguments[0])), arguments[1:]
    try:
        task = scheduler(*kind or ["script"]).task(os.environ)
    except RunError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    _keep_record(folder, task, *kind)
    code = run(folder, task)
    _keep_record(folder, task, *kind)  # a launcher may die while we run
    if kind and task.rank == 0:
        from jobs.allocation.submission import submit_rest  # with what makes the table: see below

        submit_rest(folder)
    return code


def _keep_record(folder: AllocationDir, task: Task, kind: str = "") -> None:
    """Write the record of our job where its launcher died before that; what hinders it the rank itself will tell."""
    if kind and task.rank == 0 and not folder.job.exists() and is_free(folder.submitting):
        with contextlib.suppress(RunError):
            Job(folder, str(task.job_id), kind, task.ranks, time.time()).write()


def run(folder: AllocationDir, task: Task) -> int:
    """Run this rank. Returns its exit code; a traceback goes to its log, one clear line to its output."""
    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            return runner.run(_run(folder, task))
    except UserError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    except Exception:  # the top of a rank: nothing may hold the allocation silently
        traceback.print_exc()
        sys.stderr.flush()
        return 1


async def _run(folder: AllocationDir, task: Task) -> int:
    signals = Signals(asyncio.get_running_loop())
    stopping = signals.stopping
    if task.on_loopback:
        leash = asyncio.create_task(_end_with_controller(task.job_id, stopping))
        stopping.add_done_callback(lambda _: leash.cancel())
    work = read_task(folder, ours=True)
    first = read_config(folder.sweep, work.services[0].points[0], ours=True)
    if first.cluster.share_group:
        let_group_read()
    interface, problem = (ON_LOOPBACK, None) if task.on_loopback else usable_interface(first)
    name, address, prefix = interface
    ports, _held = await _ports(task, first, folder, stopping)
    signals.walltime = await _walltime(task, first, stopping)
    context = RankContext(task, name, address, ports, folder, work, dict(os.environ), signals.walltime)
    log(f"rank {task.rank} of {task.ranks} on {task.host}, interface {name} {address}, job {task.job_id}")
    results = folder.sweep.path.parent
    station = Station(first, StationContext(task, interface, problem, ports, results, context.inherited))
    if task.rank == 0:
        # With what measures and makes the table: a second of start that no other rank needs.
        from jobs.allocation import head

        code, lost = await head.conduct(context, first, stopping, station)
    else:
        code, lost = await _obey(context, first, prefix, stopping, station)
    if lost and not task.on_loopback:
        await _give_back(folder, stopping)
    return code


async def _end_with_controller(pid: int, stopping: asyncio.Future[str]) -> None:
    """End in good order once the controller of the local ranks is gone: nobody could cancel them any more."""
    await process.gone(pid, 1.0)
    if not stopping.done():
        stopping.set_result("the controller of its ranks has ended")


async def _ports(
    task: Task, config: Config, folder: AllocationDir, stopping: asyncio.Future[str]
) -> tuple[Ports, list[socket.socket]]:
    """Return the ports of this allocation, and what holds them: on one host rank 0 takes and publishes free ones."""
    engine = config.engine
    set_ones = {"api": engine.port, "dp_rpc": engine.data_parallel_rpc_port, "control": config.cluster.control_port}
    if not task.on_loopback:
        return derive_ports(task.job_id, **set_ones), []
    if task.rank == 0:
        return hold_ports(**set_ones)
    return await _from_head(_published(folder), task, folder, stopping), []


async def _published(folder: AllocationDir) -> Ports:
    while (head := read_head(folder)) is None:
        await asyncio.sleep(0.1)
    return Ports(head.api_port, head.data_parallel_rpc_port, head.control_port)


async def _from_head(work: Awaitable[T], task: Task, folder: AllocationDir, stopping: asyncio.Future[str]) -> T:
    """Return what we get from rank 0.

    Raises:
        RunError: a signal came first, or rank 0 has ended, as far as this host can see it. Elsewhere srun tells.
    """
    gone = asyncio.ensure_future(process.gone(task.head_pid) if task.on_loopback else asyncio.Event().wait())
    try:
        if found := await first_of(work, stopping, gone):
            return found.result()
    finally:
        gone.cancel()
    reason = stopping.result() if stopping.done() else "it has ended"
    raise RunError("rank 0", task.hosts[0], reason, f"See {folder.stdout(0)}.")


async def _walltime(task: Task, config: Config, stopping: asyncio.Future[str]) -> Walltime:
    """Return when this rank has to be done, and say who told so."""
    if task.on_loopback:
        return Walltime.of(limit_seconds(config.cluster.time_limit))
    finding = walltime.find(str(task.job_id), os.environ, config.cluster.time_limit)
    if not (found := await first_of(finding, stopping)):
        return Walltime(None)
    log(str(found.result()))
    return Walltime.of(found.result().left_s)


async def _give_back(folder: AllocationDir, stopping: asyncio.Future[str]) -> None:
    """End the job after another rank was lost. Slurm ends us at once where it can see what happened.

    Where a node does not answer, srun waits for its tasks until slurmctld gives the node up (SlurmdTimeout, five
    minutes by default), and the other nodes wait with it.
    """
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(stopping), GIVE_BACK_S)
    if not stopping.done():
        log("another rank is lost and Slurm does not end the job: cancelling it")
        with contextlib.suppress(UserError):
            cancel(folder)


async def _obey(
    context: RankContext, first: Config, prefix: int, stopping: asyncio.Future[str], station: Station
) -> tuple[int, bool]:
    """Serve rank 0. Returns the exit code, and whether rank 0 was lost."""
    host = "127.0.0.1" if context.task.on_loopback else context.task.hosts[0]
    limits = first.limits
    port, secret = context.ports.control, context.secret()
    joining = join(host, port, context.task.rank, secret, limits.heartbeat_s, limits.rendezvous_s)
    control = await _from_head(joining, context.task, context.folder, stopping)

    def make_engine(start: EngineStart) -> Engine | None:
        _check_start(start, context)
        if context.task.rank >= start.ranks:
            return None
        config = read_config(context.folder.sweep, start.point, ours=True)
        master = start.master_address
        resolved = addresses_of(host)
        warning = None if context.task.on_loopback else check_master(master, resolved, context.address, prefix)
        if warning and not same_subnet(context.address, master, prefix):
            log(f"warning: {warning}")
        serves = config.parallel.replicas > 1 and config.engine.api_key
        place = Placement(
            rank=context.task.rank,
            ranks=start.ranks,
            address=context.address,
            interface=context.interface,
            master_address=master,
            api_port=start.api_port,
            rpc_port=start.rpc_port,
            api_key=context.api_key(start.service, start.attempt) if serves else None,
        ).among(config)
        rank_dir = context.folder.sweep.service(start.service, start.attempt).rank(context.task.rank)
        log(f"service {start.service}: start")
        return Engine(config, place, rank_dir, context.tag(start.service))

    serving = asyncio.create_task(headless.serve(control, make_engine, context.inherited, station.answer))
    await first_of(serving, stopping, cancel=False)
    await station.close()
    if not serving.done():
        # The signal may have come to this task alone: without a word rank 0 would go on until this rank is gone.
        await control.send(Signalled(stopping.result(), time.time()))
        with contextlib.suppress(TimeoutError):
            # Rank 0 will stop this engine in good order.
            await asyncio.wait_for(asyncio.shield(serving), limits.stop_s)
    if not serving.done():
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        log(f"ended: {stopping.result()}")
        return 1, False
    reason = serving.result()
    log(f"ended: {reason}" if reason else "done")
    return (1, True) if reason else (0, False)


def _check_start(start: EngineStart, context: RankContext) -> None:
    """Raise RunError where rank 0 names what is not of this allocation: its words become paths and a command line."""
    points = next((task.points for task in context.work.services if task.service == start.service), ())
    numbers = start.api_port.isdecimal() and start.rpc_port.isdecimal() and start.attempt > 0
    try:
        names.host(start.master_address)
        if start.point not in points or not numbers:
            raise ValueError("it is not of this allocation")
    except ValueError as error:
        raise RunError("rank 0", start, str(error), f"See {context.folder.task}.") from None


if __name__ == "__main__":
    take_any_text()
    sys.exit(main(sys.argv[1:]))
