"""One event that says something about a failure, and which of them still count. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from jobs.diagnose.diagnosis import Evidence
from jobs.diagnose.events import Event, forms
from jobs.diagnose.signatures import KINDS, Signature, fill
from jobs.diagnose.times import When

_GRACE = timedelta(seconds=5)
"""How much later than a time-out, or than the end of a rank, its own reason may be printed."""

_LONG = timedelta(minutes=5)
"""After a line that is no error by itself, a process that fails so much later has got over it."""

_TELLING = ("cause", "symptom", "unknown")

_WRAPPER, _TENTATIVE, _CLEANUP, _ENDED, _REQUEST, _SPEAKER, _AGAIN, _DIED, _CARRIED, _HANDED, _HELPER, _TIDY = (
    re.compile(forms()[name])
    for name in (
        *("wrapper", "tentative", "cleanup", "ended", "request", "speaker"),
        *("again", "died", "carried", "handed", "helper", "tidy"),
    )
)
_WORDS = 60
"""Characters by which the words of an exception are known again in those of another."""

_ABOVE, _BELOW = 60, 20
"""Lines above and below one that only says that something failed, in which what it was may stand."""

_SHORTLY = 8
"""Lines within which the end of a task may be that of what a symptom without a header tells."""


@dataclass(frozen=True)
class Hit:
    """One event that says something about a failure.

    Attributes:
        signature: what it is; None: an error that none knows.
        match: where the signature was found.
        rank: whose failure it is; None: not known.
        group: the rank, or the log where that is not known.
        log: its name.
        line: the words that are shown.
        alive: number of the last line above it in its log that a program wrote which was no error; 0: none.
    """

    event: Event
    signature: Signature | None
    match: re.Match[str] | None
    rank: int | None
    group: str
    log: str
    line: str
    alive: int = 0

    @property
    def kind(self) -> str:
        """The kind of its signature, or `unknown`."""
        return self.signature.kind if self.signature else "unknown"

    @property
    def when(self) -> When:
        """The time of the event."""
        return self.event.when

    @property
    def order(self) -> tuple[bool, datetime, str, int]:
        """By time; where there is none, the log died before it had a clock: first."""
        time = self.when.time
        return time is not None, time or datetime.min, self.log, self.event.number

    @property
    def serious(self) -> bool:
        """Whether more than its level makes it an error."""
        return self.signature is not None or self.event.exception or self.event.inside or self.event.code is not None

    @property
    def request(self) -> bool:
        """Whether it is about one request, which an API server refused or could not process."""
        marked = self.signature is not None and self.signature.request
        return marked or any(_REQUEST.search(text) for text in (self.event.raw, self.event.frames))

    @property
    def waited(self) -> bool:
        """Whether its line, which calls itself no error, says that it is tried again."""
        return (self.event.bare or self.event.minor) and _AGAIN.search(self.event.text) is not None

    @property
    def outside(self) -> bool:
        """Whether it says that somebody outside ended the job."""
        return self.signature is not None and self.signature.outside

    @property
    def of_client(self) -> bool:
        """Whether a client says it, of its own requests."""
        return self.signature is not None and self.signature.phase == "bench"

    @property
    def of_service(self) -> bool:
        """Whether it is about requests that a service took, which it may survive."""
        return self.signature is not None and self.signature.phase == "serve"

    @property
    def wraps(self) -> bool:
        """Whether it only carries a code from below."""
        return _WRAPPER.search(self.line) is not None

    @property
    def speaker(self) -> str:
        """The program of a container's set-up or of Slurm that says it; empty: another one."""
        return speaker(self.event)

    @property
    def ended(self) -> bool:
        """Whether it only says that a task ended, whatever the reason."""
        return self.kind == "end" and _ENDED.search(self.event.raw) is not None

    def evidence(self) -> Evidence:
        """Return it as a line that supports a diagnosis."""
        return Evidence(self.rank, self.log, self.event.number, self.line, self.when.time)

    def says(self, text: str) -> str:
        """Return a text with what the signature found in the place of its slots."""
        return fill(text, self.match)


def speaker(event: Event) -> str:
    """Return which program of a container's set-up, or daemon of Slurm, says a line: `pyxis`, `slurmstepd`, ..."""
    found = _SPEAKER.match(event.text)
    return (found["set_up"] or found["daemon"] or "podman") if found else ""


def hands_on(event: Event) -> bool:
    """Whether it hands on words of a worker that say what failed, and are no wrapper themselves."""
    carried = _CARRIED.search(event.text)
    return carried is not None and _WRAPPER.search(carried["words"]) is None


def of_kind(hits: Iterable[Hit], *kinds: str) -> list[Hit]:
    """Return those of some kinds."""
    return [hit for hit in hits if hit.kind in kinds]


def clearly_later(hit: Hit, other: Hit, by: timedelta = _GRACE) -> bool:
    """Return whether one line was written after another for certain: both must say when."""
    one, two = hit.when, other.when
    return bool(one.own and two.own and one.time and two.time and one.time > two.time + by)


def surely_later(hit: Hit, other: Hit) -> bool:
    """Return whether one line was written after another, of which only the line below may say when."""
    one, two = hit.when, other.when.latest
    return bool(one.own and one.time and two and one.time > two + _GRACE)


def what_counts(hits: Sequence[Hit], ready: datetime | None) -> list[Hit]:
    """Leave out what the service got over: what was passed, handled, survived, or is explained by another."""
    hits = _not_survived(_not_handled(_not_waited(_not_requests(_not_helpers(_not_queued(_not_passed(hits, ready)))))))
    return _not_overcome(_not_said_better(_not_told_above(_not_carried(hits))))


def _not_carried(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out what hands on the words of a worker where its own exception, with its frames, is in the log."""
    own = [(hit.log, hit.event.text) for hit in hits if hit.event.exception and not _CARRIED.search(hit.event.text)]

    def repeats(hit: Hit) -> bool:
        found = _CARRIED.search(hit.event.text)
        return found is not None and any(log == hit.log and found["words"][:_WORDS] in text for log, text in own)

    return [hit for hit in hits if not repeats(hit)]


def _not_requests(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out what concerns one request, where more than a client's requests has failed."""
    others = [hit for hit in hits if not hit.request]
    failed = any(hit.kind in (*_TELLING, "timeout", "end") and not hit.of_client for hit in others)
    return others if failed else list(hits)


def _not_helpers(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out the words of small programs by which a script tidies up, and looks around beside another failure."""
    hits = [hit for hit in hits if not (hit.event.bare and _TIDY.match(hit.event.text))]
    others = [hit for hit in hits if not (hit.event.bare and _HELPER.match(hit.event.text))]
    return others if any(hit.kind in (*_TELLING, "timeout") for hit in others) else list(hits)


def _not_waited(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out waits that their lines do not call errors, where something else went wrong by its own words."""

    def waits(hit: Hit) -> bool:
        return hit.signature is not None and hit.signature.passing and hit.event.minor

    others = [hit for hit in hits if not (hit.waited or waits(hit))]
    if any(hit.kind in _TELLING for hit in others):
        return others
    gave_up = any(not hit.event.minor for hit in of_kind(others, "timeout"))
    hits = [hit for hit in hits if not (hit.kind == "timeout" and waits(hit) and gave_up)]
    ended = any(hit.kind == "end" and not hit.event.minor and not hit.ended for hit in others)
    return [hit for hit in hits if not (ended and (waits(hit) or hit.waited))]


def _not_passed(hits: Sequence[Hit], ready: datetime | None) -> list[Hit]:
    """Leave out what the service got over: it was ready later.

    Where nothing failed after that, lines that only their level makes errors tell nothing either.
    """
    if ready is None:
        return list(hits)

    def before(hit: Hit) -> bool:
        return hit.when.latest is not None and hit.when.latest < ready

    hits = [hit for hit in hits if not (hit.signature and hit.signature.passing and before(hit))]
    after = any(not before(hit) for hit in hits if hit.kind in ("cause", "symptom", "timeout", "unknown"))
    return [hit for hit in hits if not ((after or not hit.serious) and before(hit))]


def _not_queued(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out what Slurm said of asking for nodes, where an engine ran on them and failed by itself."""
    others = [hit for hit in hits if not (hit.signature and hit.signature.phase == "queue")]
    return others if any(hit.event.process and hit.kind in _TELLING for hit in others) else list(hits)


def _not_handled(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out exceptions that were being handled when a telling one came up.

    Which of two is the failure, Python does not say. It is the later one, unless that came up while things were put
    away, or says less: then only exceptions with which programs try what may be missing are left out.
    """
    by_line = {(hit.log, hit.event.number): hit for hit in hits}
    gone: set[tuple[str, int]] = set()
    for hit in hits:
        first = by_line.get((hit.log, hit.event.during or 0))
        if first is None or hit.kind not in _TELLING or _CLEANUP.search(hit.event.frames):
            continue
        if _repeats(hit.line, first.line):
            gone.add((hit.log, hit.event.number))
        elif _trust(hit) <= _trust(first) or _TENTATIVE.match(first.line):
            gone.add((first.log, first.event.number))
    return [hit for hit in hits if (hit.log, hit.event.number) not in gone]


def _repeats(later: str, first: str) -> bool:
    """Whether an exception says nothing but the words of the one that was being handled."""
    handed, words = _HANDED.search(later), first.partition(":")[2].strip()
    return handed is not None and (not handed["words"].strip() or words.startswith(handed["words"].strip()[:_WORDS]))


def _trust(hit: Hit) -> int:
    return KINDS.index(hit.signature.kind) if hit.signature else len(KINDS)


def _not_survived(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out lines that are no errors by themselves where their rank failed long after, and said why.

    A symptom without a header (a script's `command not found`) is over once a later traceback stands in the log, or
    once programs went on and one failed later; that a client had no answers then, or somebody waited, says nothing.
    """
    failed = [hit for hit in hits if hit.kind in _TELLING or (hit.kind == "follow_on" and hit.wraps)]
    failed = [hit for hit in failed if (hit.event.exception or hit.event.code) and not hit.event.minor]
    telling = [hit for hit in failed if not (hit.signature and hit.signature.gives_way)]  # others hand on what is above
    later = [hit for hit in hits if not (hit.signature and hit.signature.phase == "bench")]
    later = [
        hit for hit in later if hit.kind in (*_TELLING, "end") or (hit.kind == "follow_on" and hit.event.exception)
    ]

    def survived(hit: Hit) -> bool:
        number = hit.event.number
        if hit.event.bare and hit.kind == "symptom":
            return any(one.log == hit.log and one.event.number > number and one.event.frames for one in telling) or any(
                one.log == hit.log and one.alive > number and not (one.ended and one.event.number - number < _SHORTLY)
                for one in later
            )
        weak = hit.event.bare or (hit.event.minor and not (hit.signature and hit.signature.over))
        return weak and any(one.group == hit.group and clearly_later(one, hit, _LONG) for one in failed)

    return [hit for hit in hits if hit.kind == "note" or not survived(hit)]


def _not_told_above(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out that a task ended where its log says above of what, and that a worker died where it says why."""
    told: dict[str, int] = {}
    why: dict[str, int] = {}
    for hit in hits:
        wraps = hit.kind == "follow_on" and (hit.event.exception or hit.wraps)
        if wraps or (hit.kind in ("timeout", "end") and not hit.ended):
            told[hit.log] = min(hit.event.number, told.get(hit.log, hit.event.number))
        if hit.kind == "follow_on" and hit.wraps:
            why[hit.log] = min(hit.event.number, why.get(hit.log, hit.event.number))

    def repeats(hit: Hit) -> bool:
        died = hit.kind == "end" and _DIED.search(hit.event.text) is not None
        above = told if hit.ended else why if died else {}
        return above.get(hit.log, hit.event.number) < hit.event.number

    return [hit for hit in hits if not repeats(hit)]


def _not_said_better(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out what only says that something failed, where its log says near it what that was."""
    by_log: dict[str, list[Hit]] = {}
    for hit in of_kind(hits, *_TELLING):
        if not (hit.event.minor or (hit.signature and hit.signature.gives_way)):
            by_log.setdefault(hit.log, []).append(hit)

    def better(hit: Hit, other: Hit) -> bool:
        below = other.event.number - hit.event.number
        if not -_ABOVE <= below <= _BELOW or clearly_later(hit, other) or clearly_later(other, hit):
            return False
        if other.signature:  # words without a header are too little against what says itself what went wrong
            return hit.kind != "cause" or not other.event.bare
        said = other.event.exception or (other.speaker != "" and other.speaker == hit.speaker)
        return below < 0 and said and hit.signature is not None and hit.signature.gives_way == "any"

    def weak(hit: Hit) -> bool:
        gives_way = hit.signature is not None and hit.signature.gives_way != ""
        return gives_way and any(better(hit, other) for other in by_log.get(hit.log, ()))

    return [hit for hit in hits if not weak(hit)]


def _not_overcome(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out what another explains, unless that was clearly later and on another rank, or is always said late."""
    over = [(name, hit) for hit in hits if hit.signature for name in hit.signature.over]
    late = any(hit.signature and hit.signature.late for hit in hits)

    def overcome(hit: Hit) -> bool:
        if late and hit.kind in ("timeout", "end", "follow_on"):
            return True
        by = [other for name, other in over if hit.signature and hit.signature.id == name]
        return any(other.group == hit.group or not clearly_later(other, hit) for other in by)

    return [hit for hit in hits if not overcome(hit)]
