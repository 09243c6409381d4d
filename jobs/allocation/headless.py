"""A headless rank: it starts and stops its engine as rank 0 says, and reports what happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

from jobs.allocation.control import ControlClient, Message
from jobs.allocation.node import staging
from jobs.allocation.node.engine import Engine
from jobs.core.errors import UserError
from jobs.core.rundir import RankDir

PROGRESS_S = 2.0
"""How often a rank says that its engine's log has grown."""

HASTE_S = 3.0
"""SIGTERM until SIGKILL when the service has failed: most healthy ones need less than 2 s, a hung one never answers."""

MakeEngine = Callable[[Message], Engine | None]
"""Makes the engine of a "start" message; None where the service needs fewer nodes than the allocation has."""


Answer = Callable[[Message], Awaitable[Message]]
"""Answers a question about this node ("preflight")."""


async def serve(
    control: ControlClient, make_engine: MakeEngine, inherited: Mapping[str, str], answer: Answer | None = None
) -> str | None:
    """Obey rank 0 until it says goodbye.

    Args:
        link: to rank 0.
        make_engine: makes the engine of a service.
        inherited: environment of this task.
        answer: answers what rank 0 asks about this node before the first service.

    Returns:
        None after a goodbye, else the reason for which this rank ends: rank 0 is gone.
    """
    engine: Engine | None = None
    watch: asyncio.Task[None] | None = None
    try:
        while (message := await control.receive()) is not None:
            match message["type"]:
                case "prepare":
                    engine, watch = await _prepare(control, make_engine, message, inherited)
                case "preflight":
                    await _tell(control, answer, message)
                case "start":
                    engine, watch = await _start(control, engine, make_engine, message, inherited)
                case "inspect":
                    await _inspect(control, engine if watch and not watch.done() else None)
                case "phase":
                    _note_phase(engine, message)
                case "stop":
                    leftovers = await _stop(engine, watch, message.get("grace_s"))
                    engine = watch = None
                    await control.send({"type": "stopped", "leftovers": leftovers})
                case "bye":
                    return None
        return "rank 0 is gone"
    finally:
        await asyncio.shield(_stop(engine, watch, HASTE_S))
        control.close()


def _note_phase(engine: Engine | None, message: Message) -> None:
    """Let this rank's record say what the service does: nobody looks at rank 0's to learn of rank 1."""
    if engine:
        details = {key: value for key, value in message.items() if key not in ("type", "state")}
        engine.note_phase(str(message["state"]), **details)


async def _tell(control: ControlClient, answer: Answer | None, message: Message) -> None:
    if answer:
        try:
            await control.send(await answer(message))
        except UserError as error:
            await control.send({"type": "ended", "reason": str(error), "time": time.time()})


async def _inspect(control: ControlClient, engine: Engine | None) -> None:
    try:
        found = await asyncio.to_thread(engine.inspect) if engine else ()
    except UserError as error:  # a full disk
        await control.send({"type": "ended", "reason": str(error), "time": time.time()})
    else:
        answer = [{"text": str(one), "error": one.error} for one in found]
        await control.send({"type": "inspected", "differences": answer})


async def _prepare(
    control: ControlClient, make_engine: MakeEngine, message: Message, inherited: Mapping[str, str]
) -> tuple[Engine | None, asyncio.Task[None] | None]:
    try:
        engine = make_engine(message)
    except UserError as error:
        await control.send({"type": "ended", "reason": str(error), "time": time.time()})
        return None, None
    return engine, asyncio.create_task(_prepared(control, engine, inherited)) if engine else None


async def _prepared(control: ControlClient, engine: Engine, inherited: Mapping[str, str]) -> None:
    try:
        parts = await staging.prepare(engine, inherited)
    except UserError as error:
        await control.send({"type": "ended", "reason": str(error), "time": time.time()})
        engine.folder.note("failed", reason=str(error))
    else:
        await control.send({"type": "prepared", "parts": parts})


async def _start(
    control: ControlClient,
    engine: Engine | None,
    make_engine: MakeEngine,
    message: Message,
    inherited: Mapping[str, str],
) -> tuple[Engine | None, asyncio.Task[None] | None]:
    """Start the engine: the one that was prepared, or a new one."""
    try:
        engine = engine or make_engine(message)
        if engine:
            await engine.start(inherited)
            return engine, asyncio.create_task(_report_end(control, engine, engine.folder))
    except UserError as error:
        await control.send({"type": "ended", "reason": str(error), "time": time.time()})
        if engine:
            engine.folder.note("failed", reason=str(error))
    return engine, None


async def _report_end(control: ControlClient, engine: Engine, folder: RankDir) -> None:
    ended = asyncio.ensure_future(engine.ended())
    size = -1
    while not ended.done():
        if size != (size := engine.log_size()):
            await control.send({"type": "progress", "age": engine.log_age()})
            await asyncio.to_thread(engine.note_progress)
        await asyncio.wait({ended}, timeout=PROGRESS_S)
    reason = ended.result()
    await control.send({"type": "ended", "reason": reason, "time": time.time()})
    folder.note("failed", reason=reason)


async def _stop(engine: Engine | None, watch: asyncio.Task[None] | None, grace_s: float | None = None) -> list[str]:
    if watch:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
    return await engine.stop(grace_s) if engine else []
