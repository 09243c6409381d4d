"""What a rank asks `python -m jobs.engines.checkpoint` to do, and what that answers: a file each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.core.errors import RunError
from jobs.core.files import read_json, write_json


@dataclass(frozen=True)
class StageOrder:
    """What is to be done before the engine starts.

    Attributes:
        source: the checkpoint.
        stage_to: directory of this node that it is copied into; None: it is served from where it is.
        check: whether its sizes are compared with its index.
        sampled: how many shards are read and hashed in part as well.
        w8a8: its weights shall be W8A8.
        weights: whether there are any; else only what describes the model.
        result: file for the answer.
    """

    source: str
    stage_to: str | None
    check: bool
    sampled: int
    w8a8: bool
    weights: bool
    result: str

    def write(self, path: Path) -> None:
        """Write the order; an old answer is removed."""
        Path(self.result).unlink(missing_ok=True)
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> StageOrder:
        """Read an order."""
        return StageOrder(**read_json(path))


@dataclass(frozen=True)
class Staged:
    """The checkpoint as it is now: where, short hashes of its parts, and its manifest."""

    path: str
    parts: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, Any] | None = None

    def write(self, path: Path) -> None:
        """Write the answer."""
        write_json(path, asdict(self))


def write_error(path: Path, error: RunError) -> None:
    """Write what is wrong as the answer."""
    write_json(path, {"error": error.args})


def read_answer(path: Path) -> Staged | None:
    """Return the answer; None: there is none.

    Raises:
        RunError: it is an error.
    """
    if not path.exists():
        return None
    found = read_json(path)
    if "error" in found:
        raise RunError(*found["error"])
    return Staged(**found)
