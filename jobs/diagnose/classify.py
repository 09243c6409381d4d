"""Logs of all ranks -> the first failing rank, its cause and the remedy. Pure.

Order of trust:
    1. Every event is one hit: of a signature, of a code of a closed list, or an error that none knows. Follow-on errors
       never decide while there is anything else, whatever their time: they are often printed before the error that
       they wrap.
    2. A cause decides. On one rank, causes within two seconds are one failure: there the order of signatures.yaml,
       then the line that says why before one that only carries its code, then worker before API server. Between ranks
       the earlier one decides.
    3. Without a cause, a symptom or an unknown error decides, unless it is itself a consequence: of a time-out on its
       own rank, or of the end of another rank. A line that only its level makes an error comes after all of them.
    4. A time-out blames a rank that has none. It decides only where nothing was wrong before it.
    5. An error without a time on another rank says nothing against our own report of who failed first.
    6. An error that none knows is described by the place where it came up, the features that its frames name and the
       kind of its exception (places.yaml), where they are known.
    7. What an engine says after it was told to stop is no failure.
    8. A line that only says that something failed gives way to one near it that says what; and who sets a container up
       or starts a task (pyxis, slurmstepd) says nothing of an engine's life.
    9. A line below the level of an error that says how the program went on (falls back, resets, ignores) is no failure.
   10. A wait that its line does not call an error decides only where no error does; and where nothing is found, the
       stage of its life in which the least advanced log ends.
   11. What a service survived is no reason of its end: what stands before it was ready, a stage that was passed, a
       wait that went on. A time limit or a preemption does not explain a failure that stands clearly before it.
       Commands that a shell traces, and programs that tidy up, say nothing.
   12. After an orderly stop nothing but a cause is a failure. A time limit during the start is told with how far the
       start had come.
   13. The words of an errno, said by a program that is not known and about nothing that one of their causes names, are
       no answer: the line speaks for itself. So are those of a container where none of the known causes fits.
   14. A log that never said that all was well, and has no error by its form, is told by its last words of failure; so
       is one that only says that a task ended.
   15. A line without a time stands between the stamps around it. What is said late (Slurm, of a node that is gone),
       and what only carries another process's words, gives way to those who felt it first, or said it themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from jobs.core.layout import node_of
from jobs.diagnose.deciding import decide
from jobs.diagnose.diagnosis import Diagnosis, Evidence, RankLog
from jobs.diagnose.endings import (
    before_end,
    closed,
    lived_on,
    not_after_stop,
    not_from_outside,
    nothing,
    stopped,
    while_starting,
)
from jobs.diagnose.events import Event, forms, read_events
from jobs.diagnose.hits import Hit, clearly_later, hands_on, of_kind, speaker, what_counts
from jobs.diagnose.places import fallback, features, of_settings, otherwise, place_of, waits
from jobs.diagnose.signatures import (
    HELD,
    KINDS,
    Signature,
    candidates,
    dubious,
    families,
    fitting,
    meanings,
    of_code,
    vague,
)
from jobs.diagnose.times import When, timeline

_READY, _SHUTDOWN, _SLURM, _COPED, _SMALL = (
    re.compile(forms()[name]) for name in ("ready", "shutdown", "slurm", "coped", "small")
)

_NOT_READ = "no failure in what was read before the time was over: that says neither success nor failure"
_AGAIN = "Name the one log that matters (python -m jobs diagnose FILE), on a machine that has time."
_OVER = "there is an error that was got over, as all went well after it: {}"
_UNREAD = "{} could not be read to its end: {}"
_CUT_SHORT = "the time for the diagnosis ran out: what stands further on in {} was not read"

_LONGEST = 400
_FIRST_LINES = 3
_BELOW = 8
"""Lines below an exception without words in which its words may stand."""

_UNKNOWN_CAUSE = "an error that no signature knows; its own words follow"
_READ = "Read the first error lines of each rank below, and the log around them."
TOLD = (_UNKNOWN_CAUSE, _READ, HELD, _OVER, _UNREAD, _CUT_SHORT, _NOT_READ, _AGAIN)
"""What people read of these, for `tools/spoken.py`."""

_SET_UP = ("pyxis", "enroot", "docker", "podman", "apptainer")
"""Programs of whose errors a place says more than the words of an errno do."""

_TIME_UP = "slurm-time-limit"

_AT_WORK = frozenset(("graph", "serve"))
"""Phases of which an error that was raised where settings are read can say nothing."""

_INSIDE = frozenset(("load", "rendezvous", "graph", "serve", "bench"))
"""Phases of an engine's life, of which those who set its container up, or start its task, can say nothing."""


def classify(logs: Sequence[RankLog], local_sizes: Sequence[int] = (), alone: bool = True) -> Diagnosis:
    """Return why a service failed.

    Args:
        logs: of all ranks, in any order; also logs that this tool did not write.
        local_sizes: data-parallel ranks of each node, in order; empty: not known, so that a line about a
            data-parallel rank does not tell the node.
        alone: nothing but these logs tells of the failure, so that how far they came is an answer.
    """
    ordered = sorted(logs, key=lambda log: (log.rank is None, log.rank or 0, log.name, log.lines))
    times = timeline([([text for _, text in log.lines], log.end) for log in ordered])
    ready = _ready(ordered, times)
    hits = [hit for log, when in zip(ordered, times, strict=True) for hit in _hits(log, when, ready, local_sizes)]
    stages, ended = (stopped(hits, ordered) if alone else []), closed(hits, ordered)
    errors = [hit for hit in hits if hit.event.error and hit.kind not in ("note", "stage")]
    hits = what_counts([hit for hit in lived_on(hits, ordered) if hit.kind != "stage"], ready)
    hits = not_after_stop(not_from_outside(hits, ordered), ordered, times)
    notes = [f"{h.says(h.signature.cause)} ({h.log}:{h.event.number})" for h in of_kind(hits, "note") if h.signature]
    late = [_CUT_SHORT.format(log.name) for log in ordered if log.cut]
    late += [_UNREAD.format(log.name, log.unread) for log in ordered if log.unread and log.lines]
    dark = [_UNREAD.format(log.name, log.unread) for log in ordered if log.unread and not log.lines]
    told = tuple(dict.fromkeys(notes + late + dark))
    hits = [hit for hit in hits if hit.kind != "note"]
    winner = decide(hits)
    if winner is None and late:
        return Diagnosis(found=False, cause=_NOT_READ, remedy=_AGAIN, notes=told)
    if winner is None and not stages:
        over = [_OVER.format(f"{hit.line} ({hit.log}:{hit.event.number})") for hit in errors[:1]]
        return nothing(ordered, times, (*told, *ended, *over))
    winner, stages = _or_stage(winner, stages)
    found = _explain(winner or stages[0], hits or stages, {log.rank for log in logs})
    if winner and winner.ended:
        found = before_end(found, ordered, times)
    if found.signature == _TIME_UP and stages:
        found = while_starting(found, stages[0])
    return replace(found, notes=told)


def _or_stage(winner: Hit | None, stages: list[Hit]) -> tuple[Hit | None, list[Hit]]:
    """Return what decides, or None where how far the service had come says more: with the stages in that order.

    That somebody waited for it says less; and that a client got no answers, where requests ran and no tokens came out.
    """
    if winner is None:
        return None, stages
    place = None if winner.signature else place_of(winner.event)
    hung = [hit for hit in stages if hit.signature and hit.signature.phase == "serve"]
    if hung and (winner.of_client or (place is not None and place.phase == "bench")):
        return None, hung
    return (None if stages and winner.kind == "end" and winner.waited else winner), stages


def _ready(logs: Sequence[RankLog], times: Sequence[Sequence[When]]) -> datetime | None:
    """Return when the service was ready for the first time; None: never, or no log has a clock."""
    found = (
        when.time
        for log, whens in zip(logs, times, strict=True)
        for (_, text), when in zip(log.lines, whens, strict=True)
        if when.time and _READY.search(text)
    )
    return min(found, default=None)


def _hits(log: RankLog, times: Sequence[When], ready: datetime | None, local_sizes: Sequence[int]) -> Iterator[Hit]:
    stopping, up, alive = False, False, 0
    for event in read_events(log.lines, times):
        alive = event.number if event.minor and not event.bare else alive
        stopping = stopping or _SHUTDOWN.search(event.raw) is not None
        up = up or _READY.search(event.raw) is not None
        after = up or bool(ready and event.when.time and event.when.time >= ready)
        signature, match = _match(event, log.rank, after)
        if signature is None and not event.error:
            continue
        if stopping and (signature is None or signature.kind in ("symptom", "follow_on", "timeout")):
            continue
        rank = _rank(event, match, log, local_sizes)
        if signature and signature.kind == "end" and log.own and _SLURM.match(event.raw):
            signature = replace(signature, kind="follow_on")  # the engine's own exit code says more
        group = f"rank {rank}" if rank is not None else log.name
        yield Hit(event, signature, match, rank, group, log.name, event.text[:_LONGEST], alive)


def _match(event: Event, rank: int | None, after_ready: bool) -> tuple[Signature | None, re.Match[str] | None]:
    """Return what an event is, and how it was recognised: a signature, or a code of a kind that is trusted more."""
    best: tuple[Signature | None, re.Match[str] | None] = None, None
    said_by = speaker(event)
    coped = event.minor and not event.bare and _COPED.search(event.text) is not None
    for signature in candidates(f"{event.raw}\n{event.text}"):
        if (event.minor and not signature.any_level) or (event.error and signature.kind == "stage"):
            continue
        if coped and signature.kind not in ("note", "stage"):
            continue
        if rank is not None and signature.role and (signature.role == "head") != (rank == 0):
            continue
        if signature.ready is not None and signature.ready != after_ready:
            continue
        if said_by and (signature.phase in _INSIDE or (signature.causes and signature.phase == "any")):
            continue
        if signature.place and not signature.place.search(event.frames):
            continue
        if signature.early and event.frames and (place := place_of(event)) and place.phase in ("graph", "serve"):
            continue
        match = signature.pattern.search(event.text) or signature.pattern.search(event.raw)
        if match and not (signature.kind == "symptom" and signature.phase in _AT_WORK and of_settings(event)):
            best = signature, match
            break
    kind = best[0].kind if best[0] else None
    if kind in (None, "symptom", "follow_on") and (not event.minor or event.code):
        for family in families():
            if family.errors and (kind or said_by in _SET_UP or not event.error):
                continue
            for match in family.found(event.text):
                coded = of_code(family.id, match["code"])
                if coded and (kind is None or KINDS.index(coded.kind) < KINDS.index(kind)):
                    return coded, match
    return (None, None) if kind == "follow_on" and hands_on(event) else best


def _rank(event: Event, match: re.Match[str] | None, log: RankLog, local_sizes: Sequence[int]) -> int | None:
    """Return the rank that an event is about: its own words are better than the file that they are in."""
    rank = log.rank
    if log.own and _SLURM.match(event.raw):
        return rank
    if event.report or (event.rank is not None and rank is None):
        return event.rank
    named = match.groupdict() if match else {}
    if named.get("rank") is not None and not log.own:  # what an engine counts are its workers
        told = int(named["rank"])
        return told if told < (len(local_sizes) or told + 1) else rank
    if named.get("data_parallel_rank") is not None:
        # A node may run several engines: without their numbers only the first one's node is certain.
        engine = int(named["data_parallel_rank"])
        return node_of(local_sizes, engine) if engine < sum(local_sizes) else None if engine else 0
    return None if rank == 0 and _SLURM.match(event.raw) else rank


def _explain(winner: Hit, hits: Sequence[Hit], ranks: set[int | None]) -> Diagnosis:
    known = (None if winner.kind == "follow_on" and winner.wraps and winner.event.exception else winner.signature) or (
        fallback(winner.event) or winner.signature
    )
    same = (hit.rank for hit in hits if hit.signature and hit.signature == known and hit.rank is not None)
    rank = next(same, None) if known and winner.rank is None else winner.rank
    shown = _reason(winner, hits)
    plain = known is not None and not known.id.startswith("errno")
    means = tuple(dict.fromkeys((*meanings(winner.line, plain), *meanings(shown.line, plain))))
    base = Diagnosis(True, rank, first=shown.evidence(), evidence=_evidence(shown, hits), means=means)
    if known is None:
        return replace(
            base,
            certainty="not known",
            cause=_UNKNOWN_CAUSE,
            remedy=_READ,
        )
    by_frames = known.kind == "symptom" or known.within
    hints = tuple(features(winner.event)) if by_frames else ()
    listed = tuple(winner.says(one) for one in known.causes or waits(known))
    causes = fitting(listed, winner.event.raw, shown.line, *means, frames=winner.event.frames)
    told = tuple(dict.fromkeys((*hints, *causes, *otherwise(known))))
    silent = vague(known.causes, winner.event.raw, shown.line) or _of_others(known, winner)
    suspects: set[int] = set()
    if known.kind == "timeout":
        waiting = {hit.rank for hit in of_kind(hits, "timeout")}
        suspects = {rank for rank in (ranks | {0} if rank else ranks) - waiting if rank is not None}
    return replace(
        base,
        certainty="not known" if silent else known.certainty,
        signature=known.id,
        phase=known.phase,
        cause=winner.says(known.cause),
        remedy=winner.says(known.remedy),
        causes=() if silent and known.id.startswith("errno-text") else told,
        source=known.source,
        retryable=known.retryable,
        suspects=tuple(sorted(suspects)),
    )


def _of_others(known: Signature, winner: Hit) -> bool:
    """Whether a program that is not known says the words of an errno, and of nothing that one of their causes names."""
    if winner.event.exception or not known.id.startswith("errno-text") or _SMALL.match(winner.event.text):
        return False
    return dubious(known.causes, winner.event.raw)


def _reason(winner: Hit, hits: Sequence[Hit]) -> Hit:
    """Return the line that says most: for an exception without words, or a code that came up through a wrapper."""
    if winner.event.wordless:
        below = [hit for hit in of_kind(hits, "unknown") if hit.log == winner.log and not hit.event.exception]
        below = [hit for hit in below if winner.event.process == hit.event.process]
        below = [hit for hit in below if 0 < hit.event.number - winner.event.number <= _BELOW and hit.event.says]
        return min(below, key=lambda hit: hit.event.number, default=winner)
    if winner.kind == "symptom" and winner.event.inside:
        heads = [hit for hit in of_kind(hits, "unknown", "symptom") if hit.log == winner.log and hit.event.code]
        heads = [hit for hit in heads if 0 < winner.event.number - hit.event.number <= _BELOW and hit.event.says]
        heads = [hit for hit in heads if hit.event.process == winner.event.process]
        return max(heads, key=lambda hit: hit.event.number, default=winner)
    if winner.kind != "symptom" or not winner.wraps:
        return winner
    told = of_kind(hits, "unknown")
    told = [hit for hit in told if (hit.event.code or hit.event.inside) and hit.group == winner.group]
    near = [hit for hit in told if not clearly_later(hit, winner) and not clearly_later(winner, hit)]
    return min(near, key=lambda hit: (hit.event.code is None, hit.order), default=winner)


def _evidence(winner: Hit, hits: Sequence[Hit]) -> tuple[Evidence, ...]:
    """Return the first lines of the failing rank and of each other: three of an unknown error, else two and one."""
    unknown = winner.signature is None
    chosen: list[Hit] = []
    for group in sorted({hit.group for hit in hits}, key=lambda name: (name != winner.group, name)):
        count = _FIRST_LINES if unknown else 2 if group == winner.group else 1
        told: set[str] = {winner.line}
        for hit in sorted((h for h in hits if h.group == group), key=lambda hit: (hit.kind == "follow_on", hit.order)):
            if count and hit.line not in told:
                chosen.append(hit)
                told.add(hit.line)
                count -= 1
    return tuple(hit.evidence() for hit in sorted(chosen, key=lambda hit: hit.order))
