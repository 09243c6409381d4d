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
    when            start    the process has read its flags
                    load     loading has begun
                    ready    the head answers HTTP; a headless rank has loaded
                    request  request number `after_requests` (default 1) has reached this rank's engines
                    window   the first request for more than one token has reached this rank's engines
    after_s         seconds after that (default 0)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from jobs.core.errors import ConfigError
from jobs.core.fields import Count, NotNegative, Positive, Section, Text, Whole

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
}
"""Each kind with the keys that it alone has."""

_NEEDED = {"exit": "code", "slow": "factor", "error_text": "text", "log_flood": "mb_s", "short_output": "tokens"}


@dataclass(frozen=True)
class Fault(Section):
    """One fault; the module's text says what each key means."""

    rank: Whole
    kind: Literal[
        "crash",
        "exit",
        "hang",
        "never_ready",
        "slow",
        "error_text",
        "log_flood",
        "stream_error",
        "short_output",
        "engine_dead",
    ]
    when: Literal["start", "load", "ready", "request", "window"]
    after_s: NotNegative = 0.0
    after_requests: Count | None = None
    code: Annotated[int, Field(ge=0, le=255, strict=True)] | None = None
    factor: Positive | None = None
    text: Text | None = None
    mb_s: Positive | None = None
    tokens: Count | None = None


_ADAPTER = TypeAdapter(Fault)
_KEY = "engine.rehearsal.faults"


def parse_faults(items: Iterable[Mapping[str, Any]]) -> tuple[Fault, ...]:
    """Turn the objects of `engine.rehearsal.faults` into faults.

    Raises:
        ConfigError: unknown key, kind or moment, a wrong value, a key that the kind has not or lacks.
    """
    return tuple(_parse(index, item) for index, item in enumerate(items))


def _parse(index: int, item: Mapping[str, Any]) -> Fault:
    try:
        fault = _ADAPTER.validate_python(dict(item))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{_KEY}[{index}].{name}", repr(first["input"]), first["msg"], "See jobs/engines/simulator/faults.py."
        ) from None
    kind: str = fault.kind
    for name in ("code", "factor", "text", "mb_s", "tokens"):
        value = getattr(fault, name)
        if value is not None and name not in KINDS[kind]:
            raise ConfigError(f"{_KEY}[{index}].{name}", value, f"kind {kind} has no such key", "Leave it out.")
        if value is None and _NEEDED.get(kind) == name:
            raise ConfigError(f"{_KEY}[{index}].{name}", None, f"kind {kind} needs it", "Set it.")
    if fault.after_requests is not None and fault.when != "request":
        raise ConfigError(
            f"{_KEY}[{index}].after_requests", fault.after_requests, "only when=request has it", "Leave it out."
        )
    return fault
