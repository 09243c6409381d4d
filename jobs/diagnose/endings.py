"""Logs in which nothing failed: how far each of them came, and whether any says that all was well. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jobs.diagnose.diagnosis import Diagnosis, Evidence, RankLog
from jobs.diagnose.events import forms, read_events
from jobs.diagnose.hits import Hit, clearly_later, of_kind
from jobs.diagnose.sift import Line
from jobs.diagnose.signatures import position
from jobs.diagnose.times import When

_WELL, _READY, _NEARLY, _FAILS, _UP, _ALLOCATED, _STOPS, _WORDS, _NO_WORDS, _PARTING = (
    re.compile(forms()[name])
    for name in ("well", "ready", "nearly", "fails", "up", "allocated", "stops", "last_words", "no_words", "parting")
)

_EMPTY = "See the output of the batch script, what Slurm says of the job (sacct -j JOB), and whether the disk was full."
_UNREAD = "nothing could be read: that says neither success nor failure"
_OPEN = "Unpack it, have its owner give you the right to read it, or name a copy of it."
_NEITHER = "no line is an error by its form, and none says that the service was ready: neither failure nor success"
_AFTER = (
    "no line is an error by its form; after the service was ready there are lines with words of failure, which follow"
)
_LOOK = (
    "Read the last lines below. Diagnose the logs of all ranks, of the batch script and of the client together; of a "
    "process that was killed only dmesg and `sacct -j JOB -o State,ExitCode,MaxRSS` may know."
)
_LAST_WORDS = "no line is an error by its form; this one, at the end of its log, reads like the failure"
_ALL_WELL = (
    "If it failed all the same, see the last lines of each rank. Wrong or garbled answers leave no line: send one "
    "request with temperature 0, then again without speculative-config, and with enforce-eager; compare the weights' "
    "hashes with the hub's, and the quantization and prefill/decode settings with the release's recipe."
)
_WARNS = re.compile(r"\b[Ww][Aa][Rr][Nn]")
_LONGEST = 400
_BEFORE_END = "the task ended with an error; the last line before it that reads like a failure follows"
_SHORT = "the time is too short for what was still to do: the lines before it still came at their usual pace."
TOLD = (_UNREAD, _OPEN, _NEITHER, _AFTER, _LOOK, _LAST_WORDS, _BEFORE_END, _SHORT)
"""What people read of these, for `tools/spoken.py`."""

_END, _FAR = 3, 8
"""Lines of the end of a log in which one that reads like a failure is its last word: where all was well, and not."""

_NEAREST = 3
"""Lines shown that come near to an error."""

_ENDED = "stopped-orderly"
_UNASKED = ("engine-ended", "engine-killed")
"""What a rank says of an engine that nobody stopped, in however good order it went."""

_BEFORE = ("queue", "container", "start")
_TO_READY = ("queue", "container", "start", "load", "rendezvous")
_LIFE = ("queue", "container", "start", "load", "rendezvous", "graph", "serve")
"""Phases in the order of a service's life."""

_FAILED = ("cause", "symptom", "timeout", "unknown")


def stopped(hits: Sequence[Hit], logs: Sequence[RankLog]) -> list[Hit]:
    """Return the last stage of each log, of logs that end before they say that all is well; the least advanced first.

    A log of one rank that tells it speaks for those that never do. An image is being unpacked only while that is the
    last line.
    """
    well = _last_of(logs, _WELL)
    ends = {log.name: last[0] for log in logs if (last := _last(log))}
    stages: dict[str, Hit] = {}
    for hit in of_kind(hits, "stage"):
        assert hit.signature
        over = hit.event.number < well.get(hit.log, 0) or (well and hit.log not in well)
        passed = hit.signature.phase == "container" and hit.event.number != ends[hit.log]
        if not (over or passed or (well and hit.signature.id == _ENDED)):
            stages[hit.log] = hit
    return sorted(stages.values(), key=lambda hit: position(hit.signature.id) if hit.signature else 0)


def lived_on(hits: Sequence[Hit], logs: Sequence[RankLog]) -> list[Hit]:
    """Leave out what was overcome: all errors of a log before its service was ready, where none came after that.

    Also waits and lines that are no errors by their form (a client's own words) or errors by their words alone, where
    the service came further after them; and what those who set a container up or started a task said, where all was
    well after it. Where something else failed later: what stands before the service was ready, and what a script said
    of a stage that was passed.
    """
    well, ready, allocated = (_last_of(logs, pattern) for pattern in (_WELL, _READY, _ALLOCATED))
    last: dict[str, int] = {}
    for hit in of_kind(hits, *_FAILED, "end"):
        if not (hit.event.minor or hit.ended):
            last[hit.log] = max(hit.event.number, last.get(hit.log, 0))
    good = {name: max(number, ready.get(name, 0)) for name, number in (ready | _last_of(logs, _UP)).items()}
    for hit in hits:
        if hit.kind not in ("note", "stage") and hit.event.number > good.get(hit.log, hit.event.number):
            del good[hit.log]
    stages = [hit for hit in of_kind(hits, "stage") if hit.event.number < last.get(hit.log, 0)]
    further = dict(well)
    for hit in of_kind(hits, "stage"):
        further[hit.log] = max(hit.event.number, further.get(hit.log, 0))

    def passed(hit: Hit) -> bool:
        number, sign = hit.event.number, hit.signature
        waited = sign is not None and sign.passing
        lasting = sign is not None and sign.phase == "any" and sign.any_level  # devices, disks, file servers
        weak = hit.event.bare and hit.kind in ("symptom", "unknown") and not lasting
        queued = hit.event.bare and hit.event.text.startswith(("srun: ", "salloc: "))
        overcome = hit.kind not in ("note", "stage") and (
            number < good.get(hit.log, 0)
            or number < ready.get(hit.log, 0) < last.get(hit.log, 0)
            or (queued and number < allocated.get(hit.log, 0))
            or (hit.kind == "end" and hit.of_service and number < well.get(hit.log, 0) < last.get(hit.log, 0))
            or _passed_by(hit, stages)
        )
        set_up = hit.speaker != "" and (sign is None or sign.phase in _BEFORE) and hit.kind not in ("note", "stage")
        over = hit.event.bare and sign is not None and sign.phase in _TO_READY and number > ready.get(hit.log, number)
        quoted = hit.event.bare and not hit.event.error and hit.kind == "cause" and not lasting
        early = (waited or set_up or over or quoted) and number < well.get(hit.log, 0)
        return overcome or early or (weak and number < further.get(hit.log, 0))

    return [hit for hit in hits if not passed(hit)]


def _last_of(logs: Sequence[RankLog], pattern: re.Pattern[str]) -> dict[str, int]:
    """Return the last line of each log that has something."""
    return {log.name: number for log in logs for number, text in log.lines if pattern.search(text)}


def _passed_by(hit: Hit, stages: Sequence[Hit]) -> bool:
    """Whether what no process of an engine said is of a phase after which its log came further, and failed later.

    Of an API server too, where that was clearly later: its engines go on for a moment after it has failed.
    """
    server = "api" in hit.event.process
    if (hit.event.process and not server) or hit.signature is None or hit.signature.phase not in _LIFE:
        return False
    phase = _LIFE.index(hit.signature.phase)
    after = [one for one in stages if one.log == hit.log and one.event.number > hit.event.number]
    after = [one for one in after if not server or clearly_later(one, hit)]
    return any(
        _LIFE.index(one.signature.phase) > phase for one in after if one.signature and one.signature.phase in _LIFE
    )


def not_from_outside(hits: Sequence[Hit], logs: Sequence[RankLog]) -> list[Hit]:
    """Leave out that somebody ended the job (its time was over) where the service had failed clearly before."""
    well = _last_of(logs, _WELL)
    died = [hit for hit in of_kind(hits, *_FAILED) if hit.serious and not (hit.event.minor or hit.event.bare)]
    died = [hit for hit in died if not (hit.request or hit.outside) and hit.event.number > well.get(hit.log, 0)]
    return [hit for hit in hits if not (hit.outside and any(clearly_later(hit, one) for one in died))]


def not_after_stop(hits: Sequence[Hit], logs: Sequence[RankLog], times: Sequence[Sequence[When]]) -> list[Hit]:
    """Leave out what processes say of each other's end after a service, of which nothing had failed, was stopped."""
    ready = _last_of(logs, _READY)
    stop = next(
        (
            (log.name, number, when.time)
            for log, whens in zip(logs, times, strict=True)
            for (number, text), when in zip(log.lines, whens, strict=True)
            if 0 < ready.get(log.name, 0) < number and _STOPS.search(text)
        ),
        None,
    )
    if stop is None:
        return list(hits)
    name, line, time = stop

    def after(hit: Hit) -> bool:
        if hit.log == name:
            return hit.event.number > line
        return bool(time and hit.when.time and hit.when.time >= time)

    failed = [hit for hit in of_kind(hits, *_FAILED, "end") if not (hit.event.minor or hit.request or hit.of_client)]
    if any(not after(hit) for hit in failed):
        return list(hits)

    def noise(hit: Hit) -> bool:
        ours = hit.signature is not None and hit.signature.id in _UNASKED
        kept = ours or hit.kind in ("cause", "note", "stage") or hit.of_client or hit.outside or hit.speaker != ""
        return not (kept or hit.event.text.startswith(("srun: ", "slurm"))) and after(hit)

    return [hit for hit in hits if not noise(hit)]


def closed(hits: Sequence[Hit], logs: Sequence[RankLog]) -> tuple[str, ...]:
    """Return a note where a service shut down in good order; of those that this tool stopped it is no news."""
    ours = {log.name for log in logs if log.own}
    told = [hit for hit in hits if hit.signature and hit.signature.id == _ENDED and hit.log not in ours]
    return tuple(f"{hit.signature.cause} ({hit.log}:{hit.event.number})" for hit in told[:1] if hit.signature)


def nothing(logs: Sequence[RankLog], times: Sequence[Sequence[When]], notes: tuple[str, ...]) -> Diagnosis:
    """Return the answer where no line is an error."""
    if logs and all(_last(log) is None for log in logs):
        if any(log.unread for log in logs):
            return Diagnosis(found=False, cause=_UNREAD, remedy=_OPEN, notes=notes)
        which = "the log is" if len(logs) == 1 else "all logs are"
        return Diagnosis(found=False, cause=f"{which} empty: that says neither success nor failure", remedy=_EMPTY)
    ends = tuple(_ends(logs, times))
    near = list(_near(logs, times))
    shown = (*[one for one in near if one not in ends][-_NEAREST:], *ends)
    well = _last_of(logs, _WELL)
    last = [one for one in _failing(logs, times) if one.number > well.get(one.log, 0)]
    last = [one for one in last if any(one.log == end.log and end.number - one.number < _END for end in ends)]
    last = last or ([] if well else [one for end in ends for one in _last_words(logs, times, end)])
    if last:
        first = _telling(last)
        others = tuple(one for one in shown if (one.log, one.number) != (first.log, first.number))
        base = Diagnosis(True, first.rank, certainty="not known", first=first, evidence=others, notes=notes)
        return replace(base, cause=_LAST_WORDS, remedy=_LOOK)
    if not well:
        return Diagnosis(found=False, cause=_NEITHER, remedy=_LOOK, evidence=shown, notes=notes)
    if any(one.number > well.get(one.log, one.number) and not _WARNS.search(one.line) for one in near):
        return Diagnosis(found=False, cause=_AFTER, remedy=_LOOK, evidence=shown, notes=notes)
    return Diagnosis(found=False, remedy=_ALL_WELL, evidence=ends, notes=notes)


def before_end(found: Diagnosis, logs: Sequence[RankLog], times: Sequence[Sequence[When]]) -> Diagnosis:
    """Return the answer that a task ended with the last words before it, where a program had some."""
    words = _last_words(logs, times, found.first) if found.first else []
    if not (words and found.first):
        return found
    first = _telling(words)
    rest = (found.first, *(one for one in found.evidence if one.line != first.line))
    return replace(found, cause=_BEFORE_END, first=first, evidence=rest)


def _telling(words: Sequence[Evidence]) -> Evidence:
    """Return the last line that says more than that a program ends."""
    return next((one for one in reversed(words) if _WORDS.search(_PARTING.sub("", one.line))), words[-1])


def while_starting(found: Diagnosis, stage: Hit) -> Diagnosis:
    """Return the answer that a job's time was over, with how far its service had come: it may have waited in vain."""
    if stage.signature is None or stage.signature.phase not in _LIFE:
        return found
    causes = (_SHORT, *stage.signature.causes)
    return replace(found, certainty="narrowed", means=(*found.means, stage.signature.cause), causes=causes)


def _last_words(logs: Sequence[RankLog], times: Sequence[Sequence[When]], end: Evidence) -> list[Evidence]:
    """Return the lines without a level, with words of failure, that stand shortly before one, or are that one."""
    found = []
    for log, whens in zip(logs, times, strict=True):
        for event in read_events(log.lines, whens) if log.name == end.log else ():
            near = 0 <= end.number - event.number < _FAR and event.level is None
            if near and _WORDS.search(event.text) and not _NO_WORDS.search(event.text):
                found.append(Evidence(log.rank, log.name, event.number, event.text[:_LONGEST], event.when.time))
    return found


def _near(logs: Sequence[RankLog], times: Sequence[Sequence[When]]) -> Iterator[Evidence]:
    """Yield lines that are no errors by their form, with words of failure."""
    for log, whens in zip(logs, times, strict=True):
        for (number, text), when in zip(log.lines, whens, strict=True):
            if _NEARLY.search(text):
                yield Evidence(log.rank, log.name, number, text.strip()[:_LONGEST], when.time)


def _failing(logs: Sequence[RankLog], times: Sequence[Sequence[When]]) -> Iterator[Evidence]:
    """Yield lines of no level that say: a program failed to do something, and why."""
    for log, whens in zip(logs, times, strict=True):
        for event in read_events(log.lines, whens):
            if event.level is None and _FAILS.match(event.text):
                yield Evidence(log.rank, log.name, event.number, event.text[:_LONGEST], event.when.time)


def _last(log: RankLog) -> Line | None:
    return next((line for line in reversed(log.lines) if line[1].strip()), None)


def _ends(logs: Sequence[RankLog], times: Sequence[Sequence[When]]) -> Iterator[Evidence]:
    for log, whens in zip(logs, times, strict=True):
        if last := _last(log):
            when = whens[log.lines.index(last)]
            yield Evidence(log.rank, log.name, last[0], last[1].strip()[:_LONGEST], when.time)
