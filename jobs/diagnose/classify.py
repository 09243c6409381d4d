"""Logs of all ranks -> the first failing rank, its cause and the remedy. Pure.

Order of trust:
    1. Every line is one hit: of a signature, or an error that none knows. Follow-on errors never decide while there is
       anything else, whatever their time: they are often printed before the error that they wrap.
    2. A cause decides. On one rank, causes within two seconds are one failure: there the order of signatures.yaml,
       then worker before API server. Between ranks the earlier one decides.
    3. Without a cause, an unknown error decides, unless it is itself a consequence: of a time-out on its own rank, or
       of the end of another rank.
    4. A time-out blames a rank that has none. It decides only where nothing was wrong before it.
    5. An error without a time on another rank says nothing against our own report of who failed first.
    6. What an engine says after it was told to stop is no failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from jobs.core.layout import node_of
from jobs.diagnose.diagnosis import Diagnosis, Evidence, RankLog
from jobs.diagnose.lines import Parsed
from jobs.diagnose.sift import may_matter
from jobs.diagnose.signatures import Signature, signatures
from jobs.diagnose.times import When, timeline

_TOGETHER = timedelta(seconds=2)
"""Errors of one rank that are one failure: vLLM's times have whole seconds."""

_GRACE = timedelta(seconds=5)
"""How much later than a time-out, or than the end of a rank, its own reason may be printed."""

_READY = re.compile(r"Application startup complete|: ready after [\d.]+ s")
_SHUTDOWN = re.compile(
    r"shutdown triggered|trigger received signal=SIG|Waiting up to \d+ seconds for processes to exit"
)
"""An engine was told to stop (vLLM from 0.23)."""

_SLURM = re.compile(r"(?:srun|slurmstepd|sbatch)\S*: ")
"""Words of Slurm about any rank; they go to the output of the batch script, which is that of rank 0."""

_EMPTY = "See the output of the batch script, what Slurm says of the job (sacct -j JOB), and whether the disk was full."

_LONGEST = 400
_FIRST_LINES = 3


@dataclass(frozen=True)
class _Hit:
    """One line that says something about a failure."""

    signature: Signature | None
    rank: int | None
    group: str
    log: str
    number: int
    line: str
    when: When
    layer: int
    exception: bool
    reported: bool

    @property
    def kind(self) -> str:
        return self.signature.kind if self.signature else "unknown"

    @property
    def order(self) -> tuple[bool, datetime, str, int]:
        """By time; where there is none, the log died before it had a clock: first."""
        time = self.when.time
        return time is not None, time or datetime.min, self.log, self.number

    def evidence(self) -> Evidence:
        return Evidence(self.rank, self.log, self.number, self.line, self.when.time)


def classify(logs: Sequence[RankLog], local_sizes: Sequence[int] = ()) -> Diagnosis:
    """Return why a service failed.

    Args:
        logs: of all ranks, in any order; also logs that this tool did not write.
        local_sizes: data-parallel ranks of each node, in order; empty: not known, so that a line about a
            data-parallel rank does not tell the node.
    """
    ordered = sorted(logs, key=lambda log: (log.rank is None, log.rank or 0, log.name, log.lines))
    times = timeline([([text for _, text in log.lines], log.end) for log in ordered])
    ready = _ready(ordered, times)
    hits = [hit for log, when in zip(ordered, times, strict=True) for hit in _hits(log, when, ready, local_sizes)]
    hits = _not_overcome(_not_passed(hits, ready))
    notes = tuple(dict.fromkeys(f"{h.signature.cause} ({h.log}:{h.number})" for h in hits if h.signature and _note(h)))
    hits = [hit for hit in hits if not _note(hit)]
    winner = _decide(hits)
    if winner is None and logs and not any(text.strip() for log in logs for _, text in log.lines):
        which = "the log is" if len(logs) == 1 else "all logs are"
        return Diagnosis(found=False, cause=f"{which} empty: that says neither success nor failure", remedy=_EMPTY)
    if winner is None:
        return Diagnosis(found=False, evidence=tuple(_ends(ordered, times)), notes=notes)
    return replace(_explain(winner, hits, {log.rank for log in logs}), notes=notes)


def _note(hit: _Hit) -> bool:
    return hit.kind == "note"


def _ready(logs: Sequence[RankLog], times: Sequence[Sequence[When]]) -> datetime | None:
    """Return when the service was ready for the first time; None: never, or no log has a clock."""
    found = (
        when.time
        for log, whens in zip(logs, times, strict=True)
        for (_, text), when in zip(log.lines, whens, strict=True)
        if when.time and may_matter(text) and _READY.search(text)
    )
    return min(found, default=None)


def _hits(log: RankLog, times: Sequence[When], ready: datetime | None, local_sizes: Sequence[int]) -> Iterable[_Hit]:
    frame: str | None = None
    stopping = False
    for (number, text), when in zip(log.lines, times, strict=True):
        parsed = Parsed(text)
        frame = parsed.frame or frame
        stopping = stopping or _SHUTDOWN.search(text) is not None
        if not may_matter(text) or parsed.quotes_code:
            continue
        line = parsed.message.strip()
        if parsed.exception and ":" not in line and frame:
            line = f"{line} [{frame}]"
        after = bool(ready and when.time and when.time >= ready)
        signature = _match(parsed, line, log.rank, after)
        if signature is None and not parsed.error:
            continue
        if stopping and (signature is None or signature.kind in ("follow_on", "timeout")):
            continue
        rank = _rank(parsed, signature, log.rank, local_sizes)
        group = f"rank {rank}" if rank is not None else log.name
        place = (rank, group, log.name, number, line[:_LONGEST], when)
        yield _Hit(signature, *place, parsed.layer, parsed.exception, parsed.report is not None)


def _match(parsed: Parsed, line: str, rank: int | None, after_ready: bool) -> Signature | None:
    for signature in signatures():
        if parsed.minor and not signature.any_level:
            continue
        if rank is not None and signature.role and (signature.role == "head") != (rank == 0):
            continue
        if signature.ready is not None and signature.ready != after_ready:
            continue
        if signature.pattern.search(parsed.raw) or signature.pattern.search(line):
            return signature
    return None


def _rank(parsed: Parsed, signature: Signature | None, rank: int | None, local_sizes: Sequence[int]) -> int | None:
    """Return the rank that a line is about: its own words are better than the file that they are in."""
    if parsed.report:
        return int(parsed.report["rank"])
    match = signature.pattern.search(parsed.raw) if signature else None
    named = match.groupdict() if match else {}
    if named.get("rank") is not None:
        return int(named["rank"])
    if named.get("data_parallel_rank") is not None:
        # A node may run several engines: without their numbers only the first one's node is certain.
        engine = int(named["data_parallel_rank"])
        return node_of(local_sizes, engine) if engine < sum(local_sizes) else None if engine else 0
    return None if rank == 0 and _SLURM.match(parsed.raw) else rank


def _not_passed(hits: Sequence[_Hit], ready: datetime | None) -> list[_Hit]:
    """Leave out what the service got over: it was ready later."""
    if ready is None:
        return list(hits)

    def before(hit: _Hit) -> bool:
        return hit.when.time is not None and hit.when.time < ready

    hits = [hit for hit in hits if not (hit.signature and hit.signature.passing and before(hit))]
    after = any(not before(hit) for hit in hits if hit.kind in ("cause", "timeout", "unknown"))
    return [hit for hit in hits if not (after and before(hit))]


def _not_overcome(hits: Sequence[_Hit]) -> list[_Hit]:
    overcome = {name for hit in hits if hit.signature for name in hit.signature.over}
    return [hit for hit in hits if not (hit.signature and hit.signature.id in overcome)]


def _decide(hits: Sequence[_Hit]) -> _Hit | None:
    causes = _of(hits, "cause")
    timeouts, ends = _of(hits, "timeout"), _of(hits, "end")
    effect = _effect(timeouts, ends)
    if cause := _first(causes):
        return effect if effect and _clearly_later(cause, effect) else cause
    unknown = _first([hit for hit in _of(hits, "unknown") if not _is_consequence(hit, timeouts, ends)])
    if unknown and not (effect and _clearly_later(unknown, effect)):
        return unknown
    return effect or unknown or _first(_of(hits, "unknown")) or _first(_of(hits, "follow_on"))


def _of(hits: Iterable[_Hit], kind: str) -> list[_Hit]:
    return [hit for hit in hits if hit.kind == kind]


def _first(hits: Sequence[_Hit]) -> _Hit | None:
    """Return the first failure: on each rank by trust among what came together, between the ranks by time."""
    groups: dict[str, list[_Hit]] = {}
    for hit in hits:
        groups.setdefault(hit.group, []).append(hit)
    return min((_most_trusted(group) for group in groups.values()), key=lambda hit: hit.order, default=None)


def _most_trusted(hits: Sequence[_Hit]) -> _Hit:
    earliest = min(hits, key=lambda hit: hit.order)
    limit = earliest.when.time + _TOGETHER if earliest.when.time else None
    together = [hit for hit in hits if hit.when.time is None or limit is None or hit.when.time <= limit]
    return min(together, key=_trust)


def _trust(hit: _Hit) -> tuple[int, bool, bool, int, tuple[bool, datetime, str, int]]:
    """Order of trust among errors of one moment: the rank's own log before what rank 0 reports of it."""
    return _position(hit.signature), hit.reported, not hit.exception, hit.layer, hit.order


def _position(signature: Signature | None) -> int:
    return signatures().index(signature) if signature else 0


def _effect(timeouts: Sequence[_Hit], ends: Sequence[_Hit]) -> _Hit | None:
    """Return the first sign that a rank waited in vain, or ended."""
    timeout, end = _first(timeouts), _first(ends)
    if timeout is None or end is None:
        return timeout or end
    if end.group != timeout.group and not _clearly_later(end, timeout):
        return end
    return min(timeout, end, key=lambda hit: hit.order)


def _clearly_later(hit: _Hit, other: _Hit) -> bool:
    """Whether one line was written after another for certain: both must say when."""
    one, two = hit.when, other.when
    return bool(one.own and two.own and one.time and two.time and one.time > two.time + _GRACE)


def _is_consequence(hit: _Hit, timeouts: Sequence[_Hit], ends: Sequence[_Hit]) -> bool:
    wrapped = any(hit.group == other.group and not _clearly_later(other, hit) for other in timeouts)
    orphaned = any(
        hit.group != other.group and other.rank is not None and _not_before(hit.when, other.when) for other in ends
    )
    return wrapped or orphaned or any(_outranked(hit, other) for other in (*ends, *timeouts))


def _outranked(hit: _Hit, report: _Hit) -> bool:
    """Whether we reported with a time that another rank failed first, and this line has none: teardown, most often."""
    return report.reported and report.when.own and not hit.when.own and hit.group != report.group


def _not_before(one: When, two: When) -> bool:
    return bool(one.own and two.own and one.time and two.time and one.time >= two.time)


def _explain(winner: _Hit, hits: Sequence[_Hit], ranks: set[int | None]) -> Diagnosis:
    known = winner.signature
    same = (hit.rank for hit in hits if hit.signature == known and hit.rank is not None)
    rank = next(same, None) if known and winner.rank is None else winner.rank
    base = Diagnosis(True, rank, first=winner.evidence(), evidence=_evidence(winner, hits))
    if known is None:
        return replace(
            base,
            cause="an error that no signature knows; its own words follow",
            remedy="Read the first error lines of each rank below, and the log around them.",
        )
    suspects: set[int] = set()
    if known.kind == "timeout":
        waiting = {hit.rank for hit in _of(hits, "timeout")}
        suspects = {rank for rank in ranks - waiting if rank is not None}
    return replace(
        base,
        signature=known.id,
        phase=known.phase,
        cause=known.cause,
        remedy=known.remedy,
        retryable=known.retryable,
        suspects=tuple(sorted(suspects)),
    )


def _evidence(winner: _Hit, hits: Sequence[_Hit]) -> tuple[Evidence, ...]:
    """Return the first lines of the failing rank and of each other: three of an unknown error, else two and one."""
    unknown = winner.signature is None
    chosen: list[_Hit] = []
    for group in sorted({hit.group for hit in hits}, key=lambda name: (name != winner.group, name)):
        count = _FIRST_LINES if unknown else 2 if group == winner.group else 1
        told: set[str] = {winner.line}
        for hit in sorted((h for h in hits if h.group == group), key=lambda hit: (hit.kind == "follow_on", hit.order)):
            if count and hit.line not in told:
                chosen.append(hit)
                told.add(hit.line)
                count -= 1
    return tuple(hit.evidence() for hit in sorted(chosen, key=lambda hit: hit.order))


def _ends(logs: Sequence[RankLog], times: Sequence[Sequence[When]]) -> Iterable[Evidence]:
    for log, whens in zip(logs, times, strict=True):
        last = next(((n, t, w) for (n, t), w in zip(log.lines[::-1], whens[::-1], strict=True) if t.strip()), None)
        if last:
            number, text, when = last
            yield Evidence(log.rank, log.name, number, Parsed(text).message.strip()[:_LONGEST], when.time)
