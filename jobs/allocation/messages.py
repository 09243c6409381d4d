"""What the ranks tell each other, and how it is written on a line: one JSON object, its kind under "type".

Other files define messages of their own (preflight/questions.py); every class that derives from `Message` is a kind.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from jobs.allocation.node.audit import Difference


class Message:
    """One message. Its fields are read back strictly: no other field, no other type."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    kinds: ClassVar[dict[str, type[Message]]] = {}

    def __init_subclass__(cls) -> None:
        Message.kinds[cls.__name__] = cls


def encode(message: Message) -> bytes:
    """Return a message as a line."""
    return json.dumps({"type": type(message).__name__, **asdict(message)}).encode() + b"\n"  # type: ignore[call-overload]


def decode(line: bytes) -> Message:
    """Return the message of a line.

    Raises:
        ValueError: it is no message of ours: not JSON, an unknown kind, a field too many or of another type.
    """
    try:
        data = json.loads(line)
    except RecursionError:
        raise ValueError("it is too deep") from None
    kind = data.pop("type", None) if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in Message.kinds:
        raise ValueError(f"there is no message of kind {str(kind)[:40]!r}")
    try:
        return _reader(kind).validate_json(json.dumps(data))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ValueError(f"{kind}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from None


@cache
def _reader(kind: str) -> TypeAdapter[Message]:
    return TypeAdapter(Message.kinds[kind])


@dataclass(frozen=True)
class Beat(Message):
    """A sign of life."""


# What rank 0 tells the others.


@dataclass(frozen=True)
class EngineStart(Message):
    """Start the engine of a service, with this first point, on the first so many ranks; `attempt` is this try's number.

    Address and ports are those of the head, as its engine is given them.
    """

    service: str
    point: str
    ranks: int
    attempt: int
    master_address: str
    api_port: str
    rpc_port: str


@dataclass(frozen=True)
class Prepare(Message):
    """Bring image and checkpoint of a service that is then started.

    `image`: the names of rank 0's; the rank has brought another one, and is to take this one instead.
    """

    start: EngineStart
    image: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspect(Message):
    """Compare the running engine with what was intended."""


@dataclass(frozen=True)
class Phase(Message):
    """The service has entered a phase."""

    state: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stop(Message):
    """Stop the engine: `grace_s` seconds from SIGTERM to SIGKILL; None: limits.stop_s."""

    grace_s: float | None = None


@dataclass(frozen=True)
class Bye(Message):
    """The allocation has done its work."""


# What the others tell rank 0.


@dataclass(frozen=True)
class Gone(Message):
    """A rank cannot go on."""

    reason: str


@dataclass(frozen=True)
class Lost(Gone):
    """Its connection ended, or it is silent: rank 0's own end of the channel says so."""


@dataclass(frozen=True)
class Ended(Gone):
    """Its engine ended or cannot be started; `time` on its clock, Unix seconds."""

    time: float


@dataclass(frozen=True)
class Signalled(Gone):
    """Its task was told to end; `time` as above."""

    time: float


@dataclass(frozen=True)
class Progress(Message):
    """The engine's log has grown. When is told by the clock of who hears it: a file's time is another host's.

    `weights`: it says that the weights are read.
    """

    weights: bool = False


@dataclass(frozen=True)
class Listens(Message):
    """The API of a replica is there, and it is its own engine's."""


@dataclass(frozen=True)
class Prepared(Message):
    """Image and checkpoint are there; `parts`: short hashes of the checkpoint."""

    parts: dict[str, str]


@dataclass(frozen=True)
class Inspected(Message):
    """How the running engine differs from what was intended; how fast it has read its weights, GB/s."""

    differences: tuple[Difference, ...] = ()
    load_gb_s: float | None = None


@dataclass(frozen=True)
class Stopped(Message):
    """The engine is stopped; `leftovers`: what could not be ended."""

    leftovers: tuple[str, ...] = ()
