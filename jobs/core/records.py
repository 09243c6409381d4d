"""Records of services, ranks and jobs as they are read back: known fields in their form, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from jobs.core import hidden
from jobs.core.errors import RunError
from jobs.core.files import read_lines
from jobs.core.foreign import checked, load_json

Number = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
"""A figure that sums are made of."""

Seconds = Annotated[float, Field(ge=0, le=30 * 86400, allow_inf_nan=False)]
"""How long a load or a stop took: no job runs for a month."""


class Record(BaseModel, extra="allow", strict=True):
    """What `tolerant` is asked for: of service.json the load, and of job.json, provenance.json, command.json and
    effective.json. Others are read by jobs/core/tasks.py.
    """

    load_s: Seconds | None = None
    submitted: Number | None = None
    nodes: Annotated[int, Field(ge=1, le=100_000)] | None = None
    job_id: str | int | None = None
    host: str | None = None
    argv: list[str] | None = None
    env: dict[str, str] | None = None
    differences: list[dict[str, Any]] | None = None


def tolerant(path: Path, *, ours: bool = False) -> dict[str, Any]:
    """Return a record; an empty one where it is missing, half-written, of another form or (`ours`) another user's."""
    try:
        found: dict[str, Any] = hidden.all_visible(load_json(path, ours=ours))
        checked(path, Record, found)
    except RunError:
        return {}
    return found


_SHOWN = ("point", "reason", "shards", "staged", "pid")
"""What of a state is shown."""


def read_states(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a state.jsonl that are states: a name, and a time where one stands there."""
    return [
        hidden.all_visible(one)
        for one in read_lines(path)
        if isinstance(one, dict)
        and isinstance(one.get("state"), str)
        and isinstance(one.get("time"), int | float | None)
        and all(isinstance(one.get(name), str | int | float | None) for name in _SHOWN)
    ]
