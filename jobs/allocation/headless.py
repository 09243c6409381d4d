"""A headless rank: it starts and stops its engine as rank 0 says, and reports what happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

from jobs.allocation import messages
from jobs.allocation.control import ControlClient
from jobs.allocation.life import HASTE_S, PROGRESS_S
from jobs.allocation.node import staging
from jobs.allocation.node.engine import Engine
from jobs.allocation.preflight.questions import EndChecks, Question
from jobs.core.errors import UserError
from jobs.core.rundir import RankDir
from jobs.core.waiting import aside

MakeEngine = Callable[[messages.EngineStart], Engine | None]
"""Makes the engine of a service; None where it needs fewer nodes than the allocation has."""

Answer = Callable[[messages.Message], Awaitable[messages.Message | None]]
"""Answers a question of the preflight about this node, where it wants an answer."""


async def serve(
    control: ControlClient, make_engine: MakeEngine, inherited: Mapping[str, str], answer: Answer | None = None
) -> str | None:
    """Obey rank 0 until it says goodbye; `answer` has its questions about this node before the first service.

    Returns:
        None after a goodbye, else the reason for which this rank ends: rank 0 is gone.
    """
    engine: Engine | None = None
    watch: asyncio.Task[None] | None = None
    try:
        while (message := await control.receive()) is not None:
            match message:
                case messages.Prepare(start, wanted) if not wanted:
                    engine, watch = await _prepare(control, make_engine, start, inherited)
                case messages.Prepare(_, wanted):
                    if engine:  # what it brought is not what rank 0 has
                        watch = asyncio.create_task(_prepared(control, engine, inherited, wanted))
                case Question() | EndChecks():
                    await _tell(control, answer, message)
                case messages.EngineStart():
                    engine, watch = await _start(control, engine, make_engine, message, inherited)
                case messages.Inspect():
                    await _inspect(control, engine if watch and not watch.done() else None)
                case messages.Phase():
                    if engine:  # nobody looks at rank 0's record to learn of this one
                        engine.note_phase(message.state, **message.details)
                case messages.Stop():
                    leftovers = await _stop(engine, watch, message.grace_s)
                    engine = watch = None
                    await control.send(messages.Stopped(tuple(leftovers)))
                case messages.Bye():
                    return None
        return "rank 0 is gone"
    finally:
        await asyncio.shield(_stop(engine, watch, HASTE_S))
        control.close()


async def _fail(control: ControlClient, error: UserError) -> None:
    await control.send(messages.Ended(str(error), time.time()))


async def _tell(control: ControlClient, answer: Answer | None, message: messages.Message) -> None:
    if answer:
        try:
            if (told := await answer(message)) is not None:
                await control.send(told)
        except UserError as error:
            await _fail(control, error)


async def _inspect(control: ControlClient, engine: Engine | None) -> None:
    try:
        found = await aside(engine.inspect) if engine else ()
    except UserError as error:  # a full disk
        await _fail(control, error)
    else:
        await control.send(messages.Inspected(found, engine.load_gb_s if engine else None))


async def _prepare(
    control: ControlClient, make_engine: MakeEngine, start: messages.EngineStart, inherited: Mapping[str, str]
) -> tuple[Engine | None, asyncio.Task[None] | None]:
    try:
        engine = make_engine(start)
    except UserError as error:
        await _fail(control, error)
        return None, None
    return engine, asyncio.create_task(_prepared(control, engine, inherited)) if engine else None


async def _prepared(
    control: ControlClient, engine: Engine, inherited: Mapping[str, str], wanted: staging.Parts | None = None
) -> None:
    try:
        if wanted:
            parts: staging.Parts = await engine.unpack_that_of_rank_0(wanted, inherited)
        else:
            parts = await staging.prepare(engine, inherited)
    except UserError as error:
        await _fail(control, error)
        engine.folder.note("failed", reason=str(error))
    else:
        await control.send(messages.Prepared(dict(parts)))


async def _start(
    control: ControlClient,
    engine: Engine | None,
    make_engine: MakeEngine,
    start: messages.EngineStart,
    inherited: Mapping[str, str],
) -> tuple[Engine | None, asyncio.Task[None] | None]:
    """Start the engine: the one that was prepared, or a new one."""
    try:
        engine = engine or make_engine(start)
        if engine:
            await engine.start(inherited)
            return engine, asyncio.create_task(_report_end(control, engine, engine.folder))
    except UserError as error:
        await _fail(control, error)
        if engine:
            engine.folder.note("failed", reason=str(error))
    return engine, None


async def _report_end(control: ControlClient, engine: Engine, folder: RankDir) -> None:
    ended = asyncio.ensure_future(engine.ended())
    size, silent = -1, engine.place.replica
    while not ended.done():
        try:
            if silent and await aside(engine.listens):
                silent = False
                await control.send(messages.Listens())
        except UserError as error:  # somebody else listens in its place: rank 0 would wait for its load
            silent = False
            folder.note("failed", reason=str(error))
            await _fail(control, error)
        if size != (size := engine.log_size()):
            await control.send(messages.Progress(await aside(engine.note_progress)))
        await asyncio.wait({ended}, timeout=PROGRESS_S)
    reason = ended.result()
    await control.send(messages.Ended(reason, time.time()))
    folder.note("failed", reason=reason)


async def _stop(engine: Engine | None, watch: asyncio.Task[None] | None, grace_s: float | None = None) -> list[str]:
    if watch:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
    return await engine.stop(grace_s) if engine else []
