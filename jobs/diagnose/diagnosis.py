"""What goes into a diagnosis and what comes out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from jobs.diagnose.sift import Line, plain

_SHORT = 240

ANSWERS = {
    "named": "named, the line says why",
    "narrowed": "narrowed, the line says what happened and not why; causes are those of reports, there may be others",
    "not known": "not known, the line speaks for itself",
}


@dataclass(frozen=True)
class RankLog:
    """One log, or those of its lines that may matter.

    Attributes:
        rank: whose log it is; None: of no rank (Slurm's own words), or not known.
        name: for people; names the file.
        lines: (number, text) in order.
        end: when the log ended, of the same time zone as the times in it; for logs without any.
        cut: the time for it was over before its end.
        unread: why it, or its rest, could not be read; empty: it could.
        own: an engine's own log: what Slurm says in it is about a step of this rank, whose only task is number 0.
    """

    rank: int | None
    name: str
    lines: tuple[Line, ...]
    end: datetime | None = None
    cut: bool = False
    own: bool = False
    unread: str = ""

    @classmethod
    def of(cls, rank: int | None, name: str, text: str, end: datetime | None = None) -> RankLog:
        """Make one of a whole text."""
        return cls(rank, name, tuple(enumerate(map(plain, text.splitlines()), start=1)), end)


@dataclass(frozen=True)
class Evidence:
    """One line that supports a diagnosis."""

    rank: int | None
    log: str
    number: int
    line: str
    time: datetime | None

    @property
    def place(self) -> str:
        """`file:line number`."""
        return f"{self.log}:{self.number}"

    def text(self) -> str:
        """Return rank, place, time and line, for people."""
        who = "" if self.rank is None else f"rank {self.rank}  "
        when = f"{self.time:%m-%d %H:%M:%S}  " if self.time else ""
        return f"{who}{self.place}  {when}{self.line}"


@dataclass(frozen=True)
class Diagnosis:
    """Why a service failed.

    Attributes:
        found: whether there is any sign of a failure.
        rank: the first failing rank; None: it cannot be told.
        signature: id in signatures.yaml; None: no signature fits, so the first error lines speak for themselves.
        certainty: named: the line says why. narrowed: it says what happened; `causes` are what reports of it found.
            not known: the line that says most stands for itself.
        phase: part of the service's life, as in signatures.yaml.
        cause, remedy: for people.
        causes: of a narrowed answer: the possible causes, each with what tells it from the others.
        means: what the codes in the deciding line mean, from the vendors' lists.
        source: where the meaning was found.
        retryable: whether the same allocation may simply try again, once.
        first: the line that decided; None where nothing was found.
        evidence: further lines: of the same failure, and the first one of every other rank.
        suspects: ranks that the failing rank waited for and that show no such time-out: look there first.
        notes: no failures, but worth knowing.
    """

    found: bool
    rank: int | None = None
    signature: str | None = None
    certainty: Literal["named", "narrowed", "not known"] = "named"
    phase: str = "any"
    cause: str = "no failure found"
    remedy: str = "If it failed all the same, see the last lines of each rank."
    causes: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    source: str = ""
    retryable: bool = False
    first: Evidence | None = None
    evidence: tuple[Evidence, ...] = ()
    suspects: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line for a table: `rank 1: cause (signature): line`."""
        if self.first is None:
            return self.cause
        line = self.first.line if len(self.first.line) <= _SHORT else self.first.line[: _SHORT - 1] + "…"
        mark = ", narrowed" if self.certainty == "narrowed" else ""
        known = f"{self.cause} ({self.signature}{mark}): " if self.signature else ""
        where = "" if self.signature else f" ({self.first.place})"
        return f"{_who(self.rank)}{known}{line}{where}"

    def text(self) -> str:
        """Return everything, for people; several lines."""
        if self.first is None:
            head = [self.cause, self.remedy]
        else:
            retry = "yes, once" if self.retryable else "no"
            head = [
                f"{_who(self.rank)}{self.cause}" + (f" ({self.signature})" if self.signature else ""),
                f"  answer: {ANSWERS[self.certainty]}",
                f"  line:   {self.first.text()}",
                *(f"  means:  {one}" for one in self.means),
                *(f"  cause {number}: {one}" for number, one in enumerate(self.causes, start=1)),
                f"  remedy: {self.remedy}",
                *([f"  source: {self.source}"] if self.source else []),
                f"  retry:  {retry}",
            ]
        if self.suspects:
            head.append(f"  look at: {', '.join(f'rank {r}' for r in self.suspects)} first, which it waited for")
        lines = [f"    {item.text()}" for item in self.evidence]
        notes = [f"  note:   {note}" for note in self.notes]
        return "\n".join([*head, *(["  evidence:", *lines] if lines else []), *notes])

    def as_json(self) -> dict[str, Any]:
        """Return plain values; times as ISO text."""
        return asdict(self, dict_factory=_plain) | {"summary": self.summary()}


def _who(rank: int | None) -> str:
    return "" if rank is None else f"rank {rank}: "


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in items}
