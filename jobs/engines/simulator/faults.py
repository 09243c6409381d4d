"""Faults that a rank acts out: what, on which rank, when. The same list gives the same failure each time.

One fault is an object with these keys:
    rank            the rank that acts it out
    kind            crash         SIGKILL to itself
                    exit          leaves with `code`
                    hang          its engines stop for ever; /health stays 200, as vLLM's does (a stuck collective)
                    never_ready   loading never ends
                    slow          everything takes `factor` times as long
                    error_text    prints `text` as vLLM prints an error; with `code` it leaves
                    log_flood     prints `mb_s` megabytes a second
                    stream_error  its requests get an SSE error event, then [DONE], with HTTP 200
                    short_output  its requests end after `tokens` tokens, whatever was asked
                    engine_dead   its engines die and tell the head: all requests fail, /health is 503, the head ends
                    release_gaps  the head lacks what 0.9.1 lacks: X-data-parallel-rank is ignored, /metrics shows the
                                  last engine only
    when            start    the process has read its flags
                    load     loading has begun
                    ready    the head answers HTTP; a headless rank has loaded
                    request  request number `after_requests` (default 1) has reached this rank's engines
                    window   the first request for more than one token has reached this rank's engines
    after_s         seconds after that (default 0)
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from jobs.core.errors import ConfigError
from jobs.core.fields import Count, NotNegative, Positive, Section, Text, Whole, one_of
from jobs.core.foreign import form_of
from jobs.engines.simulator.log import Log

KINDS: Mapping[str, tuple[str, ...]] = {
    "crash": (),
    "exit": ("code",),
    "hang": (),
    "never_ready": (),
    "slow": ("factor",),
    "error_text": ("text", "code"),
    "log_flood": ("mb_s",),
    "stream_error": (),
    "short_output": ("tokens",),
    "engine_dead": (),
    "release_gaps": (),
}
"""Each kind with the keys that it alone has; it needs the first of them."""

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
"""vllm/v1/engine/exceptions.py, 0.9.1."""

_KEY = "engine.rehearsal.faults"
_FLOOD_TICK_S = 0.05


@dataclass(frozen=True)
class Fault(Section):
    """One fault; the module's text says what each key means."""

    rank: Whole
    kind: Annotated[Text, one_of(*KINDS)]
    when: Annotated[Text, one_of("start", "load", "ready", "request", "window")]
    after_s: NotNegative = 0.0
    after_requests: Count | None = None
    code: Annotated[int, Field(ge=0, le=255, strict=True)] | None = None
    factor: Positive | None = None
    text: Text | None = None
    mb_s: Positive | None = None
    tokens: Count | None = None


Checked = TypeVar("Checked")


def checked(kind: type[Checked], values: Any, whose: str, remedy: str) -> Checked:
    """Return values of the right types; ConfigError names the first key that is wrong, behind `whose`."""
    try:
        return form_of(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = whose + ".".join(str(part) for part in first["loc"])
        raise ConfigError(key, repr(first["input"]), first["msg"], remedy) from None


def parse_faults(items: Iterable[Mapping[str, Any]]) -> tuple[Fault, ...]:
    """Turn the objects of `engine.rehearsal.faults` into faults.

    Raises:
        ConfigError: unknown key, kind or moment, a wrong value, a key that the kind has not or lacks.
    """
    return tuple(_parse(f"{_KEY}[{index}]", item) for index, item in enumerate(items))


def _parse(key: str, item: Mapping[str, Any]) -> Fault:
    fault = checked(Fault, dict(item), f"{key}.", "See jobs/engines/simulator/faults.py.")
    own = KINDS[fault.kind]
    for name in ("code", "factor", "text", "mb_s", "tokens"):
        value = getattr(fault, name)
        if value is not None and name not in own:
            raise ConfigError(f"{key}.{name}", value, f"kind {fault.kind} has no such key", "Leave it out.")
        if value is None and name in own[:1]:
            raise ConfigError(f"{key}.{name}", None, f"kind {fault.kind} needs it", "Set it.")
    if fault.after_requests is not None and fault.when != "request":
        raise ConfigError(f"{key}.after_requests", fault.after_requests, "only when=request has it", "Leave it out.")
    return fault


class Player:
    """Waits for the moments of a rank's life and does what its faults say.

    Args:
        faults: of the whole rehearsal; those of other ranks are passed over.
        rank: of this process.

    Attributes:
        log: of this process.
        factor: how many times as long everything takes.
        moving: unset while the engines hang.
        failing: text with which every request fails; None: they do not.
        longest: tokens after which a request ends, whatever it asked for; None: what it asked for.
        gaps: whether the head lacks what 0.9.1 lacks.
        loads: unset once loading must never end.
        on_dead: called when the engines die and say so.
    """

    factor = 1.0
    failing: str | None = None
    longest: int | None = None
    gaps = False

    def __init__(self, faults: Iterable[Fault], rank: int, log: Log) -> None:
        self.log, self.loads, self.moving = log, asyncio.Event(), asyncio.Event()
        self.loads.set()
        self.moving.set()
        self.on_dead: Callable[[], None] = lambda: None
        self._faults = [fault for fault in faults if fault.rank == rank]
        self._requests = 0
        self._reached: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def reach(self, moment: str) -> None:
        """Take the news that a moment has come: start, load, ready or window. Only the first time counts."""
        if moment not in self._reached:
            self._reached.add(moment)
            self._schedule(fault for fault in self._faults if fault.when == moment)

    def request(self, tokens: int) -> None:
        """Take the news that a request for `tokens` tokens has reached an engine of this rank."""
        self._requests += 1
        self._schedule(
            fault for fault in self._faults if fault.when == "request" and (fault.after_requests or 1) == self._requests
        )
        if tokens > 1:
            self.reach("window")

    def _schedule(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            if fault.after_s:
                asyncio.get_running_loop().call_later(fault.after_s, self._act, fault)
            else:
                self._act(fault)

    def _act(self, fault: Fault) -> None:
        match fault.kind:
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                leave(fault.code or 0)
            case "hang":
                self.moving.clear()
                self.loads.clear()
            case "never_ready":
                self.loads.clear()
            case "slow":
                self.factor = fault.factor or 1.0
            case "error_text":
                self.log.write("error_text", text=fault.text or "")
                if fault.code is not None:
                    leave(fault.code)
            case "log_flood":
                self._tasks.add(asyncio.get_running_loop().create_task(self._flood(fault.mb_s or 1.0)))
            case "stream_error":
                self.failing = ENGINE_DEAD
            case "short_output":
                self.longest = fault.tokens
            case "release_gaps":
                self.gaps = True
            case "engine_dead":
                self.log.write("fatal")
                self.moving.clear()
                self.on_dead()

    async def _flood(self, mb_s: float) -> None:
        line = "x" * 1000
        loop = asyncio.get_running_loop()
        begin, written = loop.time(), 0
        while True:
            due = int((loop.time() - begin) * mb_s * 1000)
            for _ in range(written, due):
                self.log.write("flood", text=line)
            written = due
            await asyncio.sleep(_FLOOD_TICK_S)


def leave(code: int) -> None:
    """End this process at once with an exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
